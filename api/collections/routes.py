"""Routes that create, list, show and delete collections."""

from contextlib import suppress

from fastapi import APIRouter, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import STORE_TIMEOUT_S, cancel_jobs_of, drop_later
from clipfleet.api.dependencies import CallerDep, CollectionDep, CollectionName, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.common.collection import Collection, check_collection_name
from clipfleet.common.errors import Conflict, InvalidRequest
from clipfleet.common.http.schemas import CollectionIn, CollectionList, CollectionOut
from clipfleet.common.ledger.catalogue import both_generations, name_of_alias
from clipfleet.common.queue.fleet import NoWorker
from clipfleet.common.store import CollectionGone

router = APIRouter(
    prefix="/v1/collections", tags=["collections"], responses=RESPONSES, route_class=AuthorizedRoute
)


@router.put(
    "/{name}",
    summary="Create a collection",
    responses={
        201: {"model": CollectionOut, "description": "The new collection."},
        409: CONFLICT,
    },
)
@needs("write", creates=True)
async def put_collection(
    name: CollectionName,
    gateway: GatewayDep,
    response: Response,
    body: CollectionIn | None = None,
) -> CollectionOut:
    """Create a collection, or check that the existing collection is as described.

    The response is 201 for a new collection, 200 for one that exists already, and 409 when the
    existing collection differs from the description.
    """
    check_collection_name(name)
    if await gateway.call(gateway.catalogue.find_alias, name) is not None:
        raise name_of_alias(name)
    existing = await gateway.call(gateway.catalogue.find, name)
    candidate = await _candidate(name, body or CollectionIn(), existing, gateway)
    if existing is None:
        existing = await _create(candidate, gateway)
        response.status_code = 201 if existing is candidate else 200
    existing.require_same(candidate)
    try:
        return await _collection_out(existing, gateway)
    except CollectionGone:  # it was deleted, but Redis has lost the deletion
        await gateway.call(gateway.store.create, existing, timeout_s=STORE_TIMEOUT_S)
        response.status_code = 201
        return await _collection_out(existing, gateway)


@router.get("/{name}", summary="Get a collection")
@needs("read")
async def get_collection(collection: CollectionDep, gateway: GatewayDep) -> CollectionOut:
    """Return the settings of a collection and the number of its images."""
    return await _collection_out(collection, gateway)


@router.get("", summary="List collections")
@needs("read")
async def list_collections(gateway: GatewayDep, caller: CallerDep) -> CollectionList:
    """Return the collections that the key may see."""
    collections = []
    for collection in await gateway.call(gateway.catalogue.all):
        if caller.sees(collection.name):
            with suppress(CollectionGone):  # deleted meanwhile
                collections.append(await _collection_out(collection, gateway))
    return CollectionList(collections=collections)


@router.delete("/{name}", status_code=204, summary="Delete a collection", responses={409: CONFLICT})
@needs("admin")
async def delete_collection(
    name: CollectionName, collection: CollectionDep, gateway: GatewayDep
) -> None:
    """Delete a collection with all its embeddings, thumbnails and registered sources.

    The jobs that write to it are cancelled. The response is 409 for a collection that has aliases,
    and for an alias in place of the collection's own name.
    """
    if name != collection.name:
        raise Conflict(
            f"{name!r} is an alias of {collection.name!r}; delete the alias with DELETE "
            f"/v1/aliases/{name}, or the collection by its own name",
            collection=collection.name,
        )
    generations = await gateway.call(both_generations, gateway.catalogue, collection)
    for generation in generations:  # the name may have been swapped since it was read
        await gateway.call(gateway.catalogue.remove, generation, unless_aliased=True)
    gateway.forget(collection.name)
    for source in await gateway.call(gateway.registry.all, collection.name):
        await gateway.call(gateway.registry.remove, collection.name, source.name)
    for generation in generations:
        await cancel_jobs_of(generation, "the collection was deleted", gateway)
    for generation in generations:
        await drop_later(generation, gateway)


async def _candidate(
    name: str, body: CollectionIn, existing: Collection | None, gateway: Gateway
) -> Collection:
    """The collection that the caller describes, completed with the dimension of the model."""
    model = body.model or (existing.model if existing else gateway.settings.model)
    dim = existing.dim if existing and body.dim is None else body.dim
    weights_id = ""
    with suppress(NoWorker):
        worker = await gateway.worker("query", model)
        model_dim, weights_id = worker.dim, worker.weights_id
        if dim is not None and dim != model_dim:
            raise InvalidRequest(
                f"dim is {dim}, but the embeddings of {model!r} have {model_dim} numbers"
            )
        dim = model_dim
    if dim is None:
        raise NoWorker("query", model)  # only a worker knows the dimension
    return Collection.new(
        name,
        metric=body.metric,
        model=model,
        dim=dim,
        fields=body.fields,
        weights_id=weights_id,
    )


async def _create(candidate: Collection, gateway: Gateway) -> Collection:
    """Create the collection in the store first, so that a name always has its collection."""
    await gateway.call(gateway.store.create, candidate, timeout_s=STORE_TIMEOUT_S)
    try:
        winner = await gateway.call(gateway.catalogue.add, candidate)
    except Conflict:  # an alias has taken the name meanwhile
        await gateway.call(gateway.store.drop, candidate, timeout_s=STORE_TIMEOUT_S)
        raise
    if winner.generation == candidate.generation:
        return candidate
    await gateway.call(gateway.store.drop, candidate, timeout_s=STORE_TIMEOUT_S)
    return winner


async def _collection_out(collection: Collection, gateway: Gateway) -> CollectionOut:
    count = await gateway.call(gateway.store.count, collection)
    migration = await gateway.call(gateway.catalogue.migration, collection.name)
    return CollectionOut(
        count=count,
        migration=None if migration is None or migration.is_over else migration.state,
        **collection.model_dump(exclude={"v", "generation", "weights_id", "lineage"}),
    )
