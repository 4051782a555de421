"""The progress of a job as server-sent events."""

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
from clipfleet.api.dependencies import AccessDep, CallerDep, GatewayDep, JobId
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.errors import NotFound, Unauthorized, Unavailable
from clipfleet.common.ledger import FINAL, Job
from clipfleet.common.ledger.shown import job_out

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

POLL_INTERVAL_S = 0.5
KEEPALIVE_S = 15.0  # proxies close connections that are silent for about a minute
RECONNECT_MS = 2_000
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second one is for nginx


async def _stream_slot(gateway: GatewayDep) -> AsyncIterator[None]:
    """Hold one of the gateway's event streams until the response has ended."""
    with gateway.event_streams.hold():
        yield


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job's events",
    response_class=StreamingResponse,
    dependencies=[Depends(_stream_slot)],
    responses={
        200: {"content": {"text/event-stream": {}}},
        204: {"description": "Last-Event-ID names the last event of the job."},
    },
)
@needs("read")
async def follow_job(
    job_id: JobId,
    gateway: GatewayDep,
    caller: CallerDep,
    access: AccessDep,
    last_event_id: Annotated[
        str, Header(description="The id of the last event that the client has received.")
    ] = "",
) -> Response:
    """Send server-sent events until the job has ended.

    - `job`: the job, as `GET /v1/jobs/{id}` returns it. It is sent at once and after every change,
      at most twice a second. The last one has the final state.
    - `waiting`: the service cannot read the job at the moment; `detail` says why. The stream
      continues.
    - `deleted`: the job was deleted. The stream ends.
    - `unauthorized`: the API key is no longer valid. The stream ends.
    """
    job = await gateway.job(job_id)
    if job.state in FINAL and last_event_id == _event_id(job):
        return Response(status_code=204)  # a browser does not reconnect after this status
    check_key = partial(access.require_valid_key, caller, "read", job.new.collection)
    return EventSourceResponse(events(job, gateway, check_key), headers=HEADERS)


async def events(
    job: Job, gateway: Gateway, check_key: Callable[[], None] = lambda: None
) -> AsyncGenerator[bytes]:
    """Yield the events of a job, from its present state to its end, as lines of the stream.

    Args:
        job: the job as it was read last.
        gateway: where the job is read again.
        check_key: is called before each reading; raises Unauthorized to end the stream.
    """
    yield _job_event(job, retry=RECONNECT_MS)
    shown, outage, sent_at = job, "", time.monotonic()
    while shown.state not in FINAL:
        await asyncio.sleep(POLL_INTERVAL_S)
        event = b""
        try:
            check_key()
            job, recovered, outage = await gateway.job(shown.id), bool(outage), ""
        except NotFound as error:
            yield _event("deleted", error.detail)
            return
        except Unauthorized as error:
            yield _event("unauthorized", error.detail)
            return
        except Unavailable as error:
            event, recovered = b"" if outage else _event("waiting", error.detail), False
            outage = error.detail
        if job != shown or recovered:
            shown, event = job, _job_event(job)
        elif not event and time.monotonic() - sent_at > KEEPALIVE_S:
            event = format_sse_event(comment="still here")
        if event:
            sent_at = time.monotonic()
            yield event


def _job_event(job: Job, **options: Any) -> bytes:
    data = job_out(job).model_dump_json()
    return format_sse_event(event="job", data_str=data, id=_event_id(job), **options)


def _event(name: str, detail: str) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps({"detail": detail}))


def _event_id(job: Job) -> str:
    """An id that changes whenever the job makes progress."""
    return f"{job.state}-{job.done + job.failed + job.skipped}-{job.total}"
