"""A pool of many threads that read images over the network, where they mostly wait.

A ThreadPoolExecutor does not fit: a call that waits for its turn at a server must not occupy a
thread, and a silent server must delay neither other jobs nor the end of the interpreter.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from clipfleet.common.fetch import FairSlots, Memory
from clipfleet.common.settings import Fetch
from clipfleet.common.shares import Owner

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V", bound=Sized)

IDLE_S = 10.0  # after this long without a call, a thread ends


@dataclass(frozen=True)
class _Call:
    owner: Owner
    server: str
    limit: int
    run: Callable[[], Any]
    result: "Future[Any]" = field(default_factory=Future)


class FetchPool:
    """Runs calls on daemon threads, which are started as needed.

    API keys take turns, so do the jobs of one key, and so do the servers of one job. Jobs whose
    servers are all silent leave threads for other jobs, and keys of such jobs for other keys
    (`FairSlots`).

    Args:
        threads: the number of calls that run at once.
        per_server: the default number of calls that run at once for one server.
        memory_bytes: the memory that large images may use together.
    """

    def __init__(
        self, threads: int = 256, per_server: int = 8, memory_bytes: int = 512_000_000
    ) -> None:
        self.memory = Memory(memory_bytes)
        self._per_server = per_server
        self._lock = threading.Lock()
        # By key, job and server; the next one is the first.
        self._waiting: dict[Owner, dict[Owner, dict[str, deque[_Call]]]] = {}
        self._begun: SimpleQueue[_Call] = SimpleQueue()
        self._slots = FairSlots(threads)  # of keys and jobs, including calls in `_begun`
        self._running_at: Counter[str] = Counter()  # by server, likewise
        self._count = self._alive = 0

    @property
    def threads(self) -> int:
        """The number of threads at present."""
        return self._alive

    def submit(
        self, owner: Owner, server: str, call: Callable[[], T], limit: int | None = None
    ) -> "Future[T]":
        """Queue a call; the future can be cancelled until the call begins.

        Args:
            owner: the key and the job that the call counts for.
            server: the host or bucket that the call reads from.
            limit: the number of calls that may run at once for this server.
        """
        entry = _Call(owner, server, limit or self._per_server, call)
        with self._lock:
            servers = self._waiting.setdefault(owner.group, {}).setdefault(owner, {})
            servers.setdefault(server, deque()).append(entry)
            self._begin()
        return entry.result

    def _begin(self) -> None:
        """Begin all calls that may run now, with a thread for each."""
        while self._slots.free and (entry := self._next()):
            self._count += 1
            self._slots.take(entry.owner)
            self._running_at[entry.server] += 1
            self._begun.put(entry)
            if self._count > self._alive:
                self._alive += 1
                threading.Thread(target=self._work, name="fetch", daemon=True).start()

    def _next(self) -> _Call | None:
        """The next call of the key, job and server that had their last turn longest ago."""
        for group, owners in self._waiting.items():
            if entry := self._next_of(owners):
                _last(self._waiting, group)
                return entry
        return None

    def _next_of(self, owners: dict[Owner, dict[str, deque[_Call]]]) -> _Call | None:
        for owner, servers in owners.items():
            if not self._slots.may_take(owner):
                continue
            for server, calls in servers.items():
                if self._running_at[server] < calls[0].limit:
                    entry = calls.popleft()
                    _last(servers, server)
                    _last(owners, owner)
                    return entry
        return None

    def _work(self) -> None:
        while True:
            try:
                entry = self._begun.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if self._count < self._alive:
                        self._alive -= 1
                        return
                continue
            if entry.result.set_running_or_notify_cancel():
                _run(entry)
            with self._lock:
                self._count -= 1
                self._slots.give_back(entry.owner)
                self._running_at[entry.server] -= 1
                if not self._running_at[entry.server]:
                    del self._running_at[entry.server]
                self._begin()


def fetch_pool(settings: Fetch) -> FetchPool:
    """The fetch pool that the settings describe."""
    return FetchPool(settings.concurrency, settings.per_host, settings.memory_bytes)


def _last(turns: dict[K, V], key: K) -> None:
    """Move a key to the end of the turns, or drop it if nothing waits under it."""
    value = turns.pop(key)
    if value:
        turns[key] = value


def _run(entry: _Call) -> None:
    try:
        entry.result.set_result(entry.run())
    except BaseException as error:
        entry.result.set_exception(error)
