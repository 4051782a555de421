"""Routes that count, list or delete all images that match a filter."""

import json
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import delete_rows
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import Count, DeletedSome, DeleteIn, IdPage, Which
from clipfleet.common.identity import DEFAULT_NAMESPACE, namespace_problem
from clipfleet.common.ledger.catalogue import Deletion, both_generations, to_delete_from
from clipfleet.common.store import Record
from clipfleet.common.store.filters import Filter, parse_filter
from clipfleet.common.store.generations import without

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

DELETE_BATCH = 500
DELETE_FILTER_BYTES = 32_000  # Redis keeps the filter of a deletion for an hour
DELETE_BUDGET_S = 20.0  # after that the response says that more images match
MAX_PAGE = 10_000
STORE_TIMEOUT_S = 30.0


@router.post("/count", summary="Count images")
@needs("read")
async def count_images(body: Which, collection: CollectionDep, gateway: GatewayDep) -> Count:
    """Return the number of images in a namespace that match the filter."""
    where = parse_checked_filter(body, collection)
    count = await gateway.call(
        gateway.store.count, collection, body.namespace, where, timeout_s=STORE_TIMEOUT_S
    )
    return Count(count=count)


@router.get("/ids", summary="List image ids")
@needs("read")
async def list_ids(
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
        int, Query(ge=1, le=MAX_PAGE, description="Maximum number of ids to return.")
    ] = 1_000,
    namespace: Annotated[
        str, Query(min_length=1, max_length=256, description="Namespace of the images.")
    ] = DEFAULT_NAMESPACE,
) -> IdPage:
    """Return the ids of a namespace, page by page, in an arbitrary but stable order.

    An id that exists from the first page to the last is listed exactly once, even when other
    images are written in between.
    """
    which = Which(namespace=namespace)
    where = parse_checked_filter(which, collection)
    rows = await scan_page(which.namespace, where, cursor, limit, collection, gateway)
    last = rows[-1].pk if len(rows) == limit else None
    return IdPage(ids=[row.id for row in rows], next=last)


@router.post("/delete", summary="Delete images by filter")
@needs("write")
async def delete_images(
    body: DeleteIn, collection: CollectionDep, gateway: GatewayDep
) -> DeletedSome:
    """Delete all images of a namespace that match the filter, with their thumbnails.

    The source files stay. A request stops after some seconds; `more` is then true, and the client
    sends the same request again. The filter may have 32,000 bytes as JSON.
    """
    if bool(body.filter) == body.all:
        contents = "both a filter and all" if body.all else "neither a filter nor all: true"
        raise InvalidRequest(f"the request has {contents}; give exactly one of them")
    where = parse_checked_filter(body, collection)
    _require_short(body)
    deletion = Deletion(namespace=body.namespace, filter=body.filter or {})
    await gateway.call(gateway.catalogue.record_deletion, collection, deletion)
    until = time.monotonic() + DELETE_BUDGET_S
    deleted, more = await _delete_matching(body.namespace, where, collection, gateway, until)
    generations = await gateway.call(both_generations, gateway.catalogue, collection)
    for other in generations[1:]:  # of a migration; it may have images that this one lacks
        if not more:
            _, more = await _delete_matching(
                body.namespace, where, other, gateway, until, lacking=collection
            )
    return DeletedSome(deleted=deleted, more=more)


async def _delete_matching(
    namespace: str,
    where: Filter | None,
    collection: Collection,
    gateway: Gateway,
    until: float,
    lacking: Collection | None = None,
) -> tuple[int, bool]:
    """Delete the images that match until the time is over; their number, and whether any is left.

    Args:
        until: monotonic seconds.
        lacking: a generation whose images stay: there they may have changed, and match no more.
    """
    deleted, after = 0, ""
    while True:
        rows = await scan_page(namespace, where, after, DELETE_BATCH, collection, gateway)
        keys = [row.pk for row in rows]
        if lacking is not None and keys:
            keys = await gateway.call(
                without, gateway.store, lacking, keys, timeout_s=STORE_TIMEOUT_S
            )
        deleted += await _delete(keys, collection, gateway)
        is_full = len(rows) == DELETE_BATCH
        if not is_full or time.monotonic() >= until:
            return deleted, is_full
        after = rows[-1].pk


def parse_checked_filter(which: Which, collection: Collection) -> Filter | None:
    """Check the namespace of a request and return its parsed filter.

    Raises:
        InvalidRequest: the namespace or the filter is not valid.
    """
    if problem := namespace_problem(which.namespace):
        raise InvalidRequest(problem)
    return parse_filter(which.filter or {}, collection.fields)


def _require_short(which: Which) -> None:
    size = len(json.dumps(which.filter, ensure_ascii=False).encode())
    if size > DELETE_FILTER_BYTES:
        raise InvalidRequest(
            f"the filter of a deletion has at most {DELETE_FILTER_BYTES} bytes as JSON, and this "
            f"one has {size}; delete in several requests with shorter lists"
        )


async def scan_page(
    namespace: str,
    where: Filter | None,
    after: str,
    limit: int,
    collection: Collection,
    gateway: Gateway,
    *,
    only_ids: bool = True,
) -> list[Record]:
    """Read the next rows of a namespace, in the order of their primary keys.

    Args:
        namespace: the namespace.
        where: the filter that the rows pass; None: all rows.
        after: the primary key of the last row before; "": from the beginning.
        limit: the number of rows at most.
        collection: the collection.
        gateway: whose store is read.
        only_ids: read only `pk` and `id`, which is faster.
    """
    return await gateway.call(
        gateway.store.scan,
        collection,
        namespace=namespace,
        where=where,
        after=after,
        limit=limit,
        only_ids=only_ids,
        timeout_s=STORE_TIMEOUT_S,
    )


async def _delete(pks: Sequence[str], collection: Collection, gateway: Gateway) -> int:
    """Delete the images, in both generations of a migration, and return their number."""
    if not pks:
        return 0
    for generation in await gateway.call(to_delete_from, gateway.catalogue, collection):
        await delete_rows(pks, generation, gateway)
    return len(pks)
