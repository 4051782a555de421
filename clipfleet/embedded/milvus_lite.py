"""milvus-lite, but for one thing: a log that could not be written is never written to again.

`python -m clipfleet.embedded.milvus_lite server ...`. When its disk is full, milvus-lite 3.2 leaves
half a batch in its log and goes on behind it as soon as there is room; at the next start it reads
up to the broken batch, and all that was confirmed since is lost. A flush that fails is worse: the
next one that succeeds removes the log of the one before. So the first write that fails is the last:
reading goes on, writes are refused, and once there is room the process ends. The next one reads all
that was confirmed.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milvus_lite.cmdline import main
from milvus_lite.engine import collection
from milvus_lite.storage.wal import WAL

ROOM = 16_000_000  # bytes, before it is worth another start
LOOK_S = 0.5


class Log:
    """Whether it is whole; `folder`: where it lies."""

    def __init__(self, folder: Path, end: Callable[[int], Any] = os._exit) -> None:
        self._folder, self._end = folder, end
        self._broken: OSError | None = None
        self._breaking = threading.Lock()

    def guarded(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def guard(*args: Any, **named: Any) -> Any:
            if self._broken:
                raise OSError(*self._broken.args)
            try:
                return write(*args, **named)
            except OSError as error:
                self._break(error)
                raise

        return guard

    def _break(self, error: OSError) -> None:
        with self._breaking:
            if self._broken is None:
                self._broken = error
                print(f"the log cannot be written: {error}; no more writes", file=sys.stderr)
                threading.Thread(target=self._end_when_there_is_room, daemon=True).start()

    def _end_when_there_is_room(self) -> None:
        while _free(self._folder) < ROOM:
            time.sleep(LOOK_S)
        self._end(os.EX_IOERR)


def guard(log: Log) -> None:
    """Every way in which milvus-lite writes to its log, or removes one."""
    for name in ("write_insert", "write_delete", "close_and_delete"):
        setattr(WAL, name, log.guarded(getattr(WAL, name)))
    collection.execute_flush = log.guarded(collection.execute_flush)


def _free(folder: Path) -> int:
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize


if __name__ == "__main__":
    guard(Log(Path(sys.argv[sys.argv.index("--data-dir") + 1])))
    sys.exit(main())
