"""One image on its way to the model, on any thread: read, compare, decode, thumbnail, resize."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection, image_problem
from clipfleet.common.errors import BadImage, Unreadable
from clipfleet.common.identity import content_hash
from clipfleet.common.imaging.decode import Decoded, decode
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.imaging.thumbnails import thumbnail, thumbnail_key
from clipfleet.common.ledger import Item, Job, Stage
from clipfleet.common.settings import Settings
from clipfleet.common.store import Fingerprint
from clipfleet.workers.metrics import StageTimings
from clipfleet.workers.storage.items import read_item
from clipfleet.workers.storage.locations import Storage


@dataclass(frozen=True)
class Ready:
    item: Item
    pk: str
    content_hash: str
    bytes: int
    width: int
    height: int
    pixels: Pixels
    spent: StageTimings


class Failed(Exception):
    """One item fails, alone."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage: Stage = stage
        self.reason = reason


class Unchanged(Exception):
    """The store has this very image already. `ours`: this job wrote it, before a redelivery."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__()
        self.ours = ours


class Parts(Protocol):
    """What it needs of the worker's."""

    @property
    def embedder(self) -> Embedder: ...

    @property
    def blobs(self) -> Blobs: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def places(self) -> Storage: ...


class Prepare:
    """`read`, then `finish`. `retry_while_unavailable` repeats a call as long as a part is away."""

    def __init__(
        self,
        parts: Parts,
        job: Job,
        collection: Collection,
        retry_while_unavailable: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._parts, self._job, self._collection = parts, job, collection
        self._retry_while_unavailable = retry_while_unavailable
        self._places = parts.places.within(job.new.grant)

    def read(self, item: Item, spent: StageTimings) -> bytes:
        """The bytes of the image, or Failed; what it took is added to `spent`."""
        self._check(item)
        with spent.timed("read"):
            return self._read(item)

    def finish(
        self, pk: str, item: Item, data: bytes, known: Fingerprint | None, spent: StageTimings
    ) -> Ready:
        """Failed or Unchanged where it ends early."""
        said = {"label": item.label, "metadata": item.metadata}
        digest = content_hash(data, said, self._collection.model)
        if known and known.content_hash == digest:
            ours = known.job_id == self._job.id
            if ours or self._job.new.on_existing == "skip":
                raise Unchanged(ours=ours)
        with spent.timed("decode"):
            seen = self._decode(data)
            pixels = self._parts.embedder.pixels(seen.image)
            self._write_thumbnail(pk, seen)
        return Ready(item, pk, digest, len(data), seen.width, seen.height, pixels, spent)

    def _check(self, item: Item) -> None:
        most = self._parts.settings.limits.metadata_bytes
        problem = image_problem(
            self._collection, item.id, item.uri, item.label, item.metadata, most
        )
        if problem:
            raise Failed("list", problem)

    def _read(self, item: Item) -> bytes:
        try:
            data: bytes = self._retry_while_unavailable(lambda: read_item(item, self._places))
        except Unreadable as error:
            raise Failed("read", str(error)) from error
        return data

    def _decode(self, data: bytes) -> Decoded:
        edge = self._parts.embedder.preprocess.edge()
        try:
            return decode(data, self._parts.settings.limits, edge=edge)
        except BadImage as error:
            raise Failed("decode", error.detail) from error

    def _write_thumbnail(self, pk: str, seen: Decoded) -> None:
        if edge := self._parts.settings.thumbnail_edge:
            key, small = thumbnail_key(self._collection, pk), thumbnail(seen.image, edge)
            self._retry_while_unavailable(lambda: self._parts.blobs.put(key, io.BytesIO(small)))
