"""Jobs: index a folder or an upload, watch, cancel, see what failed."""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Header, Query, Response, UploadFile

from clipfleet.api.depends import UsesCollection, UsesGateway
from clipfleet.api.gateway import Gateway
from clipfleet.api.problems import RESPONSES
from clipfleet.common import uris
from clipfleet.common.collection import LABEL_BYTES, Collection
from clipfleet.common.errors import Conflict, InvalidRequest, TooLarge, Unavailable
from clipfleet.common.identity import (
    DEFAULT_NAMESPACE,
    id_problem,
    namespace_problem,
    text_problem,
)
from clipfleet.common.ledger import FINAL, Item, Job, NewJob
from clipfleet.common.roots import require_below
from clipfleet.common.schemas import FailureList, FailureOut, JobIn, JobList, JobOut
from clipfleet.common.sources import ArchiveSource, FolderSource, ManifestSource, Source

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES)

UPLOAD_S = 600.0
Page = Annotated[int, Query(ge=1, le=1_000)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
Key = Annotated[str, Header(alias="Idempotency-Key", max_length=256)]


@router.post("/collections/{name}/jobs", status_code=202, responses={403: RESPONSES[422]})
async def start_job(
    body: JobIn,
    collection: UsesCollection,
    gateway: UsesGateway,
    response: Response,
    idempotency_key: Key = "",
) -> JobOut:
    """Index a folder, a manifest, URLs, an archive or a bucket.

    The same Idempotency-Key again gives the job it made the first time.
    """
    source = _source(body.source, collection, gateway.settings.source_roots)
    new = _new_job(collection, source, body.namespace, body.on_existing)
    return await _start(new, idempotency_key, gateway, response)


@router.post("/collections/{name}/images", status_code=202)
async def upload_images(
    collection: UsesCollection,
    gateway: UsesGateway,
    response: Response,
    files: Annotated[list[UploadFile], File(description="images; the file name becomes the id")],
    namespace: Annotated[str, Form()] = DEFAULT_NAMESPACE,
    label: Annotated[str, Form()] = "",
    on_existing: Annotated[Literal["skip", "replace"], Form()] = "skip",
) -> JobOut:
    """Index uploaded images."""
    problem = text_problem("label", label, LABEL_BYTES, empty=True)
    if problem:
        raise InvalidRequest(problem)
    new = _new_job(collection, {"type": "upload"}, namespace, on_existing)
    _check_names(files)
    if len(files) > (most := gateway.settings.limits.upload_files):
        raise TooLarge(f"{len(files)} files in one upload; {most} at most")
    try:
        items = [
            await _stored(number, file, label, new.id, gateway) for number, file in enumerate(files)
        ]
    except Unavailable:  # there will be no job, so nobody will ever ask for these
        await gateway.call(gateway.blobs.delete_below, f"uploads/{new.id}")
        raise
    new = new.model_copy(update={"source": {"type": "upload", "items": items}})
    return await _start(new, "", gateway, response)


@router.get("/jobs")
async def list_jobs(gateway: UsesGateway, limit: Page = 50, offset: Offset = 0) -> JobList:
    """Newest first."""
    found = await gateway.call(gateway.ledger.jobs, limit, offset)
    return JobList(jobs=[job_out(job) for job in found])


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, gateway: UsesGateway) -> JobOut:
    return job_out(await gateway.call(gateway.ledger.job, job_id))


@router.get("/jobs/{job_id}/failures")
async def get_failures(
    job_id: str, gateway: UsesGateway, limit: Page = 100, offset: Offset = 0
) -> FailureList:
    """Which images failed, and why."""
    job = await gateway.call(gateway.ledger.job, job_id)
    found = await gateway.call(gateway.ledger.failures, job_id, limit, offset)
    shown = [FailureOut(**failure.model_dump()) for failure in found]
    return FailureList(failures=shown, total=job.failed)


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, gateway: UsesGateway) -> JobOut:
    """Stop within a chunk; what is in stays in. A finished job stays as it is."""
    return job_out(await gateway.call(gateway.ledger.cancel, job_id))


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
    )


def _source(asked: Source, collection: Collection, roots: Sequence[Path]) -> dict[str, Any]:
    """What the planner is told. Local paths are checked here, too, so that the caller hears it."""
    source = asked.model_dump()
    if isinstance(asked, FolderSource):
        source["path"] = require_below(asked.path, roots)
    elif isinstance(asked, ManifestSource | ArchiveSource) and uris.kind(asked.uri) == "path":
        source["uri"] = require_below(uris.local_path(asked.uri), roots)
    if isinstance(asked, ManifestSource):
        source |= {"format": asked.table(), "fields": dict(collection.fields)}
    return source


def _new_job(
    collection: Collection,
    source: dict[str, Any],
    namespace: str,
    on_existing: Literal["skip", "replace"],
) -> NewJob:
    if problem := namespace_problem(namespace):
        raise InvalidRequest(problem)
    return NewJob(
        id=secrets.token_hex(8),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=namespace,
        source=source,
        on_existing=on_existing,
    )


async def _start(new: NewJob, key: str, gateway: Gateway, response: Response) -> JobOut:
    scoped = f"{new.generation}:{key}" if key else ""
    job = await gateway.call(gateway.ledger.create, new, scoped)
    if job.new.model_copy(update={"id": new.id}) != new:
        raise Conflict("this Idempotency-Key was used for another job", job=job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


def _check_names(files: Sequence[UploadFile]) -> None:
    names = [file.filename or "" for file in files]
    for name in names:
        if problem := id_problem(name):
            raise InvalidRequest(f"a file name cannot be an id: {problem}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"two files are called {twice[:200]!r}; names become ids")


async def _stored(
    number: int, file: UploadFile, label: str, job_id: str, gateway: Gateway
) -> dict[str, Any]:
    """The item of one file, its bytes in the blob store unless there are too many of them."""
    name, key = file.filename or "", f"uploads/{job_id}/{number}"
    item = Item(id=name, uri=f"upload:{job_id}/{number}", read=f"blob:{key}", label=label)
    limit = gateway.settings.limits.image_bytes
    if (file.size or 0) > limit:
        problem = f"the file has {file.size} bytes; the limit is {limit}"
        return item.model_copy(update={"problem": problem}).model_dump()
    await gateway.call(gateway.blobs.put, key, file.file, seconds=UPLOAD_S)
    return item.model_dump()
