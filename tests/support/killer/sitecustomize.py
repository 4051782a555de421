"""Put on PYTHONPATH, it gives a worker faults; everything else is the real thing.

Pictures with a mark end the process that decodes them, as a crash in a codec does. While the file
exists that `BREAKS` names, the model fails on everything, as on a device that is broken for good.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MARK = b"this picture ends its reader"
BREAKS = "CLIPFLEET_TEST_BREAKS"


def _decoder(images: ModuleType) -> None:
    decode = images.decode

    def faulty(data: bytes, *more: Any, **named: Any) -> Any:
        if MARK in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        return decode(data, *more, **named)

    vars(images)["decode"] = faulty


def _device(clip: ModuleType) -> None:
    """After the warm-up, which does not come this way."""
    embed = clip.ClipEmbedder.embed_images

    def faulty(self: Any, pixels: Any) -> Any:
        if os.path.exists(os.environ.get(BREAKS, "")):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return embed(self, pixels)

    clip.ClipEmbedder.embed_images = faulty


FAULTS = {"clipfleet.common.images": _decoder, "clipfleet.workers.clip": _device}


class _Faulty(Loader):
    def __init__(self, whole: Loader, fault: Callable[[ModuleType], None]) -> None:
        self._whole, self._fault = whole, fault

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._whole.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._whole.exec_module(module)
        self._fault(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in FAULTS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader = _Faulty(spec.loader, FAULTS[name])
        return spec


sys.meta_path.insert(0, _Finder())
