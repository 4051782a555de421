"""Put on PYTHONPATH, it keeps beside a folder what a power cut would leave of it.

`FOLDER` is copied to `DISK` file by file: when it is synced, as it is then; when it is renamed or
removed, at once. What was never synced never comes there.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER, DISK = "CLIPFLEET_TEST_POWER_FOLDER", "CLIPFLEET_TEST_POWER_DISK"


def _there(path: Any) -> Path | None:
    """Where a path of the folder lies on the disk."""
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
