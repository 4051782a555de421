"""milvus-lite, but for two things: what it confirmed outlives a power cut, and a log that could not
be written is never written to again.

`python -m clipfleet.embedded.milvus_lite server ...`.

milvus-lite 3.2 leaves its log and its data files to the operating system, which writes them to disk
some 30 s later, and removes the log of rows whose data file is not on disk yet. Here each batch of
the log and each data file is on disk before milvus-lite goes on. An index that cannot be read is
built anew: milvus-lite would not load its collection.

When its disk is full, milvus-lite 3.2 leaves
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
from functools import partialmethod
from pathlib import Path
from typing import Any

from milvus_lite.cmdline import main
from milvus_lite.engine import collection, compaction, flush
from milvus_lite.storage.segment import Segment
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


def make_durable() -> None:
    """Every file that is to outlive a power cut."""
    WAL.__init__ = partialmethod(WAL.__init__, sync_mode="batch")
    for module in (flush, compaction):
        module.write_data_file = _on_disk(module.write_data_file)
    flush.write_delta_file = _on_disk(flush.write_delta_file)
    for name in ("build_or_load_index", "build_or_load_scalar_index"):
        setattr(Segment, name, _built_anew(getattr(Segment, name)))


def _on_disk(write: Callable[..., str]) -> Callable[..., str]:
    def written(table: Any, folder: str, *args: Any, **named: Any) -> str:
        name = write(table, folder, *args, **named)
        path = Path(folder, name)
        for each in (path, path.parent):
            number = os.open(each, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        return name

    return written


def _built_anew(build: Callable[..., None]) -> Callable[..., None]:
    def built(segment: Any, spec: Any, folder: str, *args: Any) -> None:
        try:
            build(segment, spec, folder, *args)
        except Exception:
            scalar = bool(args)
            path = Path(
                segment.index_file_path(folder, spec.index_type, spec.field_name, scalar=scalar)
            )
            if not path.exists():
                raise
            print(f"{path} cannot be read; it is built anew", file=sys.stderr)
            path.unlink()
            build(segment, spec, folder, *args)

    return built


def _free(folder: Path) -> int:
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize


if __name__ == "__main__":
    make_durable()
    guard(Log(Path(sys.argv[sys.argv.index("--data-dir") + 1])))
    sys.exit(main())
