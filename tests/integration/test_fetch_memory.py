"""Memory that large files take while they are fetched at the same time."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import pytest

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import FREE, Cancellation, Fetcher, Memory
from clipfleet.common.settings import Settings
from support.fetching import fetcher
from support.webserver import Page, PageRequest, body, site
from support.worker_harness import storage_of

LARGE = 2 * FREE
LIMIT = 5 * FREE


def without_length(request: PageRequest) -> None:
    request.begin()
    request.pour(iter([b"x" * LARGE]))


PAGES: dict[str, Page] = {
    "/large": body(b"x" * LARGE),
    "/small": body(b"x" * 1_000),
    "/unsaid": without_length,
}


class Fetching:
    """Fetches in threads; `keep` holds its part of the memory until `over` is set."""

    def __init__(self, fetch: Fetcher, memory: Memory, url: str, pool: ThreadPoolExecutor) -> None:
        self._fetch, self._memory, self._url, self._pool = fetch, memory, url, pool
        self.over = threading.Event()
        self.cancellation = Cancellation()

    def keep(self, path: str) -> Future[int]:
        """Begin a fetch and wait until the whole file has arrived."""
        fetched = threading.Event()
        future = self._pool.submit(self._keep, path, fetched)
        assert fetched.wait(30)
        return future

    def _keep(self, path: str, fetched: threading.Event) -> int:
        with self._memory.share():
            data = self._fetch.get(self._url + path, LIMIT)
            fetched.set()
            self.over.wait(60)
        return len(data)

    def get(self, path: str) -> Future[int]:
        return self._pool.submit(self._get, path)

    def _get(self, path: str) -> int:
        with self._memory.share(), self.cancellation.scope():
            return len(self._fetch.get(self._url + path, LIMIT))


@contextmanager
def fetching(memory_bytes: int) -> Iterator[Fetching]:
    memory = Memory(memory_bytes)
    with site(PAGES) as there, fetcher(total_s=0.5) as fetch, ThreadPoolExecutor(8) as pool:
        files = Fetching(fetch, memory, there.url, pool)
        try:
            yield files
        finally:
            files.over.set()


@pytest.mark.parametrize("second", ["/large", "/unsaid"])
def test_a_large_file_waits_until_another_is_worked_on_and_loses_no_time_by_it(second: str) -> None:
    with fetching(LARGE + FREE) as files:
        first = files.keep("/large")
        other = files.get(second)
        assert not wait([other], 1.0).done, "longer than it is given in all"
        files.over.set()
        assert (first.result(30), other.result(30)) == (LARGE, LARGE)


def test_small_files_do_not_wait() -> None:
    with fetching(LARGE) as files:
        files.keep("/large")
        assert files.get("/small").result(30) == 1_000


def test_as_many_as_there_is_room_for_are_fetched_at_once() -> None:
    with fetching(2 * LARGE) as files:
        files.keep("/large")
        assert files.get("/large").result(30) == LARGE


def test_a_file_larger_than_the_memory_is_fetched_alone() -> None:
    with fetching(FREE) as files:
        assert files.get("/large").result(30) == LARGE
        files.keep("/unsaid")


def test_a_file_that_fails_gives_its_part_back() -> None:
    with fetching(LARGE) as files:
        for _ in range(3):
            with suppress(Unreadable):
                files._fetch.get(files._url + "/large", LARGE - 1)
        assert files.get("/large").result(30) == LARGE


def test_who_waits_for_memory_can_be_cancelled() -> None:
    with fetching(LARGE) as files:
        files.keep("/large")
        other = files.get("/large")
        files.cancellation.cancel()
        assert isinstance(other.exception(30), Unreadable)


@pytest.mark.parametrize("size", [0, FREE - 1, FREE, FREE + 1, LARGE, LIMIT, LIMIT + 1, LIMIT + 9])
def test_an_object_of_a_bucket_is_read_whole_or_to_one_byte_over_the_limit(size: int) -> None:
    storage = storage_of(Settings())
    data = bytes(n % 251 for n in range(1_000)) * (size // 1_000 + 1)
    fs = storage.bucket("memory://bucket/a")
    fs.pipe_file("bucket/a", data[:size])
    assert storage.read("fs:memory://bucket/a", LIMIT) == data[: min(size, LIMIT + 1)]
    fs.rm_file("bucket/a")
