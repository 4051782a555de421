"""Prepares one image for the model, in a feeder: read, compare, decode, thumbnail, resize."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clipfleet.common.auth.source_access import SourceAccess
from clipfleet.common.errors import BadImage, Unreadable
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.identity import BYTES_DIGITS, bytes_hash, has_same_bytes
from clipfleet.common.imaging.decode import Decoded, decode, read_exif
from clipfleet.common.imaging.exif import exif_fields
from clipfleet.common.imaging.preprocess import Pixels, Preprocess
from clipfleet.common.imaging.thumbnails import thumbnail
from clipfleet.common.ledger import FailureStage
from clipfleet.common.settings import Limits, Settings
from clipfleet.workers.metrics import StageTimings
from clipfleet.workers.storage.items import read_item
from clipfleet.workers.storage.locations import LocalFiles

NO_FIELDS: Mapping[str, str | float] = {}
MAX_SCOPES = 15  # chunks that a feeder remembers, and one more


class Request(NamedTuple):
    """One image to prepare.

    Attributes:
        read: where its bytes are, in a local file or a part of one; see `read_item`.
        data: its bytes, when the worker has read them.
        scope: names the chunk. Links and mounts are resolved again for each.
        grant: what its job may read.
        details: the second half of its content hash.
        model: the model, for the first half of its content hash.
        known: the content hash of the image in the store; "": prepare the image in any case.
        exif: read fields from its EXIF.
        original: the content hash of the image that this is a copy of; "": it is no copy.
        original_model: the model of that image.
    """

    read: str
    data: bytes | None
    scope: str
    grant: SourceGrant | None
    details: str
    model: str
    known: str = ""
    exif: bool = False
    original: str = ""
    original_model: str = ""


class Prepared(NamedTuple):
    """An image that is ready for the model, without its pixels.

    Attributes:
        content_hash: the hash of the image, its label and metadata, and the model.
        file_bytes: the size of the file.
        width: pixels, before resizing.
        height: pixels, before resizing.
        thumbnail: the bytes of its thumbnail; empty for none.
        exif: the fields of its EXIF, with `Request.exif`.
    """

    content_hash: str
    file_bytes: int
    width: int
    height: int
    thumbnail: bytes
    exif: Mapping[str, str | float] = NO_FIELDS


class Failed(Exception):
    """One item fails; the others of its chunk continue.

    Attributes:
        stage: the stage that failed.
        reason: the reason that the caller sees.
    """

    def __init__(self, stage: FailureStage, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage: FailureStage = stage
        self.reason = reason


class Unchanged(Exception):
    """The image has the content hash `Request.known`."""


class DetailsChanged(Exception):
    """The bytes are those of `Request.known`, but the label, the metadata or the URI changed.

    Attributes:
        content_hash: the new content hash.
        exif: the fields of its EXIF, with `Request.exif`; None: the bytes were not read.
    """

    def __init__(self, content_hash: str, exif: Mapping[str, str | float] | None) -> None:
        super().__init__(content_hash, exif)
        self.content_hash, self.exif = content_hash, exif


@dataclass(frozen=True)
class Kit:
    """What feeders need to prepare images. It can be pickled.

    Attributes:
        access: what the service may read.
        limits: of files and images.
        thumbnail_edge: the longest side of a thumbnail, pixels; 0: none.
        preprocess: how images are resized and cropped for the model.
    """

    access: SourceAccess
    limits: Limits
    thumbnail_edge: int
    preprocess: Preprocess

    @classmethod
    def of(cls, settings: Settings, access: SourceAccess, preprocess: Preprocess) -> "Kit":
        """The kit of a worker with these settings."""
        return cls(access, settings.limits, settings.thumbnail_edge, preprocess)


@dataclass
class Prepare:
    """Prepares images with a kit, on any thread.

    Example: `prepared, pixels = Prepare(kit)(request, timings)`
    """

    kit: Kit
    _files: dict[str, LocalFiles] = field(default_factory=dict)  # by scope

    def __call__(self, request: Request, timings: StageTimings) -> tuple[Prepared, Pixels]:
        """Prepare an image; returns it and its pixels, uint8 [height, width, 3].

        Args:
            timings: the time of each stage is added to it.

        Raises:
            Failed: the image cannot be read or decoded.
            Unchanged: the image has the content hash `request.known`.
            DetailsChanged: the image need not be embedded again, only its details are new.
        """
        data = request.data
        if data is None:
            with timings.timed("read"):
                data = self._read(request)
        digest = _content_hash(data, request)
        if digest == request.known:
            raise Unchanged
        if has_same_bytes(request.known, digest):
            raise DetailsChanged(digest, self._exif(data) if request.exif else NO_FIELDS)
        with timings.timed("decode"):
            decoded = self._decode(data)
            pixels = self.kit.preprocess.apply(decoded.image)
            edge = self.kit.thumbnail_edge
            small = thumbnail(decoded, edge) if edge else b""
            exif = exif_fields(decoded.exif) if request.exif else NO_FIELDS
        return Prepared(digest, len(data), decoded.width, decoded.height, small, exif), pixels

    def _read(self, request: Request) -> bytes:
        try:
            return read_item(request.read, self._files_of(request))
        except Unreadable as error:
            raise Failed("read", str(error)) from error

    def _files_of(self, request: Request) -> LocalFiles:
        files = self._files.get(request.scope)
        if files is None:
            files = LocalFiles(self.kit.access.within(request.grant), self.kit.limits)
            self._files = {**dict(list(self._files.items())[-MAX_SCOPES:]), request.scope: files}
        return files

    def _exif(self, data: bytes) -> Mapping[str, str | float]:
        try:
            return exif_fields(read_exif(data, self.kit.limits))
        except BadImage as error:
            raise Failed("decode", error.detail) from error

    def _decode(self, data: bytes) -> Decoded:
        try:
            return decode(data, self.kit.limits, edge=self.kit.preprocess.edge())
        except BadImage as error:
            raise Failed("decode", error.detail) from error


def _content_hash(data: bytes, request: Request) -> str:
    """The content hash of an image.

    A copy keeps what the job of its original said: whether EXIF is read, and the label and metadata
    before they were changed by hand. Later jobs compare with that.
    """
    for exif in (False, True) if request.original else ():
        original = bytes_hash(data, request.original_model, exif=exif)
        if has_same_bytes(request.original, original):
            digits = bytes_hash(data, request.model, exif=exif)
            return digits + request.original[BYTES_DIGITS:]
    return bytes_hash(data, request.model, exif=request.exif) + request.details
