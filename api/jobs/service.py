"""What the routes about jobs share: new jobs, the limit on active jobs, and jobs as JSON."""

import logging
import secrets
import time
from typing import Annotated, Any, Literal

from fastapi import Header, Response

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest, Unavailable
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.identity import namespace_problem
from clipfleet.common.ledger import FINAL, Job, NewJob, brief
from clipfleet.common.process.logs import about

log = logging.getLogger(__name__)

ROOM_S = 30
Key = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=256,
        description="The same key again, for the same request to the same collection, gives the "
        "job that it made within the last 24 hours; for another request it is a 409.",
    ),
]


class TooManyJobs(Unavailable):
    slug = "too-many-jobs"
    title = "Too many jobs are queued or running"


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
        id=new_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=namespace,
        source=source,
        on_existing=on_existing,
        grant=grant,
    )


def new_id() -> str:
    return secrets.token_hex(8)


async def start(new: NewJob, key: str, gateway: Gateway, response: Response) -> JobOut:
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
    with about(job_id=job.id, collection=job.new.collection):  # joins request and chunks
        log.info("job %s %s", job.id, made)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


def _asked(new: NewJob) -> dict[str, Any]:
    """What was asked for, without what only this asking has: its id, where its files lie, and what
    its key allowed at the time."""
    return brief(new).model_dump(exclude={"id": True, "source": {"items"}, "grant": True})


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
