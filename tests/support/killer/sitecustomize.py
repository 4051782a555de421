"""Makes the processes of a stack fail on command, when this folder is on PYTHONPATH.

An image that contains `MARK` ends the process that decodes it, as a crash in a codec does. The
other faults are files in the folder that `FAULTS` names:

- `broken`: the model fails on every image, as on a device that is broken for good.
- `limit`: holds a number. Each image adds a byte to `passed`, in any process, and the model waits
  before an image while `passed` has that many bytes. A process that waits writes the limit to
  `waiting-PID`. Words after the number: `spin`, the process computes in Python while it waits;
  `stored`, it waits after it has written to the store, before it updates the ledger.

`CONSTANTS` sets constants of modules, as JSON: {"package.module:NAME": 1}. A worker waits `STORE_S`
for an answer of the store.
"""

import json
import os
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

MARK = b"this picture ends its reader"
FAULTS = "CLIPFLEET_TEST_FAULTS"
CONSTANTS = "CLIPFLEET_TEST_CONSTANTS"
FOLDER = Path(os.environ.get(FAULTS, ""))
VALUES: dict[str, float] = json.loads(os.environ.get(CONSTANTS, "{}"))
POLL_S = 0.02
STORE_S = 3.0


def _decoder(images: ModuleType) -> None:
    decode = images.decode

    def faulty(data: bytes, *more: Any, **named: Any) -> Any:
        if MARK in data:
            # To this very thread: after os.kill, this one was seen to go on for milliseconds
            # on a busy machine, until another thread took the signal.
            signal.raise_signal(signal.SIGSEGV)
        return decode(data, *more, **named)

    vars(images)["decode"] = faulty


def _model(embedder: ModuleType) -> None:
    embed = embedder.HashEmbedder.embed_images

    def faulty(self: Any, pixels: Any) -> Any:
        _wait("embed")
        with (FOLDER / "passed").open("ab", buffering=0) as out:
            out.write(bytes(len(pixels)))
        if (FOLDER / "broken").exists():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return embed(self, pixels)

    embedder.HashEmbedder.embed_images = faulty


def _store(milvus: ModuleType) -> None:
    upsert = milvus.MilvusStore.upsert

    def held(self: Any, *records: Any) -> None:
        upsert(self, *records)
        _wait("stored")

    milvus.MilvusStore.upsert = held
    milvus.make_store.__defaults__ = (STORE_S,)


def _wait(stage: str) -> None:
    waiting = FOLDER / f"waiting-{os.getpid()}"
    while limit := _limit():
        number, words = limit[0], limit[1:]
        if passed(FOLDER) < int(number) or (stage == "stored") != ("stored" in words):
            break
        waiting.write_text(number)
        spin(POLL_S) if "spin" in words else time.sleep(POLL_S)
    waiting.unlink(missing_ok=True)


def _limit() -> list[str]:
    try:
        return (FOLDER / "limit").read_text().split()
    except FileNotFoundError:
        return []


def passed(folder: Path) -> int:
    """The number of images that the models got."""
    try:
        return (folder / "passed").stat().st_size
    except FileNotFoundError:
        return 0


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


MODULES = {
    "clipfleet.common.imaging.decode": _decoder,
    "clipfleet.common.imaging.embedder": _model,
    "clipfleet.common.store.milvus": _store,
}


def _change(module: ModuleType) -> None:
    if module.__name__ in MODULES:
        MODULES[module.__name__](module)
    for constant, value in VALUES.items():
        name, _, variable = constant.partition(":")
        if name == module.__name__:
            vars(module)[variable] = value


class _Faulty(Loader):
    def __init__(self, whole: Loader) -> None:
        self._whole = whole

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._whole.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._whole.exec_module(module)
        _change(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in {*MODULES, *(constant.partition(":")[0] for constant in VALUES)}:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader = _Faulty(spec.loader)
        return spec


if FAULTS in os.environ:
    sys.meta_path.insert(0, _Finder())
