"""milvus-lite on a full disk: confirmed rows are there after a restart."""

import errno
import os
import resource
import threading
from pathlib import Path

import psutil
import pytest

from clipfleet.common.store import StoreUnavailable
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded.milvus_lite import Log
from support import services
from support.stores import a_collection, a_record


def process_on(folder: Path) -> psutil.Process:
    (process,) = (p for p in psutil.Process().children() if str(folder) in " ".join(p.cmdline()))
    return process


def test_what_was_confirmed_before_a_write_failed_is_there_after_the_restart(
    tmp_path: Path,
) -> None:
    """A limit of the file size stands for a full disk: half of the second write fits."""
    collection, records = a_collection(), [a_record(f"{n}", n) for n in range(1_050)]
    with services.milvus_lite(tmp_path) as uri:
        store = MilvusStore(uri)
        store.create(collection)
        store.upsert(collection, records[:50])
        (log,) = (tmp_path / "data").rglob("wal_data_*.arrow")
        process = process_on(tmp_path)
        limit = log.stat().st_size + 50_000
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(StoreUnavailable):
            store.upsert(collection, records[50:])
        process.wait(30)
    with services.milvus_lite(tmp_path) as uri:
        assert MilvusStore(uri).count(collection) == 50


def test_after_a_write_that_failed_none_is_tried_and_the_process_ends(tmp_path: Path) -> None:
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    tried: list[int] = []

    def write(number: int) -> int:
        tried.append(number)
        if number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return number

    guarded = Log(tmp_path, end).guarded(write)
    assert guarded(0) == 0
    for number in (1, 2, 3):
        with pytest.raises(OSError, match="No space left"):
            guarded(number)
    assert tried == [0, 1]
    assert ended.wait(10)
    assert codes == [os.EX_IOERR]
