"""Sources list the images of a job. `storage` opens their bytes, `ingest` reads the images.

A source is streamed and resumes at a cursor.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

from clipfleet.common.http import uris
from clipfleet.common.http.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ManifestSource,
    UrlsSource,
)
from clipfleet.common.http.sources import Source as SourceRequest
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.base import Listed, Source, SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.folder import Folder
from clipfleet.workers.sources.inline import Upload, UploadInParts, Urls
from clipfleet.workers.sources.manifest import Lines
from clipfleet.workers.sources.parquet import Parquet
from clipfleet.workers.sources.scratch import ScratchUnavailable
from clipfleet.workers.storage.locations import Storage

__all__ = [
    "Folder",
    "Listed",
    "ScratchUnavailable",
    "Source",
    "SourceError",
    "Upload",
    "is_local",
    "open_source",
]

KINDS: dict[str, type[SourceRequest]] = {
    "folder": FolderSource,
    "manifest": ManifestSource,
    "urls": UrlsSource,
    "archive": ArchiveSource,
    "bucket": BucketSource,
}

T = TypeVar("T", bound=BaseModel)


def open_source(raw: dict[str, Any], storage: Storage, job_id: str) -> Source:
    """Open the source of a job.

    Args:
        raw: the source as the gateway stored it: the caller's request, and for a manifest or an
            archive the collection's `fields`. Fields that a newer gateway added are ignored.
        storage: opens locations as far as the job may read them.
        job_id: the job, which owns copies of what cannot be read in place.

    Raises:
        SourceError: the kind of the source is unknown.
    """
    kind = raw.get("type")
    if kind == "upload":
        if "items" in raw:
            return Upload(raw["items"])
        return UploadInParts(raw, storage.blobs, job_id)
    if kind not in KINDS:
        raise SourceError(f"unknown kind of source {kind!r}")
    fields = raw.get("fields", {})
    request = parse_known_fields(KINDS[kind], raw)
    return _open(request, fields, storage, Copies(storage, job_id))


def is_local(raw: dict[str, Any]) -> bool:
    """Whether the source is listed from local files and the service's own stores alone.

    Args:
        raw: the source as the gateway stored it.
    """
    try:
        return uris.kind(raw.get("uri", "")) == "path"
    except uris.BadUri:
        return False


def parse_known_fields(kind: type[T], raw: dict[str, Any]) -> T:
    """Parse a stored model and ignore unknown fields, which requests may not have."""
    return kind.model_validate({key: raw[key] for key in raw.keys() & kind.model_fields.keys()})


def _open(
    request: SourceRequest, fields: dict[str, str], storage: Storage, copies: Copies
) -> Source:
    match request:
        case FolderSource():
            return Folder(request, storage.access)
        case UrlsSource():
            return Urls(request, storage)
        case BucketSource():
            return Bucket(request, storage)
        case ArchiveSource():
            return Archive(request, storage, copies, fields)
        case ManifestSource():
            if request.table() == "parquet":
                return Parquet(request, storage, copies, fields)
            return Lines(request, storage, fields)
