"""Routes that register, list, show, run, pause and delete the sources of a collection."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import (
    AccessDep,
    CallerDep,
    CollectionDep,
    GatewayDep,
    GrantDep,
)
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.requests import describe_job
from clipfleet.api.sources.events import keys_for, parse_events
from clipfleet.api.sources.scheduler import TRIES, Scheduler, ended_run, look_of
from clipfleet.api.sources.shown import source_out
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest, NotFound, Unavailable
from clipfleet.common.http.registered import NAME, EventsOut, SourceIn, SourceList, SourceOut
from clipfleet.common.http.schemas import JobIn, JobOut
from clipfleet.common.ledger import FINAL
from clipfleet.common.ledger.registered import RegisteredSource, unknown_source
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.versions import OtherVersion

router = APIRouter(
    prefix="/v1/collections/{name}/sources",
    tags=["sources"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

MAX_SOURCES = 1_000  # of one collection
SourceName = Annotated[
    str,
    Path(
        pattern=NAME,
        description="Name of the source in the collection: letters, digits, '.', '_' and '-', 63 "
        "at most.",
        examples=["camera-7"],
    ),
]
CREATED: dict[int | str, dict[str, Any]] = {
    201: {"model": SourceOut, "description": "The new source."}
}


@router.put("/{source}", summary="Register a source", responses=CREATED)
@needs("write", body="job")
async def put_source(
    source: SourceName,
    body: SourceIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    grant: GrantDep,
    response: Response,
) -> SourceOut:
    """Register a source under a name, or replace the source that has the name.

    The body is that of a job, and says when the job is to run. With `interval` the first run begins
    at once. Each run is an ordinary job with the rights that the key of this request has at that
    time. A run that was missed is made up once. A run does not begin while another run of the
    source is under way; it begins when that has ended.

    The response is 201 for a new source, and 200 for one that was replaced. A request that changes
    nothing starts nothing. It is 403 for a source that the key or the service may not read.
    """
    _require_interval(body, gateway)
    describe_job(body, collection, grant, gateway)
    fields = set(JobIn.model_fields)
    job = body.model_dump(mode="json", include=fields, exclude_unset=True)
    for _ in range(TRIES):
        before = await gateway.call(gateway.registry.find, collection.name, source)
        if before is None:
            await _require_room(collection, gateway)
        now = await gateway.call(gateway.registry.now)
        record = _registered(before, collection.name, source, body, job, caller.name, now)
        look = look_of(record, now)
        if saved := await gateway.call(gateway.registry.save, before, record, look):
            response.status_code = 200 if before else 201
            return await _shown(saved, gateway)
    raise _busy(source)


@router.get("", summary="List sources")
@needs("read")
async def list_sources(collection: CollectionDep, gateway: GatewayDep) -> SourceList:
    """Return the sources of a collection, with their last run, their next run, and problems."""
    records = await gateway.call(gateway.registry.all, collection.name)
    shown = await asyncio.gather(*(_shown(record, gateway) for record in records))
    return SourceList(sources=list(shown))


@router.get("/{source}", summary="Get a source")
@needs("read")
async def get_source(
    source: SourceName, collection: CollectionDep, gateway: GatewayDep
) -> SourceOut:
    """Return a source, with its last run, its next run, and why it cannot run."""
    return await _shown(await _find(source, collection, gateway), gateway)


@router.delete("/{source}", status_code=204, summary="Delete a source")
@needs("write")
async def delete_source(source: SourceName, collection: CollectionDep, gateway: GatewayDep) -> None:
    """Delete a source. Its images stay in the collection, and a job that is under way goes on."""
    if not await gateway.call(gateway.registry.remove, collection.name, source):
        raise unknown_source(collection.name, source)


@router.post("/{source}/run", status_code=202, summary="Run a source", responses={409: CONFLICT})
@needs("write")
async def run_source(
    source: SourceName,
    collection: CollectionDep,
    gateway: GatewayDep,
    access: AccessDep,
    response: Response,
) -> JobOut:
    """Start a run of a source now, also when it is paused. Its schedule does not change.

    The response is the job. It is 409 while a run of the source is under way, and 403 when the key
    that registered the source may not run it any more.
    """
    scheduler = Scheduler(gateway, access)
    job = await gateway.call(scheduler.run_now, collection.name, source)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


@router.post("/{source}/pause", summary="Pause a source")
@needs("write")
async def pause_source(
    source: SourceName, collection: CollectionDep, gateway: GatewayDep
) -> SourceOut:
    """Let a source start no run by itself. A job that is under way goes on, and events wait."""
    return await _pause(source, collection, gateway, paused=True)


@router.post("/{source}/resume", summary="Resume a source")
@needs("write")
async def resume_source(
    source: SourceName, collection: CollectionDep, gateway: GatewayDep
) -> SourceOut:
    """Let a source that was paused start runs again. Runs that were missed are made up by one."""
    return await _pause(source, collection, gateway, paused=False)


@router.post("/{source}/events", status_code=202, summary="Report changes of a source")
@needs("write", body="job")
async def report_events(
    source: SourceName,
    collection: CollectionDep,
    gateway: GatewayDep,
    body: Annotated[
        dict[str, Any] | list[Any],
        Body(
            description="A notification of S3 or MinIO, an EventBridge event of S3, either of them "
            'in an envelope of SNS or SQS, or {"keys": [...]} with keys relative to the source.',
            examples=[{"keys": ["2024/cat.jpg"]}],
        ),
    ],
) -> EventsOut:
    """Take events about objects of a source, which are indexed, or removed, a moment later.

    Events are collected for two seconds, or until there are 1,000 keys. One job then looks up these
    keys: what exists is indexed as a run of the source does it, and what does not is removed. So
    events may arrive twice, late, and in any order. They are stored when this is answered.

    Events of other buckets and prefixes, of other kinds, and about files that are no images, are
    ignored and counted. The response is 503 when too many keys wait.
    """
    events = parse_events(body)
    record = await _find(source, collection, gateway)
    keys = keys_for(record, events)
    limit = gateway.settings.limits.source_events
    add = gateway.registry.add_keys
    waiting = await gateway.call(add, collection.name, source, list(dict.fromkeys(keys)), limit)
    reported = len(events.objects) + len(events.keys)
    return EventsOut(
        accepted=len(keys),
        ignored=max(0, reported - len(keys)) + events.ignored,
        waiting_keys=waiting.count,
    )


async def _pause(
    source: str, collection: Collection, gateway: Gateway, *, paused: bool
) -> SourceOut:
    for _ in range(TRIES):
        before = await _find(source, collection, gateway)
        now = await gateway.call(gateway.registry.now)
        after = before.model_copy(update={"paused": paused})
        if saved := await gateway.call(gateway.registry.save, before, after, look_of(after, now)):
            return await _shown(saved, gateway)
    raise _busy(source)


async def _find(source: str, collection: Collection, gateway: Gateway) -> RegisteredSource:
    record = await gateway.call(gateway.registry.find, collection.name, source)
    if record is None:
        raise unknown_source(collection.name, source)
    return record


async def _shown(record: RegisteredSource, gateway: Gateway) -> SourceOut:
    """Show a source. A job that has ended counts as ended before the scheduler notices it."""
    if record.current and record.current.created:
        with suppress(NotFound, OtherVersion):
            job = await gateway.call(gateway.ledger.job, record.current.job)
            if job.state in FINAL:
                record = record.model_copy(
                    update={"current": None, "last": ended_run(record.current, job)}
                )
    waiting = await gateway.call(gateway.registry.waiting, record.collection, record.name)
    return source_out(record, waiting)


def _registered(
    before: RegisteredSource | None,
    collection: str,
    name: str,
    body: SourceIn,
    job: dict[str, Any],
    key: str,
    now: float,
) -> RegisteredSource:
    """The record of a source after a request. It keeps what the request does not change."""
    first = now if body.interval else None
    if before is None:
        return RegisteredSource(
            collection=collection,
            name=name,
            job=job,
            interval_s=body.interval,
            paused=bool(body.paused),
            key=key,
            created_at=now,
            next_run=first,
        )
    changes: dict[str, Any] = {"job": job, "key": key, "interval_s": body.interval}
    changes["paused"] = before.paused if body.paused is None else body.paused
    changes |= {"problem": "", "retry_at": 0.0, "keys_at": 0.0, "failures": 0}
    if before.job == job and before.next_run and body.interval:
        changes["next_run"] = min(before.next_run, now + body.interval)
    else:
        changes["next_run"] = first
    return before.model_copy(update=changes)


def _require_interval(body: SourceIn, gateway: Gateway) -> None:
    shortest = gateway.settings.limits.source_interval_s
    if body.interval is not None and body.interval < shortest:
        raise InvalidRequest(
            f"interval is {body.interval:g} s; the shortest is {shortest:g} s "
            "(CLIPFLEET_LIMITS__SOURCE_INTERVAL_S)"
        )


async def _require_room(collection: Collection, gateway: Gateway) -> None:
    if len(await gateway.call(gateway.registry.all, collection.name)) >= MAX_SOURCES:
        raise InvalidRequest(
            f"collection {collection.name!r} has {MAX_SOURCES} sources, which is the limit; delete "
            "one, or register a source of type `list`"
        )


def _busy(source: str) -> Unavailable:
    return Unavailable(f"source {source!r} is being changed by other requests; try again")
