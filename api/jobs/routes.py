"""Jobs: index a folder, watch, cancel, see what failed, retry, delete."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep, CollectionDep, GatewayDep, GrantDep
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.jobs.service import Key, job_out, new_id, new_job, start
from clipfleet.common.auth.source_access import SourceAccess
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.http import uris
from clipfleet.common.http.schemas import FailureList, FailureOut, JobIn, JobList, JobOut
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.http.sources import (
    ArchiveSource,
    BucketSource,
    FolderSource,
    ManifestSource,
    Source,
    UrlsSource,
)
from clipfleet.common.identity import printable
from clipfleet.common.ledger import Failure, Job, JobState
from clipfleet.common.ledger.catalogue import require
from clipfleet.common.ledger.uploads import has_uploads, uploads_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)


DELETE_S = 60.0
STARTS: dict[int | str, dict[str, Any]] = {403: RESPONSES[422], 409: RESPONSES[422]}
Page = Annotated[int, Query(ge=1, le=1_000)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]


@router.post("/collections/{name}/jobs", status_code=202, responses=STARTS)
@needs("write", body="job")
async def start_job(
    body: JobIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    grant: GrantDep,
    response: Response,
    idempotency_key: Key = "",
) -> JobOut:
    """Index a folder, a manifest, URLs, an archive or a bucket.

    403 for a folder or a bucket that may not be indexed; it says which may.
    """
    source = _source(body.source, collection, gateway.sources.within(grant))
    new = new_job(collection, source, body.namespace, body.on_existing, grant)
    return await start(new, idempotency_key, gateway, response)


@router.get("/jobs")
@needs("read")
async def list_jobs(
    gateway: GatewayDep,
    caller: CallerDep,
    collection: Annotated[str, Query(max_length=256, description="of this collection")] = "",
    state: Annotated[list[JobState], Query(description="in one of these states")] = [],  # noqa: B006
    limit: Page = 50,
    offset: Offset = 0,
) -> JobList:
    """Newest first."""
    sees = None if caller.sees_all else caller.sees
    found = await gateway.call(gateway.ledger.jobs, limit, offset, collection, state, sees)
    return JobList(jobs=[job_out(job) for job in found])


@router.get("/jobs/{job_id}")
@needs("read")
async def get_job(job_id: str, gateway: GatewayDep) -> JobOut:
    return job_out(await gateway.job(job_id))


@router.delete("/jobs/{job_id}", status_code=204)
@needs("write")
async def delete_job(job_id: str, gateway: GatewayDep) -> None:
    """Forget a job with its failures and uploaded files; one that runs is cancelled first.

    Images that are in stay in.
    """
    job = await gateway.call(gateway.ledger.cancel, job_id, "the job was deleted")
    if has_uploads(job.new):  # first: without the record nobody would know of them
        await gateway.call(gateway.blobs.delete_below, uploads_of(job_id), seconds=DELETE_S)
    with suppress(NotFound):  # by another request, just now
        await gateway.call(gateway.ledger.remove, job_id, seconds=DELETE_S)


@router.get("/jobs/{job_id}/failures")
@needs("read")
async def get_failures(
    job_id: str, gateway: GatewayDep, limit: Page = 100, offset: Offset = 0
) -> FailureList:
    """Which images failed, and why."""
    job = await gateway.call(gateway.ledger.job, job_id)
    found = await gateway.failures(job_id, limit, offset)
    shown = [_shown(failure, job) for failure in found]
    return FailureList(failures=shown, total=job.failed)


@router.post("/jobs/{job_id}/cancel")
@needs("write")
async def cancel_job(job_id: str, gateway: GatewayDep) -> JobOut:
    """Stop within a chunk; what is in stays in. A finished job stays as it is."""
    return job_out(await gateway.call(gateway.ledger.cancel, job_id))


@router.post("/jobs/{job_id}/retry", status_code=202, responses={409: RESPONSES[422]})
@needs("write")
async def retry_job(
    job_id: str,
    gateway: GatewayDep,
    grant: GrantDep,
    response: Response,
    idempotency_key: Key = "",
) -> JobOut:
    """Start a new job on the failures of one that has ended; only those. It may read what both the
    key of that job and this one may.

    While such a retry goes on, another request gets that one. 409 when the job has not ended, has
    no failures, or when its collection was deleted and made anew; 404 when it was deleted.
    """
    old = (await gateway.call(gateway.ledger.job, job_id)).new
    collection = await gateway.call(require, gateway.catalogue, old.collection)
    if collection.generation != old.generation:
        said = f"collection {old.collection!r} was deleted and made anew since job {old.id}"
        raise Conflict(said, job=old.id)
    source: dict[str, Any] = {"type": "retry", "job": old.id}
    if folder := _folder_of(old.source):
        source["folder"] = folder
    both = old.grant.and_only(grant or SourceGrant()) if old.grant else grant
    changed = {"id": new_id(), "source": source, "retry_of": old.id, "grant": both}
    new = old.model_copy(update=changed)
    return await start(new, idempotency_key, gateway, response)


def _source(asked: Source, collection: Collection, access: SourceAccess) -> dict[str, Any]:
    """What the planner is told. Paths and buckets are checked here, too, so that the caller hears
    it."""
    source = asked.model_dump()
    match asked:
        case FolderSource():
            source["path"] = access.require_path(asked.path)
        case UrlsSource():
            for url in asked.urls:
                _readable(url, access)
        case BucketSource() | ArchiveSource() | ManifestSource():
            source["uri"] = _readable(asked.uri, access)
    if isinstance(asked, ManifestSource):
        source |= {"format": asked.table(), "fields": dict(collection.fields)}
    return source


def _readable(uri: str, access: SourceAccess) -> str:
    match uris.kind(uri):
        case "path":
            return access.require_path(uris.local_path(uri))
        case "bucket":
            return access.require_bucket(uri)
        case "web":
            return uri


def _shown(failure: Failure, job: Job) -> FailureOut:
    """What may be any text of a manifest is called by its row until its picture was seen."""
    if not failure.row or failure.stage in ("embed", "store"):
        return FailureOut(**failure.model_dump())
    reason = failure.reason
    for text in _parts_of(failure.uri):
        reason = reason.replace(text, "...")
    return FailureOut(
        id=failure.row,
        uri=printable(str(job.new.source.get("uri", ""))),
        reason=f"{failure.row}: {reason}",
        stage=failure.stage,
        attempts=failure.attempts,
    )


def _parts_of(uri: str) -> list[str]:
    """What an error may quote of it: all, the host or bucket, what follows that."""
    rest = uri.partition("://")[2] or uri
    host, _, key = rest.partition("/")
    return [uri, rest, *([key] if key else []), repr(host), repr(host.partition(":")[0])]


def _folder_of(source: dict[str, Any]) -> Any:
    """How a folder was listed: by this job, or by the one whose failures it tried again."""
    return source if source.get("type") == "folder" else source.get("folder")
