"""Reading and preparing of a chunk's images, on threads and in feeders."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol
from urllib.parse import urlsplit

from clipfleet.common.collection import Collection, field_problem, image_problem
from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import Cancellation
from clipfleet.common.identity import BYTES_DIGITS, details_hash
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.ledger import Item, Job
from clipfleet.common.process.logs import in_context
from clipfleet.common.settings import Settings
from clipfleet.common.store import Fingerprint
from clipfleet.workers.ingest.feeders import Feeders
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.ingest.prepare import (
    DetailsChanged,
    Failed,
    Prepared,
    Request,
    Unchanged,
)
from clipfleet.workers.metrics import StageTimings
from clipfleet.workers.storage.items import read_item
from clipfleet.workers.storage.locations import Storage, is_local

STORED = "stored:"  # begins the `read` of an image that was not sent; its content hash follows
CHANGED_SINCE = (
    "the file was not sent, because the collection had the image, which was changed or deleted "
    "since; upload it again"
)


class Parts(Protocol):
    """The parts of the worker that `Reading` uses.

    Attributes:
        settings: the limits of fetches and metadata.
        threads: read blobs.
        fetches: reads remote images.
        feeders: read local files and prepare images.
        storage: opens the locations of images.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def threads(self) -> ThreadPoolExecutor: ...

    @property
    def fetches(self) -> FetchPool: ...

    @property
    def feeders(self) -> Feeders: ...

    @property
    def storage(self) -> Storage: ...


@dataclass(frozen=True)
class Ready:
    """An image that is ready for the model.

    Attributes:
        pk: the primary key in the store.
        prepared: its hash, sizes and thumbnail.
        pixels: the input of the embedder.
        timings: the time that reading and decoding took.
    """

    item: Item
    pk: str
    prepared: Prepared
    pixels: Pixels
    timings: StageTimings

    def metadata(self, collection: Collection, limit: int) -> dict[str, Any]:
        """The metadata of the image, and of its EXIF what fits beside it into the collection.

        Args:
            limit: the size of the metadata as JSON at most, bytes.
        """
        return with_exif(self.item, self.prepared.exif, collection, limit)


def with_exif(
    item: Item, exif: Mapping[str, Any], collection: Collection, limit: int
) -> dict[str, Any]:
    """The metadata of an item, and of EXIF what fits beside it into the collection.

    Args:
        exif: the fields of its EXIF.
        limit: the size of the metadata as JSON at most, bytes.
    """
    if not exif:
        return item.metadata
    declared = collection.fields
    fields: dict[str, Any] = {
        name: value
        for name, value in exif.items()
        if name not in declared or not field_problem(name, value, declared[name])
    }
    fields |= {
        name: value
        for name, value in item.metadata.items()
        if value is not None or name not in fields
    }
    problem = image_problem(collection, item.id, item.uri, item.label, fields, limit)
    return item.metadata if problem else fields


@dataclass
class UnderWay:
    """An image that is being prepared.

    Attributes:
        pk: the primary key in the store.
        began: when a thread began to fetch it, in monotonic seconds; None while it waits.
        result: the prepared image, or Failed, Unchanged, DetailsChanged or Interrupted.
    """

    pk: str
    item: Item
    timings: StageTimings = field(default_factory=StageTimings)
    began: float | None = None
    result: "Future[tuple[Prepared, Pixels]]" = field(init=False)

    @property
    def ready(self) -> Ready:
        """The prepared image; raises what `result` raises."""
        prepared, pixels = self.result.result()
        return Ready(self.item, self.pk, prepared, pixels, self.timings)


@dataclass(frozen=True)
class Terms:
    """What all images of a chunk have in common.

    Attributes:
        known: fingerprints of stored images, by primary key.
        retry_while_unavailable: repeats a call while a service is unavailable.
    """

    job: Job
    collection: Collection
    known: Mapping[str, Fingerprint]
    retry_while_unavailable: Callable[[Callable[[], Any]], Any]

    def unchanged_hash(self, pk: str) -> str:
        """The content hash of an image that is not embedded again if it has these bytes; "": none.

        An image that this job stored, in an earlier attempt, is never embedded again.
        """
        known = self.known.get(pk)
        is_kept = known and (self.is_ours(pk) or self.job.new.on_existing == "skip")
        return known.content_hash if known and is_kept else ""

    def replaces(self, pk: str, content_hash: str) -> bool:
        """Whether an image with this hash takes the place of one with other content."""
        known = self.known.get(pk)
        return known is not None and not self.is_ours(pk) and known.content_hash != content_hash

    def is_ours(self, pk: str) -> bool:
        """Whether this job stored the image, in an earlier attempt."""
        known = self.known.get(pk)
        return known is not None and known.job_id == self.job.id


