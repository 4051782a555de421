"""What the routes about jobs share: new jobs, the limit on active jobs, and jobs as JSON.

No route is here. The work of a job is in `workers`.
"""

import logging
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import Response

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import reservation
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest, Unreadable
from clipfleet.common.fetch.post import require_sendable
from clipfleet.common.http.mirror import MirrorIn, is_listable, source_identity
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.http.webhooks import NO_SECRET, WebhookIn
from clipfleet.common.identity import namespace_problem
from clipfleet.common.ledger import Job, JobRoom, NewJob, Webhook, brief
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.process.logs import log_context
from clipfleet.common.settings import Settings

log = logging.getLogger(__name__)


def new_job(
    collection: Collection,
    source: dict[str, Any],
    namespace: str,
    on_existing: Literal["skip", "replace"],
    grant: SourceGrant | None = None,
    *,
    exif: bool = False,
    webhook: Webhook | None = None,
    mirror: MirrorIn | None = None,
    origin: str = "",
) -> NewJob:
    """Describe a job that the ledger does not have yet.

    Args:
        collection: the collection that the job writes to.
        source: what the planner lists; see `common/http/sources.py`.
        namespace: the namespace of the images.
        on_existing: whether an image that is already indexed is skipped or replaced.
        grant: the sources that the job may read; None: the same as the service.
        exif: whether fields from the EXIF of the images become metadata.
        webhook: where the job reports its end.
        mirror: what to do about images that are gone from the source.
        origin: the identity of the source of which `source` has some images, see
            `source_identity`; "": `source` is whole.

    Raises:
        InvalidRequest: the namespace is not valid, or the source cannot be mirrored.
    """
    if problem := namespace_problem(namespace):
        raise InvalidRequest(problem)
    if mirror and not is_listable(source):
        raise InvalidRequest(
            "mirror is for folders, buckets, manifests, archives and lists of them: a source of "
            f"type {_unlistable(source)} does not show what is gone"
        )
    own = source_identity(namespace, source) if is_listable(source) else ""
    return NewJob(
        v=3 if mirror else 1,
        mirror=mirror,
        origin=origin or own,
        incremental=origin not in ("", own),
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=namespace,
        source=source,
        on_existing=on_existing,
        exif=exif,
        grant=grant,
        webhook=webhook,
    )


def _unlistable(source: Mapping[str, Any]) -> str:
    """The type of a source, or of one in a list, that cannot be mirrored."""
    parts = source["sources"] if source.get("type") == "list" else [source]
    return next(str(part.get("type")) for part in parts if not is_listable(part))


def webhook_of(request: WebhookIn | None, settings: Settings) -> Webhook | None:
    """Return the webhook of a request, with the secret of the service where it has none.

    Raises:
        InvalidRequest: its URL may not be used, or there is no secret.
    """
    if request is None:
        return None
    require_webhook_url(request.url, settings)
    secret = request.secret or settings.webhook_secret
    if not secret:
        raise InvalidRequest(
            "webhook.secret is missing, and the service has none of its own "
            f"(CLIPFLEET_WEBHOOK_SECRET): {NO_SECRET}"
        )
    return Webhook(url=request.url, secret=secret)


def require_webhook_url(url: str, settings: Settings) -> None:
    """Raise InvalidRequest for the URL of a webhook that may not be used."""
    try:
        require_sendable(url, settings.fetch.allowed_networks)
    except Unreadable as error:
        raise InvalidRequest(f"webhook.url: {error}") from error


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

    The id, the location of uploaded files, the grant of the key and the secret of the webhook may
    differ.
    """
    differing: Any = {"id": True, "source": {"items"}, "grant": True, "webhook": {"secret"}}
    return brief(new).model_dump(exclude=differing)
