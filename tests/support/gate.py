"""Holds the models of a stack before an image, until the test opens the gate. See `killer`."""

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
    """A gate. `folder` is a path that does not exist yet."""

    folder: Path

    def environment(self, **constants: float) -> dict[str, str]:
        """The environment of processes to hold. `constants` are those of `killer`."""
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
        """Close the gate until the block ends or opens it."""
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
        """Ids of the processes that wait at the gate."""
        limit = (self.folder / "limit").read_text().split()[0]
        waiting = [
            int(path.name.partition("-")[2])
            for path in self.folder.glob("waiting-*")
            if path.read_text() == limit
        ]
        return [pid for pid in waiting if _lives(pid)]

    def wait(self, processes: int = 1) -> None:
        """Wait until `count` processes are held."""
        services.eventually(lambda: len(self.held()) >= processes, 300, "a model at the gate")

    @contextmanager
    def broken_device(self) -> Iterator[None]:
        """Break the device of every model until the block ends."""
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
