"""Put on PYTHONPATH, it gives the decoder a fault: pictures with a mark end the process, as a crash
in a codec does. Everything else is the real thing."""

import os
import signal
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MARK = b"this picture ends its reader"
FAULTY = "clipfleet.common.images"


class _Faulty(Loader):
    def __init__(self, whole: Loader) -> None:
        self._whole = whole

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._whole.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._whole.exec_module(module)
        decode = module.decode

        def faulty(data: bytes, *more: Any, **named: Any) -> Any:
            if MARK in data:
                os.kill(os.getpid(), signal.SIGSEGV)
            return decode(data, *more, **named)

        vars(module)["decode"] = faulty


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != FAULTY:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader = _Faulty(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
