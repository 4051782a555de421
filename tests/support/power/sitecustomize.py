"""Keeps a copy of a folder as a power cut would leave it, when this folder is on PYTHONPATH.

Files of `FOLDER` are copied to `DISK` when they are synced. A rename or a removal is repeated there
at once. A file that is never synced is never copied.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, DISK = "CLIPFLEET_TEST_POWER_FOLDER", "CLIPFLEET_TEST_POWER_DISK"


def _there(path: Any) -> Path | None:
    """The path in `DISK` of a path in `FOLDER`."""
    absolute, folder = Path(os.path.abspath(os.fspath(path))), Path(os.environ[FOLDER])
    return (
        Path(os.environ[DISK], absolute.relative_to(folder)) if folder in absolute.parents else None
    )


def _install() -> None:
    sync, replace, remove = os.fsync, os.replace, os.remove

    def fsync(number: int) -> None:
        sync(number)
        path = os.readlink(f"/proc/self/fd/{number}")
        there = _there(path)
        if there and os.path.isfile(path):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)

    def renaming(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(old: Any, new: Any, **named: Any) -> None:
            rename(old, new, **named)
            before, after = _there(old), _there(new)
            if before and after and before.exists():
                after.parent.mkdir(parents=True, exist_ok=True)
                replace(before, after)

        return renamed

    def removed(path: Any, **named: Any) -> None:
        remove(path, **named)
        if there := _there(path):
            there.unlink(missing_ok=True)

    vars(os).update(fsync=fsync, remove=removed)
    os.replace, os.rename = renaming(os.replace), renaming(os.rename)


if FOLDER in os.environ:
    _install()
