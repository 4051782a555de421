"""Turns the request of a job into a job, and checks what it may read.

Used by requests that start a job, and by registered sources at each run.
"""

from typing import Any

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.jobs.service import new_job, webhook_of
from clipfleet.common.auth.source_access import SourceAccess
from clipfleet.common.collection import Collection
from clipfleet.common.http import uris
from clipfleet.common.http.patterns import Pattern, Wild
from clipfleet.common.http.schemas import JobIn
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.http.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ListSource,
    ManifestSource,
    Source,
    UrlsSource,
)
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.shown import shown_place

MAX_NAMED = 5  # sources of a list in the source that a job shows


def describe_job(
    body: JobIn, collection: Collection, grant: SourceGrant | None, gateway: Gateway
) -> NewJob:
    """Return the job that a request asks for, with a new id.

    Args:
        body: the request.
        collection: the collection that the job writes to.
        grant: the sources that the job may read; None: the same as the service.
        gateway: has the settings.

    Raises:
        Forbidden: the job may not read the source.
        InvalidRequest: the request is not valid.
    """
    return new_job(
        collection,
        _planner_source(body.source, collection, gateway.sources.within(grant)),
        body.namespace,
        body.on_existing,
        grant,
        exif=body.exif,
        webhook=webhook_of(body.webhook, gateway.settings),
        mirror=body.mirror,
    )


def _planner_source(source: Source, collection: Collection, access: SourceAccess) -> dict[str, Any]:
    """Return the source as the planner gets it.

    Paths and buckets are checked here as well, so that the caller gets the error at once.
    """
    record = source.model_dump()
    match source:
        case ListSource():
            record["name"] = _names(source)
            record["sources"] = [
                _planner_source(part, collection, access) for part in source.sources
            ]
        case FolderSource():
            record["path"] = _require_pattern(source.path, access)
        case UrlsSource():
            for url in source.urls:
                _require_readable(url, access)
        case BucketSource() | ArchiveSource() | ManifestSource():
            record["uri"] = _require_readable(source.uri, access)
    if isinstance(source, ManifestSource):
        record["format"] = source.table()
    if isinstance(source, ArchiveSource | ManifestSource):
        record["fields"] = dict(collection.fields)
    return record


def _require_readable(uri: str, access: SourceAccess) -> str:
    """Return the URI as the planner reads it; Forbidden when it may not be read."""
    if Pattern(uri).is_pattern:
        return _require_pattern(uri, access)
    match uris.kind(uri):
        case "path":
            return access.require_path(uris.local_path(uri))
        case "bucket":
            return access.require_bucket(uri)
        case "web":
            return uri


def _require_pattern(text: str, access: SourceAccess) -> str:
    """Return a path, an address or a pattern of them; Forbidden when it may not be read.

    Of a pattern, what precedes the first wildcard is checked. The planner checks every match.
    """
    pattern = Pattern(text)
    if not pattern.is_pattern:
        return access.require_path(text)
    for example in pattern.examples():
        place = (Wild(example).base if Pattern(example).is_wild else "") or example
        match uris.kind(place):
            case "path":
                access.require_path(uris.local_path(place))
            case "bucket":
                access.require_bucket(place)
            case "web":
                uris.require_web(place)
    return text


def _names(source: ListSource) -> str:
    """The sources of a list in words."""
    places = [shown_place(part.model_dump()) for part in source.sources[:MAX_NAMED]]
    more = len(source.sources) - len(places)
    return ", ".join(places) + (f" and {more} more" if more else "")
