"""Collections: make, look at, delete."""

import logging
from contextlib import suppress

from fastapi import APIRouter, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep, CollectionDep, GatewayDep, Name
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection, check_collection_name
from clipfleet.common.errors import InvalidRequest, NotFound
from clipfleet.common.http.schemas import CollectionIn, CollectionList, CollectionOut
from clipfleet.common.queue.fleet import NoWorker
from clipfleet.common.store import CollectionGone
from clipfleet.common.versions import OtherVersion

router = APIRouter(
    prefix="/v1/collections", tags=["collections"], responses=RESPONSES, route_class=AuthorizedRoute
)

log = logging.getLogger(__name__)

CREATE_S = 60.0


@router.put("/{name}", responses={201: {"model": CollectionOut}, 409: RESPONSES[422]})
@needs("write", makes=True)
async def put_collection(
    name: Name, gateway: GatewayDep, response: Response, body: CollectionIn | None = None
) -> CollectionOut:
    """Make a collection, or make sure that it is as described. 409 when it exists and differs."""
    check_collection_name(name)
    wanted = body or CollectionIn()
    existing = await gateway.call(gateway.catalogue.find, name)
    candidate = await _candidate(name, wanted, existing, gateway)
    if existing is None:
        existing = await _create(candidate, gateway)
        response.status_code = 201 if existing is candidate else 200
    existing.require_same(candidate)
    try:
        return await _shown(existing, gateway)
    except CollectionGone:  # Redis forgot that it was deleted
        await gateway.call(gateway.store.create, existing, seconds=CREATE_S)
        response.status_code = 201
        return await _shown(existing, gateway)


@router.get("/{name}")
@needs("read")
async def get_collection(collection: CollectionDep, gateway: GatewayDep) -> CollectionOut:
    return await _shown(collection, gateway)


@router.get("")
@needs("read")
async def list_collections(gateway: GatewayDep, caller: CallerDep) -> CollectionList:
    found = [one for one in await gateway.call(gateway.catalogue.all) if caller.sees(one.name)]
    shown = []
    for one in found:
        with suppress(CollectionGone):  # deleted meanwhile
            shown.append(await _shown(one, gateway))
    return CollectionList(collections=shown)


@router.delete("/{name}", status_code=204)
@needs("admin")
async def delete_collection(collection: CollectionDep, gateway: GatewayDep) -> None:
    """Delete the collection with all its embeddings; jobs that write to it are cancelled."""
    await gateway.call(gateway.catalogue.remove, collection)
    gateway.forget(collection.name)
    for job_id in await gateway.call(gateway.ledger.active):
        with suppress(NotFound, OtherVersion):  # removed meanwhile; or its workers will cancel it
            await _cancel_if_of(collection, job_id, gateway)
    try:
        await gateway.call(gateway.reconciler.drop, collection, seconds=CREATE_S)
    except Exception as error:  # it has no name any more, and the next round goes on
        log.warning("%s is dropped later: %s", collection.generation, error)


async def _cancel_if_of(collection: Collection, job_id: str, gateway: Gateway) -> None:
    job = await gateway.call(gateway.ledger.job, job_id)
    if job.new.generation == collection.generation:
        await gateway.call(gateway.ledger.cancel, job.id, "the collection was deleted")


async def _candidate(
    name: str, wanted: CollectionIn, existing: Collection | None, gateway: Gateway
) -> Collection:
    """What the caller describes, the gaps filled from the model that workers have."""
    model = wanted.model or (existing.model if existing else gateway.settings.model)
    dim = existing.dim if existing and wanted.dim is None else wanted.dim
    with suppress(NoWorker):
        has = (await gateway.worker("query", model)).dim
        if dim is not None and dim != has:
            raise InvalidRequest(f"dim is {dim}, but the embeddings of {model!r} have {has}")
        dim = has
    if dim is None:
        raise NoWorker("query", model)  # nobody knows the dimension
    metric = wanted.metric
    return Collection.new(name, metric=metric, model=model, dim=dim, fields=wanted.fields)


async def _create(candidate: Collection, gateway: Gateway) -> Collection:
    """The store first, then the name: a name always has its collection."""
    await gateway.call(gateway.store.create, candidate, seconds=CREATE_S)
    winner = await gateway.call(gateway.catalogue.add, candidate)
    if winner.generation == candidate.generation:
        return candidate
    await gateway.call(gateway.store.drop, candidate, seconds=CREATE_S)
    return winner


async def _shown(collection: Collection, gateway: Gateway) -> CollectionOut:
    count = await gateway.call(gateway.store.count, collection)
    return CollectionOut(count=count, **collection.model_dump(exclude={"v", "generation"}))
