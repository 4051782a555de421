"""Runs milvus-lite with changes for durability, cheap rows, and short turns for its threads.

    python -m clipfleet.embedded.milvus_lite server ...

Confirmed writes survive a power cut. milvus-lite 3.2 leaves its log and its data files to the
operating system, which writes them to disk some 30 s later, and it removes the log of rows whose
data file is not on disk yet. Here each batch of the log and each data file is on disk before
milvus-lite continues. An index file that cannot be read is built again, because milvus-lite would
not load its collection.

A log that could not be written is not written to again. When its disk is full, milvus-lite 3.2
leaves half a batch in its log and appends behind it as soon as there is space. At the next start it
reads up to the broken batch, and everything confirmed since is lost. After a flush that failed, the
next flush removes the log of the failed one. So the first write that fails is the last: searches
continue, writes are refused, and the process ends once there is space. The next process reads
everything that was confirmed.

A collection is opened once, and has one writer at a time. milvus-lite 3.2 has no locks for either.
Two first requests at once, as after a restart with two chunks in hand, opened a collection twice,
and what one of the two took was lost: a chunk of eight images in most restarts. Rows of a request
that arrives while another one begins a new log go into the memory of one log and into the file of
the other.
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
from milvus_lite.db import MilvusLite
from milvus_lite.engine import collection, compaction, flush
from milvus_lite.engine.collection import Collection
from milvus_lite.storage.segment import Segment
from milvus_lite.storage.wal import WAL

from clipfleet.common.process.interpreter import prepare_interpreter
from clipfleet.embedded.bulk_writes import make_bulk_writes_cheap
from clipfleet.embedded.cheap_reads import make_reads_cheap
from clipfleet.embedded.cheap_rows import make_rows_cheap
from clipfleet.embedded.cheap_searches import make_searches_cheap

MIN_FREE_BYTES = 16_000_000  # before another start is worthwhile
POLL_S = 0.5


class Log:
    """Refuses writes to the log after one has failed, and ends the process once there is space.

    Args:
        folder: the data folder.
        end: ends the process with an exit code.
    """

    def __init__(self, folder: Path, end: Callable[[int], Any] = os._exit) -> None:
        self._folder, self._end = folder, end
        self._broken: OSError | None = None
        self._breaking = threading.Lock()

    def guarded(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the check before it. OSError after a failed write."""

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
                print(f"the log cannot be written: {error}; writes are refused", file=sys.stderr)
                threading.Thread(target=self._end_when_there_is_room, daemon=True).start()

    def _end_when_there_is_room(self) -> None:
        while _free(self._folder) < MIN_FREE_BYTES:
            time.sleep(POLL_S)
        self._end(os.EX_IOERR)


def guard(log: Log) -> None:
    """Guard every function of milvus-lite that writes to its log or removes it."""
    for name in ("write_insert", "write_delete", "close_and_delete"):
        setattr(WAL, name, log.guarded(getattr(WAL, name)))
    collection.execute_flush = log.guarded(collection.execute_flush)


def make_requests_take_turns() -> None:
    """Let no two requests open or drop collections at once, or write to one, or close it."""
    for name in ("get_collection", "create_collection", "drop_collection"):
        setattr(MilvusLite, name, _one_at_a_time(getattr(MilvusLite, name)))
    for name in ("insert", "upsert", "delete", "flush", "close"):
        setattr(Collection, name, _one_at_a_time(getattr(Collection, name)))


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    def locked(self: Any, *args: Any, **named: Any) -> Any:
        # Reentrant: `upsert` calls `insert`. `setdefault` of a dictionary is atomic.
        with self.__dict__.setdefault("_turn", threading.RLock()):
            return method(self, *args, **named)

    return locked


def make_durable() -> None:
    """Write every file to disk at once, and rebuild index files that cannot be read."""
    WAL.__init__ = partialmethod(WAL.__init__, sync_mode="batch")
    for module in (flush, compaction):
        module.write_data_file = _on_disk(module.write_data_file)
    flush.write_delta_file = _on_disk(flush.write_delta_file)
    for name in ("build_or_load_index", "build_or_load_scalar_index"):
        setattr(Segment, name, _rebuilding(getattr(Segment, name)))


def _on_disk(write: Callable[..., str]) -> Callable[..., str]:
    def written(table: Any, folder: str, *args: Any, **named: Any) -> str:
        name = write(table, folder, *args, **named)
        path = Path(folder, name)
        for synced in (path, path.parent):
            number = os.open(synced, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        return name

    return written


def _rebuilding(build: Callable[..., None]) -> Callable[..., None]:
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
            print(f"{path} cannot be read; it is built again", file=sys.stderr)
            path.unlink()
            build(segment, spec, folder, *args)

    return built


def _free(folder: Path) -> int:
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize


if __name__ == "__main__":
    make_bulk_writes_cheap()
    make_searches_cheap()
    make_rows_cheap()
    make_reads_cheap()
    make_durable()
    make_requests_take_turns()
    guard(Log(Path(sys.argv[sys.argv.index("--data-dir") + 1])))
    prepare_interpreter()
    sys.exit(main())
