"""Where a job's images come from. A source is streamed; its cursor says where to go on."""

from typing import Any, TypeVar

from pydantic import BaseModel

from clipfleet.common.http.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ManifestSource,
    UrlsSource,
)
from clipfleet.common.http.sources import Source as Asked
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.base import Listed, Source, SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.folder import Folder
from clipfleet.workers.sources.inline import Upload, Urls
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
    "open_source",
]

KINDS: dict[str, type[Asked]] = {
    "folder": FolderSource,
    "manifest": ManifestSource,
    "urls": UrlsSource,
    "archive": ArchiveSource,
    "bucket": BucketSource,
}

T = TypeVar("T", bound=BaseModel)


def open_source(raw: dict[str, Any], places: Storage, job_id: str) -> Source:
    """`raw`: as the gateway wrote it; beside what the caller said, a manifest has `fields`, the
    collection's. What a newer gateway wrote beside that is not looked at."""
    kind = raw.get("type")
    if kind == "upload":
        return Upload(raw["items"])
    if kind not in KINDS:
        raise SourceError(f"unknown kind of source {kind!r}")
    fields = raw.get("fields", {})
    asked = known(KINDS[kind], raw)
    return _open(asked, fields, places, Copies(places, job_id))


def known(kind: type[T], raw: dict[str, Any]) -> T:
    """Without the fields that are not known here; in requests they are refused."""
    return kind.model_validate({key: raw[key] for key in raw.keys() & kind.model_fields.keys()})


def _open(asked: Asked, fields: dict[str, str], places: Storage, copies: Copies) -> Source:
    match asked:
        case FolderSource():
            return Folder(asked, places.access)
        case UrlsSource():
            return Urls(asked, places)
        case BucketSource():
            return Bucket(asked, places)
        case ArchiveSource():
            return Archive(asked, places, copies)
        case ManifestSource():
            if asked.table() == "parquet":
                return Parquet(asked, places, copies)
            return Lines(asked, places, fields)
