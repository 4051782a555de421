"""Sources list the images of a job. `storage` opens their bytes, `ingest` reads the images.

A source is streamed and resumes at a cursor.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

from clipfleet.common.http import uris
from clipfleet.common.http.patterns import Pattern
from clipfleet.common.http.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ManifestSource,
    UrlsSource,
)
from clipfleet.common.http.sources import OneSource as SourceRequest
from clipfleet.common.http.suffixes import SUFFIXES
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.base import Listed, Source, SourceError, ending_of
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.folder import Folder
from clipfleet.workers.sources.inline import Single, Upload, UploadInParts, Urls
from clipfleet.workers.sources.keys import open_keys
from clipfleet.workers.sources.manifest import Lines
from clipfleet.workers.sources.parquet import Parquet
from clipfleet.workers.sources.scratch import ScratchUnavailable
from clipfleet.workers.sources.several import Matches, in_list
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


def open_source(
    raw: dict[str, Any],
    storage: Storage,
    job_id: str,
    *,
    is_part: bool = False,
    signed: bool = False,
) -> Source:
    """Open the source of a job.

    Args:
        raw: the source as the gateway stored it: the caller's request, and for a manifest or an
            archive the collection's `fields`. Fields that a newer gateway added are ignored.
        storage: opens locations as far as the job may read them.
        job_id: the job, which owns copies of what cannot be read in place.
        is_part: whether it is one of several sources of the job.
        signed: whether the images of folders have signatures.

    Raises:
        SourceError: the kind of the source is unknown.
    """
    kind = raw.get("type")
    if kind == "list":
        return in_list(
            raw["sources"],
            lambda record: open_source(record, storage, job_id, is_part=True, signed=signed),
            raw.get("name", ""),
        )
    if kind == "upload":
        if "items" in raw:
            return Upload(raw["items"])
        return UploadInParts(raw, storage.blobs, job_id)
    if kind == "keys":
        of = raw["of"]
        source = parse_known_fields(KINDS[of["type"]], of)
        if isinstance(source, BucketSource | FolderSource):
            return open_keys(source, raw, storage)
        raise SourceError(f"there are no keys of a source of type {of['type']!r}")
    if kind not in KINDS:
        raise SourceError(f"unknown kind of source {kind!r}")
    fields = raw.get("fields", {})
    request = parse_known_fields(KINDS[kind], raw)
    place = getattr(request, "path", "") or getattr(request, "uri", "")
    if Pattern(place).is_pattern:
        return _matches(request, place, fields, storage, job_id, signed)
    copies = Copies(storage, job_id, place if is_part else "")
    return _open(request, fields, storage, copies, signed)


def is_local(raw: dict[str, Any]) -> bool:
    """Whether the source is listed from local files and the service's own stores alone.

    Args:
        raw: the source as the gateway stored it.
    """
    if raw.get("type") == "list":
        return all(map(is_local, raw["sources"])) if "sources" in raw else False
    if raw.get("type") == "keys":
        return is_local(raw["of"])
    try:
        return uris.kind(raw.get("uri", "")) == "path"
    except uris.BadUri:
        return False


def parse_known_fields(kind: type[T], raw: dict[str, Any]) -> T:
    """Parse a stored model and ignore unknown fields, which requests may not have."""
    return kind.model_validate({key: raw[key] for key in raw.keys() & kind.model_fields.keys()})


def _matches(
    request: SourceRequest,
    place: str,
    fields: dict[str, str],
    storage: Storage,
    job_id: str,
    signed: bool,
) -> Source:
    """What the pattern in the place of a path or an address stands for."""

    def open_(name: str, is_folder: bool) -> Source:
        match request:
            case FolderSource():
                below = request.model_copy(update={"path": name})
                folder = Folder(below, storage.access, signed=signed)
                if is_folder or not folder.is_file(name):
                    return folder
                is_image = ending_of(name) in SUFFIXES
                return Single(name, folder.file(name) if is_image else None)
            case BucketSource():
                is_image = ending_of(name.rpartition("/")[2]) in SUFFIXES
                if name == place or not Pattern(place).is_wild:
                    return Bucket(request.model_copy(update={"uri": name}), storage)
                return Single(name, Bucket(request, storage).item(name) if is_image else None)
            case _:
                copies = Copies(storage, job_id, name)
                matched = request.model_copy(update={"uri": name})
                return _open(matched, fields, storage, copies, signed)

    takes_folders = isinstance(request, FolderSource | BucketSource)
    return Matches(place, open_, takes_folders, storage).source()


def _open(
    request: SourceRequest,
    fields: dict[str, str],
    storage: Storage,
    copies: Copies,
    signed: bool,
) -> Source:
    match request:
        case FolderSource():
            folder = Folder(request, storage.access, signed=signed)
            if ending_of(request.path) in SUFFIXES and folder.is_file(request.path):
                return Single(request.path, folder.file(request.path))
            return folder
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
