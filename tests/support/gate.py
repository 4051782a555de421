"""Holds the models of a stack before an image, until the test lets them on: see `killer`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from support import services
from support.killer import sitecustomize

KILLER = Path(sitecustomize.__file__).parent


@dataclass(frozen=True)
class Gate:
    """`folder`: any that is not there yet."""

    folder: Path

    def environment(self, **constants: float) -> dict[str, str]:
        """Of the processes that it is to hold. `constants`: as `killer` takes them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = [str(KILLER), os.environ.get("PYTHONPATH", "")]
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            sitecustomize.FAULTS: str(self.folder),
            sitecustomize.CONSTANTS: json.dumps(constants),
        }

    def hold(self, after: int = 0, *words: str) -> None:
        """No more than so many images pass from now on, by whatever process, but for those of a
        batch begun before. `words`: `spin` and `stored`, as in `killer`."""
        new = self.folder / "limit.new"
        new.write_text(" ".join([str(self.passed() + after), *words]))
        new.replace(self.folder / "limit")

    @contextmanager
    def closed(self, after: int = 0, *words: str) -> Iterator[None]:
        """`hold`, until the block ends or opens the gate."""
        self.hold(after, *words)
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        (self.folder / "limit").unlink(missing_ok=True)

    def passed(self) -> int:
        return sitecustomize.passed(self.folder)

    def held(self) -> list[int]:
        """The processes that wait at the gate as it stands."""
        limit = (self.folder / "limit").read_text().split()[0]
        waiting = [
            int(path.name.partition("-")[2])
            for path in self.folder.glob("waiting-*")
            if path.read_text() == limit
        ]
        return [pid for pid in waiting if _lives(pid)]

    def wait(self, processes: int = 1) -> None:
        """Until so many processes are held."""
        services.eventually(lambda: len(self.held()) >= processes, 300, "a model at the gate")

    @contextmanager
    def broken_device(self) -> Iterator[None]:
        """The device of every model is broken for so long."""
        broken = self.folder / "broken"
        broken.touch()
        try:
            yield
        finally:
            broken.unlink()


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