class Reading:
    """Prepares images; they are begun in any order and taken as they become ready.

    Feeders read local files and prepare all images. Threads read blobs, and the fetch pool reads
    remote images; these threads then wait for a feeder. So no more files are in memory than there
    are threads and feeders, and fewer if they are large. The images of the chunk that began first
    are prepared first: while it is embedded and written, the next one is prepared.

    Attributes:
        begun_at: when the reads of remote images began, in monotonic seconds.
        on_fetched: called before a remote image is decoded.
    """

    def __init__(self, parts: Parts, terms: Terms) -> None:
        self._parts, self._terms = parts, terms
        self._owner = terms.job.owner
        self._storage = parts.storage.within(terms.job.new.grant)
        self._priority = time.monotonic()
        self._cancellation = Cancellation(self._owner)
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
        if problem := self._problem(item):
            under.result = Future()
            under.result.set_exception(Failed("list", problem))
        elif item.read.startswith(STORED):
            under.result = Future()
            under.result.set_exception(self._stored(under))
        elif item.is_remote:
            self._begin_remote(under)
        elif is_local(item.place):
            under.result = self._submit(under, None)
        else:
            under.result = self._parts.threads.submit(in_context(self._read), under)
        under.result.add_done_callback(lambda _: self._ready.put(under))

    def _problem(self, item: Item) -> str | None:
        limit = self._parts.settings.limits.metadata_bytes
        return image_problem(
            self._terms.collection, item.id, item.uri, item.label, item.metadata, limit
        )

    def _stored(self, under: UnderWay) -> Failed | Unchanged | DetailsChanged:
        """What becomes of an image that a client did not send, because the collection had it.

        An earlier attempt of this job may have stored its new details.
        """
        known, item = self._terms.known.get(under.pk), under.item
        hash_then = item.read.removeprefix(STORED)
        hash_now = hash_then[:BYTES_DIGITS] + details_hash(item.label, item.metadata)
        if known and known.content_hash == hash_now:
            return Unchanged()
        if known and known.content_hash == hash_then:
            return DetailsChanged(hash_now, None)
        return Failed("read", CHANGED_SINCE)

    def _begin_remote(self, under: UnderWay) -> None:
        server, limit, refusal = self._server(under.item.place)
        if refusal:  # without a thread, since many images may be refused
            self.begun_at.append(time.monotonic())
            under.result = Future()
            under.result.set_exception(Failed("read", refusal))
        else:
            fetch = in_context(lambda: self._fetched(under))
            under.result = self._parts.fetches.submit(self._owner, server, fetch, limit)

    def _server(self, location: str) -> tuple[str, int, str]:
        """(host or bucket of a location, its limit of reads at once, why it is not asked now)."""
        kind, _, url = location.partition(":")
        fetch, name, refusal = self._parts.settings.fetch, url, ""
        with suppress(ValueError):  # not a valid URL; the fetcher reports that
            name, refusal = urlsplit(url).hostname or url, self._parts.storage.refusal(location)
        limit = fetch.per_host if kind == "url" else fetch.per_bucket
        return f"{kind}:{name}", limit, refusal

    def _read(self, under: UnderWay) -> tuple[Prepared, Pixels]:
        return self._submit(under, self._data(under)).result()

    def _fetched(self, under: UnderWay) -> tuple[Prepared, Pixels]:
        under.began = time.monotonic()
        self.begun_at.append(under.began)
        with self._parts.fetches.memory.share():
            with self._cancellation.scope():
                data = self._data(under)
            self.on_fetched()
            return self._submit(under, data).result()

    def _data(self, under: UnderWay) -> bytes:
        read = under.item.read
        with under.timings.timed("fetch" if under.item.is_remote else "blob"):
            try:
                data: bytes = self._terms.retry_while_unavailable(
                    lambda: read_item(read, self._storage)
                )
            except Unreadable as error:
                raise Failed("read", str(error)) from error
        return data

    def _submit(self, under: UnderWay, data: bytes | None) -> "Future[tuple[Prepared, Pixels]]":
        """Give an image to the feeders; `data` are its bytes if they are read already."""
        item, job = under.item, self._terms.job
        request = Request(
            read=item.read,
            data=data,
            scope=f"{job.id}/{self._priority}",
            grant=job.new.grant,
            details=details_hash(item.label, item.metadata, item.uri),
            model=self._terms.collection.model,
            known=self._terms.unchanged_hash(under.pk),
            exif=job.new.exif,
            original=item.stored.content_hash if item.stored else "",
            original_model=str(job.new.source.get("model", "")) if item.stored else "",
        )
        return self._parts.feeders.submit(request, under.timings, self._priority)

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
