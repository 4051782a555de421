"""Jobs: index a folder, watch, cancel, see what failed, retry, delete."""

import logging
import secrets
import time
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep, CollectionDep, GatewayDep, GrantDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.auth.source_access import SourceAccess
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest, NotFound, Unavailable
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
from clipfleet.common.identity import namespace_problem, printable
from clipfleet.common.ledger import FINAL, Failure, Job, JobState, NewJob, brief
from clipfleet.common.ledger.catalogue import require
from clipfleet.common.ledger.uploads import has_uploads, uploads_of
from clipfleet.common.process.logs import log_context

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)


class TooManyJobs(Unavailable):
    slug = "too-many-jobs"
    title = "Too many jobs are queued or running"


DELETE_S, ROOM_S = 60.0, 30
STARTS: dict[int | str, dict[str, Any]] = {403: RESPONSES[422], 409: RESPONSES[422]}
Page = Annotated[int, Query(ge=1, le=1_000)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=256,
        description="The same key again, for the same request to the same collection, gives the "
        "job that it made within the last 24 hours; for another request it is a 409.",
    ),
]


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
    return await _start(new, idempotency_key, gateway, response)


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
    changed = {"id": _new_id(), "source": source, "retry_of": old.id, "grant": both}
    new = old.model_copy(update=changed)
    return await _start(new, idempotency_key, gateway, response)


def job_out(job: Job) -> JobOut:
    finished = job.done + job.failed + job.skipped
    total = job.total if job.planned else max(job.total, job.estimated)
    end = job.finished_at or time.time()
    elapsed = end - job.started_at if job.started_at else 0.0
    rate = finished / elapsed if finished and elapsed > 0 else None
    left = (total - finished) / rate if rate and job.state not in FINAL else None
    return JobOut(
        id=job.id,
        collection=job.new.collection,
        namespace=job.new.namespace,
        state=job.state,
        total=total,
        done=job.done,
        failed=job.failed,
        skipped=job.skipped,
        rate=rate,
        eta_s=left,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=job.error or None,
        waiting=job.waiting or None,
        retry_of=job.new.retry_of or None,
        retried_by=job.retried_by or None,
    )


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


def new_job(
    collection: Collection,
    source: dict[str, Any],
    namespace: str,
    on_existing: Literal["skip", "replace"],
    grant: SourceGrant | None = None,
) -> NewJob:
    if problem := namespace_problem(namespace):
        raise InvalidRequest(problem)
    return NewJob(
        id=_new_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=namespace,
        source=source,
        on_existing=on_existing,
        grant=grant,
    )


def _new_id() -> str:
    return secrets.token_hex(8)


def _folder_of(source: dict[str, Any]) -> Any:
    """How a folder was listed: by this job, or by the one whose failures it tried again."""
    return source if source.get("type") == "folder" else source.get("folder")


async def _start(new: NewJob, key: str, gateway: Gateway, response: Response) -> JobOut:
    key = scoped(key, new)
    made = await gateway.call(gateway.ledger.find_by_idempotency_key, key) if key else None
    if made is None:
        await require_room(gateway)
    return accepted(await gateway.call(gateway.ledger.create, new, key), new, response)


async def require_room(gateway: Gateway) -> None:
    """So many jobs at once cost the planner its pace; who asks again later finds room."""
    active = len(await gateway.call(gateway.ledger.active))
    if active >= gateway.settings.limits.active_jobs:
        raise TooManyJobs(f"{active} jobs are queued or running; try again later", ROOM_S)


def scoped(key: str, new: NewJob) -> str:
    """A key means one thing in one collection, and nothing in the next of that name."""
    return f"{new.generation}:{key}" if key else ""


def accepted(job: Job, new: NewJob, response: Response) -> JobOut:
    """The answer, be the job new or the one made before; Conflict when that was another."""
    if _asked(job.new) != _asked(new):
        raise Conflict("this Idempotency-Key was used for another job", job=job.id)
    made = "made" if job.id == new.id else "had been made before"
    with log_context(job_id=job.id, collection=job.new.collection):  # joins request and chunks
        log.info("job %s %s", job.id, made)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


def _asked(new: NewJob) -> dict[str, Any]:
    """What was asked for, without what only this asking has: its id, where its files lie, and what
    its key allowed at the time."""
    return brief(new).model_dump(exclude={"id": True, "source": {"items"}, "grant": True})
