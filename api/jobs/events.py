"""A job's progress as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import AccessDep, CallerDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.jobs.service import job_out
from clipfleet.common.errors import NotFound, Unauthorized, Unavailable
from clipfleet.common.ledger import FINAL, Job

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

EVERY_S = 0.5
KEEPALIVE_S = 15.0  # proxies end connections that are silent for a minute or so
RECONNECT_MS = 2_000
BUSY_S = 10
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter: nginx


async def _a_place(gateway: GatewayDep) -> AsyncIterator[None]:
    """Held until the stream has ended, one way or the other."""
    if gateway.followers >= gateway.settings.limits.event_streams:
        said = "too many follow jobs' events here just now; GET /v1/jobs/{id} can be polled"
        raise Unavailable(said, retry_after_s=BUSY_S)
    gateway.followers += 1
    try:
        yield
    finally:
        gateway.followers -= 1


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    dependencies=[Depends(_a_place)],
    responses={
        200: {"content": {"text/event-stream": {}}},
        204: {"description": "Last-Event-ID names the job's end: there is no more"},
    },
)
@needs("read")
async def follow_job(
    job_id: str,
    gateway: GatewayDep,
    caller: CallerDep,
    access: AccessDep,
    last_event_id: Annotated[str, Header()] = "",
) -> Response:
    """Server-sent events until the job has ended.

    `job`, at once and after every change, at most two a second: the job, as `GET /v1/jobs/{id}`
    shows it; the last one has the state it ended in. `waiting`: the service cannot see the job just
    now and says why; the stream goes on. `deleted`: there is no such job any more. `unauthorized`:
    the API key is not in force any more.
    """
    job = await gateway.job(job_id)
    if job.state in FINAL and last_event_id == _event_id(job):
        return Response(status_code=204)  # this is how browsers are told not to come back
    allowed = partial(access.require_in_force, caller, "read", job.new.collection)
    return EventSourceResponse(events(job, gateway, allowed), headers=HEADERS)


async def events(
    job: Job, gateway: Gateway, allowed: Callable[[], None] = lambda: None
) -> AsyncGenerator[bytes]:
    """The events of a job, from how it stands to its end.

    Args:
        allowed: is called before each look at the job; raises Unauthorized to end the events.
    """
    yield _of(job, retry=RECONNECT_MS)
    shown, why, sent_at = job, "", time.monotonic()
    while shown.state not in FINAL:
        await asyncio.sleep(EVERY_S)
        event = b""
        try:
            allowed()
            job, was_away, why = await gateway.job(shown.id), bool(why), ""
        except NotFound as error:
            yield _event("deleted", error.detail)
            return
        except Unauthorized as error:
            yield _event("unauthorized", error.detail)
            return
        except Unavailable as error:
            event, was_away = b"" if why else _event("waiting", error.detail), False
            why = error.detail
        if job != shown or was_away:
            shown, event = job, _of(job)
        elif not event and time.monotonic() - sent_at > KEEPALIVE_S:
            event = format_sse_event(comment="still here")
        if event:
            sent_at = time.monotonic()
            yield event


def _of(job: Job, **more: Any) -> bytes:
    data = job_out(job).model_dump_json()
    return format_sse_event(event="job", data_str=data, id=_event_id(job), **more)


def _event(name: str, detail: str) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps({"detail": detail}))


def _event_id(job: Job) -> str:
    """How far the job is."""
    return f"{job.state}-{job.done + job.failed + job.skipped}-{job.total}"
