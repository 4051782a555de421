"""All images that pass a filter: count them, list their ids, delete them."""

import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import Count, DeletedSome, DeleteIn, IdPage, Which
from clipfleet.common.identity import DEFAULT_NAMESPACE, namespace_problem
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.ledger.catalogue import Deletion
from clipfleet.common.store import Record
from clipfleet.common.store.filters import Filter, parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

STEP = 500
DELETE_S = 20.0  # then it answers that there are more
PAGE = 10_000
STEP_S = 30.0


@router.post("/count")
@needs("read")
async def count_images(body: Which, collection: CollectionDep, gateway: GatewayDep) -> Count:
    """How many images of a namespace pass the filter."""
    where = checked(body, collection)
    count = gateway.store.count
    found = await gateway.call(count, collection, body.namespace, where, seconds=STEP_S)
    return Count(count=found)


@router.get("/ids")
@needs("read")
async def list_ids(
    collection: CollectionDep,
    gateway: GatewayDep,
    cursor: Annotated[str, Query(pattern="^([0-9a-f]{32})?$")] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 1_000,
    namespace: Annotated[str, Query(min_length=1, max_length=256)] = DEFAULT_NAMESPACE,
) -> IdPage:
    """The ids of a namespace, page by page, in an order of their own. An id that is there from the
    first page to the last is listed once, whatever is written meanwhile."""
    which = Which(namespace=namespace)
    rows = await _page(which, checked(which, collection), cursor, limit, collection, gateway)
    last = rows[-1].pk if len(rows) == limit else None
    return IdPage(ids=[row.id for row in rows], next=last)


@router.post("/delete")
@needs("write")
async def delete_images(
    body: DeleteIn, collection: CollectionDep, gateway: GatewayDep
) -> DeletedSome:
    """Remove all images of a namespace that pass the filter, with their thumbnails. The source
    files are not touched. It stops after some seconds, and `more` says so: then say it again."""
    if bool(body.filter) == body.all:
        said = "both a filter and all" if body.all else "neither a filter nor all: true"
        raise InvalidRequest(f"there is {said}: say which images to delete")
    where = checked(body, collection)
    deletion = Deletion(namespace=body.namespace, filter=body.filter or {})
    await gateway.call(gateway.catalogue.record_deletion, collection, deletion)
    until = time.monotonic() + DELETE_S
    rows = await _page(body, where, "", STEP, collection, gateway)
    deleted = await _delete(rows, collection, gateway)
    while len(rows) == STEP and time.monotonic() < until:
        rows = await _page(body, where, rows[-1].pk, STEP, collection, gateway)
        deleted += await _delete(rows, collection, gateway)
    return DeletedSome(deleted=deleted, more=len(rows) == STEP)


def checked(which: Which, collection: Collection) -> Filter | None:
    """Its filter. InvalidRequest for one, or for a namespace, that there cannot be."""
    if problem := namespace_problem(which.namespace):
        raise InvalidRequest(problem)
    return parse_filter(which.filter or {}, collection.fields)


async def _page(
    which: Which,
    where: Filter | None,
    after: str,
    limit: int,
    collection: Collection,
    gateway: Gateway,
) -> list[Record]:
    return await gateway.call(
        gateway.store.scan,
        collection,
        namespace=which.namespace,
        where=where,
        after=after,
        limit=limit,
        only_ids=True,
        seconds=STEP_S,
    )


async def _delete(rows: Sequence[Record], collection: Collection, gateway: Gateway) -> int:
    """How many. Thumbnails first: a row that stays behind can be deleted again."""
    if not rows:
        return 0
    keys = [thumbnail_key(collection, row.pk) for row in rows]
    await gateway.call(gateway.blobs.delete_all, keys, seconds=STEP_S)
    await gateway.call(gateway.store.delete, collection, [row.pk for row in rows], seconds=STEP_S)
    await gateway.call(gateway.catalogue.record_write, collection)
    return len(rows)
