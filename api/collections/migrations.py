"""Routes of migrations: a collection gets another model while it is searched."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import (
    STORE_TIMEOUT_S,
    cancel_jobs_of,
    drop_later,
    jobs_of,
)
from clipfleet.api.dependencies import (
    CallerDep,
    CollectionDep,
    CollectionName,
    GatewayDep,
    GrantDep,
)
from clipfleet.api.dispatch.gateway import REFRESH_INTERVAL_S, Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.common.collection import Collection, weights_problem
from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.http.migrations import (
    ComparisonOut,
    ExampleOut,
    FinishIn,
    GenerationOut,
    MigrationIn,
    MigrationOut,
    SwapIn,
    UnreadableOut,
    UnreadablePage,
)
from clipfleet.common.ledger import FINAL, Job
from clipfleet.common.ledger.migrations import Comparison, Migration, is_migration, no_migration
from clipfleet.common.ledger.unreadable import list_of
from clipfleet.common.store import CollectionGone, Record
from clipfleet.common.store.generations import missing_images

router = APIRouter(
    prefix="/v1/collections/{name}/migrations",
    tags=["collections"],
    responses={**RESPONSES, 409: CONFLICT},
    route_class=AuthorizedRoute,
)

KNOWN_S = 2 * REFRESH_INTERVAL_S  # until all gateways know of a swap
POLL_S = 0.25  # while a swap waits for the images that were written just now
MAX_COUNTED = 10_000  # of the images that were written lately
MISSING_PERCENT = 1  # of the images may be missing while images are written without a pause
MAX_PAGE = 1_000
MAX_NAMED = 3  # jobs in an error


@router.post(
    "",
    status_code=201,
    summary="Migrate to another model",
    responses={201: {"description": "The new migration."}},
)
@needs("admin")
async def start_migration(
    body: MigrationIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    grant: GrantDep,
) -> MigrationOut:
    """Build a second generation of the collection with another model, beside searches.

    Images are read again from where they were, as far as the key may read, with low priority.
    Searches are answered from the old generation until the swap. The response is 409 when the
    collection has this model, or a migration that is not over.
    """
    known = await gateway.call(gateway.catalogue.migration, collection.name)
    if known is not None and not known.is_over:
        raise _runs_already(known)
    current = await gateway.call(gateway.catalogue.find, collection.name) or collection
    if current.model == body.model:
        raise Conflict(
            f"the collection {current.name!r} already has the model {body.model!r}",
            collection=current.name,
            model=body.model,
        )
    worker = await gateway.worker("query", body.model)
    await gateway.worker("ingest", body.model)
    new = Collection.new(
        current.name,
        metric=current.metric,
        model=body.model,
        dim=worker.dim,
        fields=current.fields,
        weights_id=worker.weights_id,
    ).model_copy(update={"lineage": current.snapshots})
    await gateway.call(gateway.store.create, new, timeout_s=STORE_TIMEOUT_S)
    migration = Migration.begin(current, new, time.time(), caller.name, grant)
    if not await gateway.call(gateway.catalogue.change_migration, None, migration):
        await gateway.call(gateway.store.drop, new, timeout_s=STORE_TIMEOUT_S)
        winner = await gateway.call(gateway.catalogue.migration, current.name)
        if winner is not None and not winner.is_over:
            raise _runs_already(winner)
        raise NotFound(f"the collection {current.name!r} was deleted", collection=current.name)
    return await _out(migration, gateway)


@router.get("", summary="Get the migration")
@needs("read")
async def get_migration(collection: CollectionDep, gateway: GatewayDep) -> MigrationOut:
    """Return the migration of a collection, or the last one when it is over."""
    return await _out(await _migration(collection.name, gateway), gateway)


@router.get("/unreadable", summary="List images that cannot be copied")
@needs("read")
async def list_unreadable(
    collection: CollectionDep,
    gateway: GatewayDep,
    cursor: Annotated[
        str,
        Query(
            pattern="^([0-9a-f]{32})?$",
            description="The value of `next` of the previous page; empty for the first page.",
        ),
    ] = "",
    limit: Annotated[
        int, Query(ge=1, le=MAX_PAGE, description="Maximum number of images to return.")
    ] = 100,
) -> UnreadablePage:
    """Return the images that the generation without the name lacks, since their files cannot be
    read any more. At most 100,000 are listed. Images that are read now are listed at the end of
    the job that reads them.
    """
    migration = await _migration(collection.name, gateway)
    name = list_of(migration, migration.other)
    page = await gateway.call(gateway.unreadable.page, name, cursor, limit)
    return UnreadablePage(
        images=[
            UnreadableOut(**image.model_dump(include=set(UnreadableOut.model_fields)))
            for image in page
        ],
        next=page[-1].pk if len(page) == limit else None,
    )


@router.post("/pause", summary="Pause the migration")
@needs("admin")
async def pause_migration(collection: CollectionDep, gateway: GatewayDep) -> MigrationOut:
    """Stop to copy images until the migration is resumed."""
    return await _changed(collection, gateway, Migration.paused)


@router.post("/resume", summary="Resume the migration")
@needs("admin")
async def resume_migration(collection: CollectionDep, gateway: GatewayDep) -> MigrationOut:
    """Go on with a paused migration. Images that could not be read are tried again."""
    return await _changed(collection, gateway, Migration.resumed)


@router.post("/swap", summary="Swap to the new model")
@needs("admin")
async def swap_migration(
    collection: CollectionDep,
    gateway: GatewayDep,
    name: CollectionName,
    body: SwapIn | None = None,
) -> MigrationOut:
    """Answer searches from the new generation from now on.

    Each answer comes from one generation, and says which one. The old generation is kept, and gets
    what is written from now on, until `finish`. The response is 409 while images are missing or
    cannot be read, unless `force` is true.
    """
    migration = await _migration(collection.name, gateway)
    target = migration.swapped(time.time())  # Conflict when that is not possible
    if target is not migration and not (body and body.force):
        await _require_answers(migration.new, gateway)
        await _require_complete(migration, gateway)
        await _require_readable(migration, gateway)
    return await _changed(collection, gateway, Migration.swapped, name)


@router.post("/rollback", summary="Go back to the old model")
@needs("admin")
async def roll_back_migration(
    collection: CollectionDep,
    gateway: GatewayDep,
    name: CollectionName,
    body: SwapIn | None = None,
) -> MigrationOut:
    """Answer searches from the old generation again. The migration goes on as before the swap.

    The response is 409 while images that were written since the swap are missing in the old
    generation, unless `force` is true.
    """
    migration = await _migration(collection.name, gateway)
    target = migration.rolled_back(time.time())
    if target is not migration and not (body and body.force):
        await _require_answers(migration.old, gateway)
        await _require_complete(migration, gateway)
    return await _changed(collection, gateway, Migration.rolled_back, name)


@router.post("/finish", summary="Finish the migration")
@needs("admin")
async def finish_migration(
    collection: CollectionDep, gateway: GatewayDep, body: FinishIn | None = None
) -> MigrationOut:
    """Delete the old generation. There is no way back.

    The response is 409 while jobs that began before the swap still write to the old generation, or
    while the new one lacks images of it that can be read. With `force`, these jobs are cancelled.
    """
    migration = await _migration(collection.name, gateway)
    if migration.finished(time.time()) is not migration:
        await asyncio.sleep(min(_until_known(migration), gateway.settings.call_timeout_s))
        if not (body and body.force):
            await _require_no_writers(migration, gateway)
            await _require_complete(migration, gateway, of_old=True)
        else:
            reason = "its generation was given up by the end of a migration"
            await cancel_jobs_of(migration.old, reason, gateway)
    return await _changed(collection, gateway, Migration.finished)


@router.delete("", summary="Cancel the migration")
@needs("admin")
async def cancel_migration(collection: CollectionDep, gateway: GatewayDep) -> MigrationOut:
    """Delete the new generation. A migration that is swapped has to be rolled back first."""
    return await _changed(collection, gateway, Migration.cancelled)


async def _migration(name: str, gateway: Gateway) -> Migration:
    migration = await gateway.call(gateway.catalogue.migration, name)
    if migration is None:
        raise no_migration(name)
    return migration


def _runs_already(migration: Migration) -> Conflict:
    return Conflict(
        f"the collection {migration.name!r} is being migrated to the model "
        f"{migration.new.model!r} already ({migration.state}); cancel or finish that migration "
        "first",
        migration=migration.id,
        model=migration.new.model,
        state=migration.state,
    )


async def _changed(
    collection: Collection,
    gateway: Gateway,
    change: Callable[[Migration, float], Migration],
    *names: str,
) -> MigrationOut:
    """Change the migration in one step, whoever else changes it; then do what follows from that.

    A request that is repeated does the rest of what the first one could not do.
    """
    while True:
        before = await _migration(collection.name, gateway)
        after = change(before, time.time())
        if after is before or await gateway.call(gateway.catalogue.change_migration, before, after):
            break
    for name in (collection.name, *names):
        gateway.forget(name)
    for job_id in set(before.jobs) - set(after.jobs):
        with suppress(NotFound):
            await gateway.call(gateway.ledger.cancel, job_id, f"the migration is {after.state}")
    if after.dropped:
        await cancel_jobs_of(after.dropped, f"the migration is {after.state}", gateway)
        if after is not before:
            await drop_later(after.dropped, gateway)
    return await _out(await _migration(collection.name, gateway), gateway)


async def _require_answers(collection: Collection, gateway: Gateway) -> None:
    """Raise NoWorker unless a worker answers queries with the model of the generation.

    Raises:
        Conflict: its weights are not those that the generation was built with.
    """
    worker = await gateway.worker("query", collection.model)
    if problem := weights_problem(collection, worker.weights_id):
        raise Conflict(problem, model=collection.model)


async def _require_complete(
    migration: Migration, gateway: Gateway, *, of_old: bool = False
) -> None:
    """Wait a little until the other generation has all images, and raise Conflict if it has not.

    Args:
        migration: the migration.
        gateway: has the parts.
        of_old: whether the new generation must have all images of the old one, whichever has the
            name.
    """
    source = migration.old if of_old else migration.current
    target = migration.new if source is migration.old else migration.old
    wait_s = gateway.settings.call_timeout_s
    until = time.monotonic() + wait_s
    while True:
        images = await gateway.call(gateway.store.count, source)
        missing = await _missing(migration, source, target, images, gateway)
        if not missing:
            return
        is_late = time.monotonic() > until
        if is_late or not migration.complete_at:
            break
        await asyncio.sleep(min(POLL_S, wait_s))
    are_few = 100 * missing <= MISSING_PERCENT * images
    if migration.complete_at and are_few and not of_old:
        return  # images are written without a pause: the next passes copy these, too
    raise Conflict(
        f"{missing} of {images} images are not copied to the model {target.model!r} yet, or were "
        "deleted just now; wait until `missing` is 0, or set `force`",
        missing=missing,
        images=images,
        state=migration.state,
    )


async def _require_readable(migration: Migration, gateway: Gateway) -> None:
    lost = await gateway.call(gateway.unreadable.count, list_of(migration, migration.new))
    if lost:
        raise Conflict(
            f"{lost} images cannot be read any more, and would not be found after the swap; "
            f"GET /v1/collections/{migration.name}/migrations/unreadable lists them. Set `force` "
            "to leave them out",
            unreadable=lost,
        )


def _until_known(migration: Migration) -> float:
    """Seconds until all gateways know of the swap, and begin no job for the old generation."""
    since_s = time.time() - (migration.swapped_at or 0.0)
    return min(KNOWN_S, max(0.0, KNOWN_S - since_s))


async def _require_no_writers(migration: Migration, gateway: Gateway) -> None:
    jobs = [
        job for job in await jobs_of(migration.old, gateway) if not is_migration(job.new.source)
    ]
    if jobs:
        named = ", ".join(job.id for job in jobs[:MAX_NAMED])
        raise Conflict(
            f"{len(jobs)} jobs that began before the swap still write to the old generation "
            f"({named}); wait for their end, or set `force` to cancel them",
            jobs=len(jobs),
        )


async def _missing(
    migration: Migration, source: Collection, target: Collection, images: int, gateway: Gateway
) -> int:
    """How many images of one generation the other one lacks, beside those that cannot be read."""
    name = list_of(migration, target)
    copies = await gateway.call(gateway.store.count, target)
    lost = await gateway.call(gateway.unreadable.count, name)
    by_count = images - copies - lost
    copying = migration.forward if source is migration.old else migration.backward
    if by_count > 0:
        return by_count
    if by_count < 0 and not migration.swapped_at:
        return -by_count  # copies of images that were deleted: the planner deletes them, too

    def recent() -> int:
        pages = missing_images(
            gateway.store, source, target, since=copying.since, is_older=bool(migration.swapped_at)
        )
        return sum(_readable(pages, name, gateway))

    return await gateway.call(recent, timeout_s=STORE_TIMEOUT_S)


def _readable(pages: Iterator[list[Record]], name: str, gateway: Gateway) -> Iterator[int]:
    total = 0
    for page in pages:
        lost = gateway.unreadable.known(name, [row.pk for row in page])
        number = sum(lost.get(row.pk) != row.indexed_at for row in page)
        yield number
        total += number
        if total >= MAX_COUNTED:
            return


async def _out(migration: Migration, gateway: Gateway) -> MigrationOut:
    old, new = await _images(migration.old, gateway), await _images(migration.new, gateway)
    current, other = migration.current, migration.other
    images, copies = (old, new) if current is migration.old else (new, old)
    jobs = [job for job_id in migration.jobs if (job := await _job(job_id, gateway))]
    lost = await gateway.call(gateway.unreadable.count, list_of(migration, other))
    lost += sum(job.failed for job in jobs if job.new.generation == other.generation)
    missing = 0 if migration.is_over else max(0, images - copies - lost)
    rate = sum(map(_rate, jobs)) or None
    return MigrationOut(
        id=migration.id,
        collection=migration.name,
        state=migration.state,
        old=_generation_out(migration.old, old, current),
        new=_generation_out(migration.new, new, current),
        missing=missing,
        unreadable=lost,
        images_per_second=rate,
        eta_s=round(missing / rate, 1) if rate else None,
        waiting=next((job.waiting for job in jobs if job.waiting), ""),
        error=migration.error,
        jobs=[job.id for job in jobs],
        comparison=_comparison_out(migration.comparison),
        created_at=migration.created_at,
        changed_at=migration.changed_at,
    )


async def _images(collection: Collection, gateway: Gateway) -> int:
    try:
        return await gateway.call(gateway.store.count, collection)
    except CollectionGone:
        return 0


async def _job(job_id: str, gateway: Gateway) -> Job | None:
    try:
        job = await gateway.job(job_id)
    except NotFound:  # it begins just now
        return None
    return None if job.state in FINAL else job


def _rate(job: Job) -> float:
    """Images per second since the job began."""
    if not job.done or job.started_at is None:
        return 0.0
    return round(job.done / max(0.1, time.time() - job.started_at), 2)


def _generation_out(collection: Collection, images: int, current: Collection) -> GenerationOut:
    return GenerationOut(
        generation=collection.generation,
        model=collection.model,
        dim=collection.dim,
        images=images,
        answers=collection.generation == current.generation,
    )


def _comparison_out(comparison: Comparison | None) -> ComparisonOut | None:
    if comparison is None:
        return None
    return ComparisonOut(
        queries=comparison.queries,
        overlap_at_10=comparison.overlap,
        labelled=comparison.labelled,
        precision_at_10_old=comparison.precision_old,
        precision_at_10_new=comparison.precision_new,
        measured_at=comparison.at,
        examples=[
            ExampleOut.model_validate(example.model_dump()) for example in comparison.examples
        ],
    )
