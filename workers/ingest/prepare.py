"""Prepares one image for the model, on any thread: read, compare, decode, thumbnail, resize."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from clipfleet.common.collection import Collection, image_problem
from clipfleet.common.errors import BadImage, Unreadable
from clipfleet.common.identity import content_hash
from clipfleet.common.imaging.decode import Decoded, decode
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.imaging.thumbnails import thumbnail
from clipfleet.common.ledger import FailureStage, Item, Job
from clipfleet.common.settings import Settings
from clipfleet.common.store import Fingerprint
from clipfleet.workers.metrics import StageTimings
from clipfleet.workers.storage.items import read_item
from clipfleet.workers.storage.locations import Storage


@dataclass(frozen=True)
class Ready:
    """An image that is ready for the model.

    Attributes:
        pk: the primary key in the store.
        content_hash: the hash of the image, its label and metadata, and the model.
        file_bytes: the size of the file.
        width: pixels, before resizing.
        height: pixels, before resizing.
        pixels: the input of the embedder.
        thumbnail: the bytes of its thumbnail; empty for none.
        timings: the time that reading and decoding took.
    """

    item: Item
    pk: str
    content_hash: str
    file_bytes: int
    width: int
    height: int
    pixels: Pixels
    thumbnail: bytes
    timings: StageTimings


class Failed(Exception):
    """One item fails; the others of its chunk continue.

    Attributes:
        stage: the stage that failed.
        reason: the reason that the caller sees.
    """

    def __init__(self, stage: FailureStage, reason: str) -> None:
        super().__init__(reason)
        self.stage: FailureStage = stage
        self.reason = reason


class Unchanged(Exception):
    """The store holds the same image already.

    Attributes:
        ours: whether this job stored it, in an earlier attempt.
    """

    def __init__(self, *, ours: bool) -> None:
        super().__init__()
        self.ours = ours


class Parts(Protocol):
    """The parts of the worker that `Prepare` uses.

    Attributes:
        embedder: prepares the pixels.
        settings: the limits of images and metadata, and the size of thumbnails.
        storage: opens the locations of images.
    """

    @property
    def embedder(self) -> Embedder: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def storage(self) -> Storage: ...


class Prepare:
    """Prepares the images of a chunk: `read`, then `finish`.

    Args:
        retry_while_unavailable: repeats a call while a service is unavailable.
    """

    def __init__(
        self,
        parts: Parts,
        job: Job,
        collection: Collection,
        retry_while_unavailable: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._parts, self._job, self._collection = parts, job, collection
        self._retry_while_unavailable = retry_while_unavailable
        self._storage = parts.storage.within(job.new.grant)

    def read(self, item: Item, timings: StageTimings) -> bytes:
        """Read the bytes of an image, and add the time to `timings`.

        Raises:
            Failed: the item is not valid, or its bytes cannot be read.
        """
        self._check(item)
        with timings.timed("read"):
            return self._read(item)

    def finish(
        self, pk: str, item: Item, data: bytes, known: Fingerprint | None, timings: StageTimings
    ) -> Ready:
        """Decode an image, make its thumbnail and resize it; adds the time to `timings`.

        Args:
            pk: the primary key in the store.
            data: the bytes of the image.
            known: the fingerprint of the stored image with this key, if there is one.

        Raises:
            Failed: the image cannot be decoded.
            Unchanged: the store holds the same image already.
        """
        fields = {"label": item.label, "metadata": item.metadata}
        digest = content_hash(data, fields, self._collection.model)
        if known and known.content_hash == digest:
            ours = known.job_id == self._job.id
            if ours or self._job.new.on_existing == "skip":
                raise Unchanged(ours=ours)
        with timings.timed("decode"):
            decoded = self._decode(data)
            pixels = self._parts.embedder.pixels(decoded.image)
            edge = self._parts.settings.thumbnail_edge
            small = thumbnail(decoded, edge) if edge else b""
        size = (len(data), decoded.width, decoded.height)
        return Ready(item, pk, digest, *size, pixels, small, timings)

    def _check(self, item: Item) -> None:
        limit = self._parts.settings.limits.metadata_bytes
        problem = image_problem(
            self._collection, item.id, item.uri, item.label, item.metadata, limit
        )
        if problem:
            raise Failed("list", problem)

    def _read(self, item: Item) -> bytes:
        try:
            data: bytes = self._retry_while_unavailable(lambda: read_item(item, self._storage))
        except Unreadable as error:
            raise Failed("read", str(error)) from error
        return data

    def _decode(self, data: bytes) -> Decoded:
        edge = self._parts.embedder.preprocess.edge()
        try:
            return decode(data, self._parts.settings.limits, edge=edge)
        except BadImage as error:
            raise Failed("decode", error.detail) from error
