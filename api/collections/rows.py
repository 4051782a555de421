"""The route that returns whole images page by page, for exports that go on after a stop."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.export import GROUP_BYTES, export_slot
from clipfleet.api.collections.images import key_of
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import RowPage, RowsIn
from clipfleet.common.identity import DEFAULT_NAMESPACE, namespace_problem
from clipfleet.common.store import Record, Store
from clipfleet.common.store.filters import parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

SAME = ("id", "namespace", "uri", "content_hash", "bytes", "width", "height", "indexed_at")


@router.post(
    "/rows",
    summary="Read images page by page",
    dependencies=[Depends(export_slot)],
    responses={200: {"model": RowPage}},
)
@needs("read")
async def read_rows(body: RowsIn, collection: CollectionDep, gateway: GatewayDep) -> Response:
    """Return images with metadata and embeddings, page by page, in an arbitrary but stable order.

    An image that exists from the first page to the last is returned exactly once, even when other
    images are written in between. A page has fewer images than `limit` where embeddings are large;
    `next` alone tells whether it is the last one. With `ids`, the images come in the order of the
    ids.
    """
    if body.namespace is not None and (problem := namespace_problem(body.namespace)):
        raise InvalidRequest(problem)
    read = _by_ids if body.ids is not None else _by_filter
    content = await gateway.export(read, gateway.store, collection, body)
    return Response(content, media_type="application/json")


def _by_ids(store: Store, collection: Collection, body: RowsIn) -> bytes:
    namespace = body.namespace or DEFAULT_NAMESPACE
    keys = [key_of(namespace, image_id) for image_id in body.ids or ()]
    records = store.fetch(collection, keys)
    rows = [records[key] for key in keys if key in records]
    return _page(collection, rows, None, body.include_values)


def _by_filter(store: Store, collection: Collection, body: RowsIn) -> bytes:
    limit = body.limit
    if body.include_values:
        limit = min(limit, max(1, GROUP_BYTES // (4 * collection.dim)))
    rows = store.scan(
        collection,
        namespace=body.namespace,
        where=parse_filter(body.filter or {}, collection.fields),
        after=body.cursor,
        limit=limit,
        include_values=body.include_values,
    )
    last = rows[-1].pk if len(rows) == limit else None
    return _page(collection, rows, last, body.include_values)


def _page(
    collection: Collection, rows: Sequence[Record], last: str | None, include_values: bool
) -> bytes:
    """A `RowPage` as JSON."""
    page = {
        "rows": [_row(row, include_values) for row in rows],
        "next": last,
        "created_at": collection.created_at,
    }
    return json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode()


def _row(row: Record, include_values: bool) -> dict[str, Any]:
    values = np.asarray(row.embedding, "<f4").tobytes() if include_values else None
    return {
        **{name: getattr(row, name) for name in SAME},
        "label": row.label or None,
        "metadata": row.metadata,
        "embedding": None if values is None else base64.b64encode(values).decode(),
    }
