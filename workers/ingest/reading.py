"""Reading and decoding of a chunk's images, on threads."""

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
    """The parts of the worker that `Reading` uses.

    Attributes:
        settings: the limits of fetches.
        threads: decode images, and read local files and blobs.
        fetches: reads remote images.
        storage: opens the locations of images.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def threads(self) -> ThreadPoolExecutor: ...

    @property
    def fetches(self) -> FetchPool: ...

    @property
    def storage(self) -> Storage: ...


@dataclass
class UnderWay:
    """An image that is being prepared.

    Attributes:
        pk: the primary key in the store.
        began: when a thread began to read it, in monotonic seconds; None while it waits.
        result: the prepared image, or Failed, Unchanged or Interrupted.
    """

    pk: str
    item: Item
    timings: StageTimings = field(default_factory=StageTimings)
    began: float | None = None
    result: "Future[Ready]" = field(default_factory=Future)


class Reading:
    """Prepares images on threads; they are begun in any order and taken as they become ready.

    The decoding threads read local files and blobs. The fetch pool reads remote images; its threads
    then wait for a decoding thread. So no more images are in memory than there are threads, and
    fewer if they are large.

    Args:
        known: fingerprints of stored images, by primary key.

    Attributes:
        begun_at: when the reads of remote images began, in monotonic seconds.
        on_fetched: called before a remote image is decoded.
    """

    def __init__(
        self, parts: Parts, job_id: str, prepare: Prepare, known: Mapping[str, Fingerprint]
    ) -> None:
        self._parts, self._job_id = parts, job_id
        self._prepare, self._known = prepare, known
        self._cancellation = Cancellation(job_id)
        self._under_way: dict[str, UnderWay] = {}
        self._ready: SimpleQueue[UnderWay] = SimpleQueue()
        self.begun_at: list[float] = []
        self.on_fetched: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        """The number of images under way."""
        return len(self._under_way)

    @property
    def items(self) -> dict[str, Item]:
        """The items under way, by primary key."""
        return {pk: under.item for pk, under in self._under_way.items()}

    def begin(self, pk: str, item: Item) -> None:
        """Begin to prepare an image."""
        under = self._under_way[pk] = UnderWay(pk, item)
        if item.is_remote:
            self._begin_remote(under)
        else:
            under.result = self._parts.threads.submit(in_context(self._read), under)
        under.result.add_done_callback(lambda _: self._ready.put(under))

    def _begin_remote(self, under: UnderWay) -> None:
        server, limit, refusal = self._server(under.item.place)
        if refusal:  # without a thread, since many images may be refused
            self.begun_at.append(time.monotonic())
            under.result.set_exception(Failed("read", refusal))
        else:
            fetch = in_context(lambda: self._fetched(under))
            under.result = self._parts.fetches.submit(self._job_id, server, fetch, limit)

    def _server(self, location: str) -> tuple[str, int, str]:
        """(host or bucket of a location, its limit of reads at once, why it is not asked now)."""
        kind, _, url = location.partition(":")
        fetch, name, refusal = self._parts.settings.fetch, url, ""
        with suppress(ValueError):  # not a valid URL; the fetcher reports that
            name, refusal = urlsplit(url).hostname or url, self._parts.storage.refusal(location)
        limit = fetch.per_host if kind == "url" else fetch.per_bucket
        return f"{kind}:{name}", limit, refusal

    def _read(self, under: UnderWay) -> Ready:
        under.began = time.monotonic()
        data = self._prepare.read(under.item, under.timings)
        return self._finish(under, data)

    def _fetched(self, under: UnderWay) -> Ready:
        under.began = time.monotonic()
        self.begun_at.append(under.began)
        with self._parts.fetches.memory.share():
            with self._cancellation.scope():
                data = self._prepare.read(under.item, under.timings)
            self.on_fetched()
            return self._parts.threads.submit(in_context(self._finish), under, data).result()

    def _finish(self, under: UnderWay, data: bytes) -> Ready:
        known = self._known.get(under.pk)
        return self._prepare.finish(under.pk, under.item, data, known, under.timings)

    def take(self, seconds: float) -> list[UnderWay]:
        """Take the images that are ready; waits up to `seconds` for the first one."""
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
        """Fail waiting images whose server is refused by now.

        Without this, each of them would cost a thread some tenths of a millisecond.
        """
        for under in list(self._under_way.values()):
            if not under.item.is_remote or under.began is not None:
                continue
            refusal = self._server(under.item.place)[2]
            if refusal and under.result.cancel():
                under.result = Future()
                under.result.set_exception(Failed("read", refusal))

    def cancel_waiting(self) -> None:
        """Cancel the remote images that wait for their turn at a server."""
        for under in list(self._under_way.values()):
            if under.item.is_remote and under.result.cancel():
                del self._under_way[under.pk]

    def cancel(self) -> None:
        """Cancel all images under way and close their connections."""
        self._cancellation.cancel()
        for under in self._under_way.values():
            under.result.cancel()

    def waits_for_others(self, longest_s: float) -> bool:
        """Whether all images under way are remote and none was begun more than `longest_s` ago."""
        now = time.monotonic()
        return all(
            under.item.is_remote and (under.began is None or now - under.began < longest_s)
            for under in list(self._under_way.values())
        )
