"""What the routes about jobs share: new jobs, the limit on active jobs, and jobs as JSON.

No route is here. The work of a job is in `workers`.
"""

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from fastapi import Response

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import reservation
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.identity import namespace_problem
from clipfleet.common.ledger import FINAL, Job, JobRoom, NewJob, brief
from clipfleet.common.ledger.notes import left_out, remarks
from clipfleet.common.process.logs import log_context

log = logging.getLogger(__name__)

SHOWN_CHARS = 1_000  # of a source


def new_job(
    collection: Collection,
    source: dict[str, Any],
    namespace: str,
    on_existing: Literal["skip", "replace"],
    grant: SourceGrant | None = None,
    *,
    exif: bool = False,
) -> NewJob:
    """Describe a job that the ledger does not have yet.

    Args:
        collection: the collection that the job writes to.
        source: what the planner lists; see `common/http/sources.py`.
        namespace: the namespace of the images.
        on_existing: whether an image that is already indexed is skipped or replaced.
        grant: the sources that the job may read; None: the same as the service.
        exif: whether fields from the EXIF of the images become metadata.

    Raises:
        InvalidRequest: the namespace is not valid.
    """
    if problem := namespace_problem(namespace):
        raise InvalidRequest(problem)
    return NewJob(
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=namespace,
        source=source,
        on_existing=on_existing,
        exif=exif,
        grant=grant,
    )


def new_job_id() -> str:
    """Return a random job id."""
    return secrets.token_hex(8)


async def start(new: NewJob, idempotency_key: str, gateway: Gateway, response: Response) -> JobOut:
    """Create a job, or return the job that the same idempotency key created.

    Raises:
        Conflict: the key was used for another request.
        TooManyJobs: the service, or the key of the request, has too many active jobs.
    """
    key, room = scoped_key(idempotency_key, new), job_room(gateway)
    return accepted(await gateway.call(gateway.ledger.create, new, key, room), new, response)


def job_room(gateway: Gateway) -> JobRoom:
    """Return the limit on active jobs for the current request.

    More active jobs would slow down the planner.
    """
    return JobRoom(gateway.settings.limits.active_jobs, reservation().caller)


def scoped_key(idempotency_key: str, new: NewJob) -> str:
    """Return the key under which the ledger keeps the job; "" without an idempotency key.

    It includes the generation, so that a key means nothing in a new collection of the same name.
    """
    return f"{new.generation}:{idempotency_key}" if idempotency_key else ""


def accepted(job: Job, new: NewJob, response: Response) -> JobOut:
    """Return the response for a job that was created now or by an earlier request.

    Args:
        job: the job in the ledger.
        new: the job that this request describes.
        response: gets the Location header.

    Raises:
        Conflict: the earlier request was another one.
    """
    if _comparable(job.new) != _comparable(new):
        raise Conflict("this Idempotency-Key was used for another job", job=job.id)
    outcome = "created" if job.id == new.id else "exists already"
    with log_context(job_id=job.id, collection=job.new.collection):  # joins request and chunks
        log.info("job %s %s", job.id, outcome)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


def _comparable(new: NewJob) -> dict[str, Any]:
    """What two requests with the same idempotency key must have in common.

    The id, the location of uploaded files and the key's grant may differ.
    """
    return brief(new).model_dump(exclude={"id": True, "source": {"items"}, "grant": True})


def job_out(job: Job) -> JobOut:
    """Return a job as the HTTP interface shows it, with its rate and its remaining time."""
    finished = job.done + job.failed + job.skipped
    total = job.total if job.planned else max(job.total, job.estimated)
    end = job.finished_at or time.time()
    elapsed = end - job.started_at if job.started_at else 0.0
    rate = finished / elapsed if finished and elapsed > 0 else None
    eta_s = (total - finished) / rate if rate and job.state not in FINAL else None
    return JobOut(
        id=job.id,
        collection=job.new.collection,
        namespace=job.new.namespace,
        source=_shown_source(job.new.source),
        state=job.state,
        total=total,
        done=job.done,
        failed=job.failed,
        skipped=job.skipped,
        replaced=job.replaced,
        left_out=left_out(job.notes),
        remarks=remarks(job.notes),
        rate=rate,
        eta_s=eta_s,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=job.error or None,
        waiting=job.waiting or None,
        retry_of=job.new.retry_of or None,
        retried_by=job.retried_by or None,
    )


def _shown_source(source: Mapping[str, Any]) -> str:
    """A source in words. An address may be a secret of who started the job: it loses its user, its
    query and its fragment."""
    match source.get("type"):
        case "upload":
            name = source.get("name")
            return f"{name} (uploaded)" if name else "uploaded files"
        case "retry":
            return f"the failures of {source.get('job', 'another job')}"
        case "urls":
            return "a list of URLs"
        case "list":
            return str(source.get("name", ""))[:SHOWN_CHARS]
    return shown_place(source)


def shown_place(source: Mapping[str, Any]) -> str:
    """The path or the address of a source, which loses its user, its query and its fragment."""
    place = str(source.get("path") or source.get("uri") or "")
    if "://" not in place:
        return place[:SHOWN_CHARS]
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[
        :SHOWN_CHARS
    ]
