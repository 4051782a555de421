"""The images of a chunk on their way to the model: each is read and decoded on threads."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol
from urllib.parse import urlsplit

from clipfleet.common.fetch import Cancellation
from clipfleet.common.ledger import Item
from clipfleet.common.process.logs import in_context
from clipfleet.common.settings import Settings
from clipfleet.common.store import Fingerprint
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.ingest.prepare import Failed, Prepare, Ready
from clipfleet.workers.metrics import StageTimings
from clipfleet.workers.storage.locations import Storage


class Parts(Protocol):
    """What it needs of the worker's."""

    @property
    def settings(self) -> Settings: ...

    @property
    def threads(self) -> ThreadPoolExecutor: ...

    @property
    def fetches(self) -> FetchPool: ...

    @property
    def places(self) -> Storage: ...


@dataclass
class UnderWay:
    """An image under way. `began`: when a thread began to read it, by the monotonic clock."""

    pk: str
    item: Item
    spent: StageTimings = field(default_factory=StageTimings)
    began: float | None = None
    result: "Future[Ready]" = field(default_factory=Future)


class Reading:
    """Images that are begun in any order and taken as they are ready.

    What lies on this machine or in our own blob store is read by the threads that decode. What
    comes from others' servers is read by the fetch pool, whose threads then wait for a decoding
    one: so no more images are in memory than there are threads, and of large ones fewer.
    """

    def __init__(
        self, parts: Parts, job_id: str, prepare: Prepare, known: Mapping[str, Fingerprint]
    ) -> None:
        self._parts, self._job_id = parts, job_id
        self._prepare, self._known = prepare, known
        self._cancellation = Cancellation()
        self._under_way: dict[str, UnderWay] = {}
        self._ready: SimpleQueue[UnderWay] = SimpleQueue()
        self.begun_at: list[float] = []  # of remote images, by the monotonic clock
        self.on_fetched: Callable[[], None] = lambda: None  # before a remote image is decoded

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    @property
    def items(self) -> dict[str, Item]:
        """Those under way, by primary key."""
        return {pk: under.item for pk, under in self._under_way.items()}

    def begin(self, pk: str, item: Item) -> None:
        under = self._under_way[pk] = UnderWay(pk, item)
        if item.is_remote:
            self._begin_remote(under)
        else:
            under.result = self._parts.threads.submit(in_context(self._read), under)
        under.result.add_done_callback(lambda _: self._ready.put(under))

    def _begin_remote(self, under: UnderWay) -> None:
        server, limit, refusal = self._server(under.item.place)
        if refusal:  # without a thread: of such images there may be many
            self.begun_at.append(time.monotonic())
            under.result.set_exception(Failed("read", refusal))
        else:
            fetch = in_context(lambda: self._fetched(under))
            under.result = self._parts.fetches.submit(self._job_id, server, fetch, limit)

    def _server(self, place: str) -> tuple[str, int, str]:
        """The host or bucket that a place is at, how many reads at once it is to get, and why it is
        not asked just now."""
        kind, _, url = place.partition(":")
        fetch, name, refusal = self._parts.settings.fetch, url, ""
        with suppress(ValueError):  # no valid URL: the fetcher will say so
            name, refusal = urlsplit(url).hostname or url, self._parts.places.refusal(place)
        limit = fetch.per_host if kind == "url" else fetch.per_bucket
        return f"{kind}:{name}", limit, refusal

    def _read(self, under: UnderWay) -> Ready:
        under.began = time.monotonic()
        data = self._prepare.read(under.item, under.spent)
        return self._finish(under, data)

    def _fetched(self, under: UnderWay) -> Ready:
        under.began = time.monotonic()
        self.begun_at.append(under.began)
        with self._parts.fetches.memory.share():
            with self._cancellation.scope():
                data = self._prepare.read(under.item, under.spent)
            self.on_fetched()
            return self._parts.threads.submit(in_context(self._finish), under, data).result()

    def _finish(self, under: UnderWay, data: bytes) -> Ready:
        known = self._known.get(under.pk)
        return self._prepare.finish(under.pk, under.item, data, known, under.spent)

    def take(self, seconds: float) -> list[UnderWay]:
        """Those that are ready, once one is; none after so many seconds."""
        taken: list[UnderWay] = []
        try:
            taken.append(self._ready.get(timeout=seconds))
            while True:
                taken.append(self._ready.get_nowait())
        except Empty:
            pass
        taken = [under for under in taken if self._under_way.pop(under.pk, None)]
        return [under for under in taken if not under.result.cancelled()]

    def refuse_waiting(self) -> None:
        """Those that wait for a turn at a server that is left alone by now fail here, since each of
        them would cost its thread some tenths of a millisecond."""
        for under in list(self._under_way.values()):
            if not under.item.is_remote or under.began is not None:
                continue
            refusal = self._server(under.item.place)[2]
            if refusal and under.result.cancel():
                under.result = Future()
                under.result.set_exception(Failed("read", refusal))

    def cancel_waiting(self) -> None:
        """Those that wait for their turn at others' servers do not get it any more."""
        for under in list(self._under_way.values()):
            if under.item.is_remote and under.result.cancel():
                del self._under_way[under.pk]

    def cancel(self) -> None:
        """Nobody takes the rest: connections are closed, and no more images are begun."""
        self._cancellation.cancel()
        for under in self._under_way.values():
            under.result.cancel()

    def waits_for_others(self, longest_s: float) -> bool:
        """Whether all that is under way waits for others' servers, none for longer than that."""
        now = time.monotonic()
        return all(
            under.item.is_remote and (under.began is None or now - under.began < longest_s)
            for under in list(self._under_way.values())
        )
