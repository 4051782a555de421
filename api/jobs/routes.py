"""Routes that start, list, show, cancel, retry and delete jobs."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import (
    CallerDep,
    CollectionDep,
    GatewayDep,
    GrantDep,
    IdempotencyKey,
    JobId,
)
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.requests import describe_job
from clipfleet.api.jobs.service import new_job_id, start
from clipfleet.common.errors import Conflict, InvalidRequest, NotFound
from clipfleet.common.http.mirror import MissingPage
from clipfleet.common.http.schemas import FailureList, FailureOut, JobIn, JobList, JobOut, JobState
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.identity import printable
from clipfleet.common.ledger import Failure, Job
from clipfleet.common.ledger.catalogue import require
from clipfleet.common.ledger.migrations import is_migration
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.ledger.stored_images import VERSION, is_over_stored, shape_of
from clipfleet.common.ledger.uploads import has_uploads, uploads_of
from clipfleet.common.snapshots import Missing, mirror_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

DELETE_TIMEOUT_S = 60.0
START_RESPONSES: dict[int | str, dict[str, Any]] = {409: CONFLICT}
PageSize = Annotated[int, Query(ge=1, le=1_000, description="Maximum number of items to return.")]
Offset = Annotated[
    int, Query(ge=0, le=10_000_000, description="Number of items to skip at the beginning.")
]
MERGED_OFFSET = 10_000  # jobs of several indices, which are read and merged one by one


@router.post(
    "/collections/{name}/jobs",
    status_code=202,
    summary="Start a job",
    responses=START_RESPONSES,
)
@needs("write", body="job")
async def start_job(
    body: JobIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    grant: GrantDep,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> JobOut:
    """Start a job that indexes a folder, a manifest, a list of URLs, an archive or a bucket.

    A path or an address may be a pattern of several, and a source of type `list` has several.

    The response is 403 for a folder or a bucket that the key or the service may not read. The
    message names the folders and buckets that may be read.

    With `webhook`, the service sends a signed POST request when the job has ended, as
    docs/webhooks.md describes.

    With `mirror`, images that this source had before and has no more are deleted or reported, as
    docs/sources.md describes. The response is 409 while another mirror of the same source runs.
    """
    new = describe_job(body, collection, grant, gateway)
    return await start(new, idempotency_key, gateway, response)


@router.get("/jobs", summary="List jobs")
@needs("read")
async def list_jobs(
    gateway: GatewayDep,
    caller: CallerDep,
    collection: Annotated[
        str, Query(max_length=256, description="Return only jobs of this collection.")
    ] = "",
    state: Annotated[
        list[JobState], Query(description="Return only jobs in one of these states.")
    ] = [],  # noqa: B006
    limit: PageSize = 50,
    offset: Offset = 0,
) -> JobList:
    """Return the jobs that the key may see, newest first.

    `offset` is at most 10,000 for a list of several states, or without `collection` for a key that
    is limited to collections.
    """
    sees = None if caller.sees_all else caller.sees
    if offset > MERGED_OFFSET and (len(set(state)) > 1 or (sees and not collection)):
        raise InvalidRequest(
            f"offset is over {MERGED_OFFSET}, the limit for a list of several states or "
            "collections; name one state and one collection"
        )
    if collection:
        with suppress(NotFound):  # deleted; its jobs are still there
            collection = (await gateway.collection(collection)).name  # it may be an alias
    jobs = await gateway.call(gateway.ledger.jobs, limit, offset, collection, state, sees)
    return JobList(jobs=[job_out(job) for job in jobs])


@router.get("/jobs/{job_id}", summary="Get a job")
@needs("read")
async def get_job(job_id: JobId, gateway: GatewayDep) -> JobOut:
    """Return the state and the progress of a job."""
    return job_out(await gateway.job(job_id))


@router.delete("/jobs/{job_id}", status_code=204, summary="Delete a job")
@needs("write")
async def delete_job(job_id: JobId, gateway: GatewayDep) -> None:
    """Delete a job with its failures and its uploaded files. A running job is cancelled first.

    Images that the job has indexed stay in the collection.
    """
    job = await gateway.call(gateway.ledger.begin_removal, job_id, "the job was deleted")
    if has_uploads(job.new):  # before the record, which alone names them
        await gateway.call(
            gateway.blobs.delete_below, uploads_of(job_id), timeout_s=DELETE_TIMEOUT_S
        )
    if job.new.mirror:
        await gateway.call(
            gateway.blobs.delete_below, mirror_of(job_id), timeout_s=DELETE_TIMEOUT_S
        )
    with suppress(NotFound):  # another request has deleted it meanwhile
        await gateway.call(gateway.ledger.remove, job_id, timeout_s=DELETE_TIMEOUT_S)


@router.get("/jobs/{job_id}/failures", summary="List a job's failures")
@needs("read")
async def get_failures(
    job_id: JobId, gateway: GatewayDep, limit: PageSize = 100, offset: Offset = 0
) -> FailureList:
    """Return the images that could not be indexed, each with the reason."""
    job = await gateway.call(gateway.ledger.job, job_id)
    failures = await gateway.failures(job_id, limit, offset)
    shown = [_failure_out(failure, job) for failure in failures]
    return FailureList(failures=shown, total=job.failed)


@router.get("/jobs/{job_id}/missing", summary="List images that are gone from a job's source")
@needs("read")
async def get_missing(
    job_id: JobId,
    gateway: GatewayDep,
    cursor: Annotated[
        str,
        Query(
            pattern="^([0-9]{1,15})?$",
            description="The value of `next` of the previous page; empty for the first page.",
        ),
    ] = "",
    limit: PageSize = 1_000,
) -> MissingPage:
    """Return the ids of indexed images that are gone from the source of a mirror, page by page.

    After a mirror that deletes, these are the images that were deleted. The list is empty until
    all images of the source have been compared, and for a job without `mirror`.
    """
    job = await gateway.call(gateway.ledger.job, job_id)
    total, offset = (job.mirror.gone if job.mirror else 0), int(cursor or 0)
    if offset >= total:
        return MissingPage(ids=[], total=total, next=None)
    missing = Missing(gateway.blobs, job_id)
    ids = await gateway.call(missing.ids, offset, min(limit, total - offset))
    end = offset + len(ids)
    return MissingPage(ids=ids, total=total, next=str(end) if ids and end < total else None)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job")
@needs("write")
async def cancel_job(job_id: JobId, gateway: GatewayDep) -> JobOut:
    """Cancel a job. Its workers stop at the latest after their current chunk.

    Images that the job has indexed stay in the collection. A job that has ended does not change.
    """
    return job_out(await gateway.call(gateway.ledger.cancel, job_id))


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    summary="Retry a job's failures",
    responses={409: CONFLICT},
)
@needs("write")
async def retry_job(
    job_id: JobId,
    gateway: GatewayDep,
    grant: GrantDep,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> JobOut:
    """Start a new job for the failures of a job that has ended.

    The new job may read a source only if both the key of the old job and the key of this request
    may read it. While the retry runs, another retry request returns the same job.

    The response is 409 when the job has not ended, when it has no failures, or when its collection
    was deleted and created again. It is 404 when the collection was deleted. After a migration, the
    new job writes to the new generation.
    """
    old = (await gateway.call(gateway.ledger.job, job_id)).new
    if is_migration(old.source):
        detail = (
            f"job {old.id} copies images for a migration; pause and resume the migration to try "
            "them again"
        )
        raise Conflict(detail, job=old.id)
    if is_over_stored(old.source) and shape_of(old.source).finishes:
        detail = f"job {old.id} computes on all images together; start it again"
        raise Conflict(detail, job=old.id)
    collection = await gateway.call(require, gateway.catalogue, old.collection)
    migration = await gateway.call(gateway.catalogue.migration, collection.name)
    is_first = old.generation == collection.snapshots  # of several migrations
    if is_first or (migration and migration.concerns(old.generation, collection.generation)):
        target = {"generation": collection.generation, "model": collection.model}
        old = old.model_copy(update=target)
    if collection.generation != old.generation:
        detail = (
            f"collection {old.collection!r} was deleted and created again after job {old.id} "
            "was created"
        )
        raise Conflict(detail, job=old.id)
    source: dict[str, Any] = {"type": "retry", "job": old.id}
    if folder := _folder_of(old.source):
        source["folder"] = folder
    if is_over_stored(old.source):
        source = {**old.source, **source, "type": old.source["type"]}
    both = old.grant.and_only(grant or SourceGrant()) if old.grant else grant
    changes = {
        "id": new_job_id(),
        "source": source,
        "retry_of": old.id,
        "grant": both,
        "v": VERSION if is_over_stored(old.source) else 1,
        "mirror": None,
        "incremental": True,
    }
    return await start(old.model_copy(update=changes), idempotency_key, gateway, response)


def _failure_out(failure: Failure, job: Job) -> FailureOut:
    """Return a failure as the HTTP interface shows it.

    A row of a manifest may name any text as a URI. Until an image has been read from it, the
    failure shows the number of the row in place of the URI.
    """
    if not failure.row or failure.stage in ("embed", "store"):
        return FailureOut(**failure.model_dump())
    reason = failure.reason
    for text in _quotable_parts(failure.uri):
        reason = reason.replace(text, "...")
    return FailureOut(
        id=failure.row,
        uri=printable(str(job.new.source.get("uri", ""))),
        reason=f"{failure.row}: {reason}",
        stage=failure.stage,
        attempts=failure.attempts,
    )


def _quotable_parts(uri: str) -> list[str]:
    """The parts of a URI that an error may quote: all of it, the host or bucket, and the key."""
    rest = uri.partition("://")[2] or uri
    host, _, key = rest.partition("/")
    return [uri, rest, *([key] if key else []), repr(host), repr(host.partition(":")[0])]


def _folder_of(source: dict[str, Any]) -> Any:
    """How the folder was listed by this job, or by the job whose failures it retried."""
    return source if source.get("type") == "folder" else source.get("folder")
