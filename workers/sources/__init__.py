"""Where a job's images come from. A source is streamed; its cursor says where to go on."""

from typing import Any

from pydantic import TypeAdapter

from clipfleet.common.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ManifestSource,
    UrlsSource,
)
from clipfleet.common.sources import Source as Asked
from clipfleet.workers.places import Places
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.base import Listed, Source, SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.folder import Folder
from clipfleet.workers.sources.inline import Upload, Urls
from clipfleet.workers.sources.manifest import Lines
from clipfleet.workers.sources.parquet import Parquet

__all__ = ["Folder", "Listed", "Source", "SourceError", "Upload", "open_source"]

KINDS = {"folder", "manifest", "urls", "archive", "bucket"}
_asked: TypeAdapter[Asked] = TypeAdapter(Asked)


def open_source(raw: dict[str, Any], places: Places, job_id: str) -> Source:
    """`raw`: as the gateway wrote it; beside what the caller said, a manifest has `fields`, the
    collection's."""
    kind = raw.get("type")
    if kind == "upload":
        return Upload(raw["items"])
    if kind not in KINDS:
        raise SourceError(f"unknown kind of source {kind!r}")
    fields = raw.get("fields", {})
    asked = _asked.validate_python({key: raw[key] for key in raw if key != "fields"})
    return _open(asked, fields, places, Copies(places, job_id))


def _open(asked: Asked, fields: dict[str, str], places: Places, copies: Copies) -> Source:
    match asked:
        case FolderSource():
            return Folder(asked, places.settings.source_roots)
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
