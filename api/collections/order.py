"""The route that lists the ids of images in the order of a field.

No store sorts: Milvus has no ORDER BY. So the values are read and sorted here, for a bounded number
of images.
"""

import re
from typing import Any

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.bulk import STORE_TIMEOUT_S, parse_checked_filter, scan_page
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import BUILTIN_FIELDS, ELEMENTS, RESERVED, Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import OrderedIds, OrderIn
from clipfleet.common.identity import text_problem
from clipfleet.common.store import Record
from clipfleet.common.store.filters import Filter, value_at

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

READ = 2_000  # records at once; the metadata of one may have 64 kB
READ_IDS = 10_000
_NUMBERS = re.compile(r"(\d+)")

Key = tuple[Any, ...]


@router.post("/ids", summary="List image ids in order")
@needs("read")
async def order_ids(body: OrderIn, collection: CollectionDep, gateway: GatewayDep) -> OrderedIds:
    """Return the ids of the images that pass the filter, in the order of a field.

    Text is compared without regard to case, and numbers in it by their value: `photo 2` comes
    before `photo 10`. Numbers come before texts, and texts before truth values. Images without a
    value come last. The request is refused if more than 10,000 images pass the filter.
    """
    where = parse_checked_filter(body, collection)
    if problem := text_problem("order_by", body.order_by, 256):
        raise InvalidRequest(problem)
    if body.order_by in RESERVED - BUILTIN_FIELDS.keys():
        raise InvalidRequest(f"{body.order_by!r} is not a field to order by")
    if collection.fields.get(body.order_by) in ELEMENTS:
        kind = collection.fields[body.order_by]
        raise InvalidRequest(f"lists have no order, and {body.order_by!r} is {kind}")
    await _require_few(body, where, collection, gateway)
    with_value: list[tuple[Key, Key, str]] = []
    without: list[tuple[None, Key, str]] = []
    after, limit = "", READ_IDS if body.order_by == "id" else READ
    while True:
        records = await scan_page(
            body.namespace, where, after, limit, collection, gateway,
            only_ids=body.order_by == "id",
        )  # fmt: skip
        for record in records:
            key, name = _key(_value(record, body.order_by)), _natural(record.id)
            if key is None:
                without.append((None, name, record.id))
            else:
                with_value.append((key, name, record.id))
        if len(records) < limit:
            break
        after = records[-1].pk
    ids = await gateway.parse(_sorted, with_value, without, body.descending)
    return OrderedIds(ids=ids)


async def _require_few(
    body: OrderIn, where: Filter | None, collection: Collection, gateway: Gateway
) -> None:
    limit = gateway.settings.limits.window
    count = await gateway.call(
        gateway.store.count, collection, body.namespace, where, timeout_s=STORE_TIMEOUT_S
    )
    if count > limit:
        raise InvalidRequest(
            f"{count} images pass the filter, and at most {limit} can be put in order "
            "(CLIPFLEET_LIMITS__WINDOW); use a narrower filter"
        )


def _sorted(
    with_value: list[tuple[Key, Key, str]], without: list[tuple[None, Key, str]], descending: bool
) -> list[str]:
    by_id = [(key, name, image_id) for key, name, image_id in sorted(with_value, key=_second)]
    by_id.sort(key=_first, reverse=descending)
    return [row[2] for row in (*by_id, *sorted(without, key=_second))]


def _first(row: tuple[Any, Key, str]) -> Any:
    return row[0]


def _second(row: tuple[Any, Key, str]) -> tuple[Key, str]:
    return row[1:]


def _value(record: Record, field: str) -> Any:
    return value_at({"id": record.id} if field == "id" else record.values(), field)


def _key(value: Any) -> Key | None:
    """What a value is compared by; None for no value, and for a list or an object."""
    if isinstance(value, bool):
        return (2, value)
    if isinstance(value, int | float):
        return (0, value)
    return (1, _natural(value)) if isinstance(value, str) and value else None


def _natural(text: str) -> Key:
    """Text and numbers in turn, so that equal positions have equal types."""
    parts = _NUMBERS.split(text.casefold())
    return tuple(int(part[:300]) if n % 2 else part for n, part in enumerate(parts))
