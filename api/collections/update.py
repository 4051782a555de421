"""The route that changes labels and metadata of images, by their ids or by a filter."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.bulk import parse_checked_filter, scan_page
from clipfleet.api.collections.images import key_of
from clipfleet.api.collections.turns import write_in_turn
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection, image_problem
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.collections import ImageChange, UpdateIn, UpdateOut
from clipfleet.common.store import Record, kept_metadata
from clipfleet.common.store.filters import Filter, matches

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["images"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

PAGE = 8_000  # images that pass a filter, looked up at once: as many as the store reads at once
BATCH = 1_000  # images read and written at once
BATCHES_AT_ONCE = 2  # one is read by the gateway while the store writes the other
BUDGET_S = 20.0  # after that the response says where to go on
STORE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Change:
    """What a request changes of an image.

    Attributes:
        label: the new label; "" removes it; None: it stays.
        metadata: new values by key; None removes a key.
    """

    label: str | None
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, body: ImageChange | UpdateIn) -> "Change":
        """The change that a request describes."""
        label = (body.label or "") if "label" in body.model_fields_set else None
        return cls(label, body.metadata)

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.label is None and not self.metadata

    def applied(self, row: Record, collection: Collection) -> Record:
        """The record with the change."""
        metadata = kept_metadata({**row.metadata, **self.metadata})
        for name, kind in collection.fields.items():
            value = metadata.get(name)
            if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
                metadata[name] = float(value)
        return replace(
            row, label=row.label if self.label is None else self.label, metadata=metadata
        )


@router.patch("/images", summary="Change labels and metadata")
@needs("write", body="job")
async def update_images(
    body: UpdateIn, collection: CollectionDep, gateway: GatewayDep
) -> UpdateOut:
    """Change labels and metadata of images, without embedding them again.

    `images` names images and the change of each; `filter`, or `all`, chooses images that are all
    changed in the same way. Metadata is merged key by key; null removes a key, and a label. Images
    that have these values already are not written, so a request can be repeated.

    A request with a filter stops after some seconds; `next` then says where it goes on: send the
    same request with it as `after`, until it is null. With `dry_run` nothing is changed.
    """
    _require_one_way(body)
    where = parse_checked_filter(body, collection)
    if body.images is None:
        return await _update_by_filter(body, where, collection, gateway)
    return await _update_by_id(body, body.images, collection, gateway)


def _require_one_way(body: UpdateIn) -> None:
    ways = [body.images is not None, bool(body.filter), body.all]
    if sum(ways) != 1:
        names = ("images", "filter", "all")
        chosen = " and ".join(name for name, has in zip(names, ways, strict=True) if has)
        raise InvalidRequest(
            f"the request has {chosen or 'no images and no filter'}; give exactly one of images, "
            "filter and all: true"
        )
    if body.images is None:
        if Change.of(body).is_empty:
            raise InvalidRequest("the request changes nothing: give label, metadata or both")
    elif not Change.of(body).is_empty:
        raise InvalidRequest("with images, label and metadata belong into each of the images")
    elif body.after:
        raise InvalidRequest("`after` is for a request with a filter")


async def _update_by_id(
    body: UpdateIn, images: Sequence[ImageChange], collection: Collection, gateway: Gateway
) -> UpdateOut:
    """Check all images, then change them."""
    changes = await gateway.parse(_changes_by_key, images, body.namespace, collection, gateway)
    ids = {key_of(body.namespace, image.id): image.id for image in images}
    stored: set[str] = set()
    for keys in _batches(list(changes)):
        rows = await _rows(keys, collection, gateway)
        stored |= rows.keys()
        await gateway.parse(_changed, rows.values(), changes.__getitem__, None, collection, gateway)
    missing = [image_id for key, image_id in ids.items() if key not in stored]
    counts = Counter[str]()
    if not body.dry_run:
        existing = [key for key in changes if key in stored]
        await _write(existing, changes.__getitem__, None, counts, collection, gateway)
    return UpdateOut(matched=len(stored), updated=counts["updated"], missing=missing, next=None)


def _changes_by_key(
    images: Sequence[ImageChange], namespace: str, collection: Collection, gateway: Gateway
) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for image in images:
        key, change = key_of(namespace, image.id), Change.of(image)
        if key in changes:
            raise InvalidRequest(f"two of the images have the id {image.id[:200]!r}")
        if change.is_empty:
            raise InvalidRequest(f"image {image.id[:200]!r}: give label, metadata or both")
        try:
            _require_possible(change, collection, gateway)
        except InvalidRequest as error:
            raise InvalidRequest(f"image {image.id[:200]!r}: {error.detail}") from error
        changes[key] = change
    return changes


async def _update_by_filter(
    body: UpdateIn, where: Filter | None, collection: Collection, gateway: Gateway
) -> UpdateOut:
    change, namespace = Change.of(body), body.namespace
    _require_possible(change, collection, gateway)
    if body.dry_run:
        count = await gateway.call(
            gateway.store.count, collection, namespace, where, timeout_s=STORE_TIMEOUT_S
        )
        return UpdateOut(matched=count, updated=0, missing=[], next=None)
    until, after, counts = time.monotonic() + BUDGET_S, body.after, Counter[str]()
    while True:
        page = await scan_page(namespace, where, after, PAGE, collection, gateway)
        keys = [row.pk for row in page]
        await _write(keys, lambda _: change, where, counts, collection, gateway)
        after = keys[-1] if len(keys) == PAGE else ""
        if not after or time.monotonic() >= until:
            matched, updated = counts["matched"], counts["updated"]
            return UpdateOut(matched=matched, updated=updated, missing=[], next=after or None)


async def _write(
    keys: Sequence[str],
    change_of: Callable[[str], Change],
    where: Filter | None,
    counts: Counter[str],
    collection: Collection,
    gateway: Gateway,
) -> None:
    """Change images, each while nobody else writes it.

    Args:
        keys: the primary keys of the images.
        change_of: the change by primary key.
        where: images that do not pass this filter any more stay as they are.
        counts: the images that exist and pass, and those that were written, are added to it.
    """

    async def write(keys: list[str]) -> None:
        rows = await _rows(keys, collection, gateway)
        passing = [row for row in rows.values() if where is None or matches(where, row.values())]
        changed = await gateway.parse(_changed, passing, change_of, counts, collection, gateway)
        if changed:
            await gateway.call(gateway.store.update, collection, changed, timeout_s=STORE_TIMEOUT_S)
            await gateway.call(gateway.catalogue.record_write, collection)
        counts["matched"] += len(passing)
        counts["updated"] += len(changed)

    turn = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def write_batch(batch: Sequence[str]) -> None:
        async with turn:
            await write_in_turn(batch, collection, gateway, write)

    results = await asyncio.gather(*map(write_batch, _batches(keys)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _rows(keys: Sequence[str], collection: Collection, gateway: Gateway) -> dict[str, Record]:
    return await gateway.call(
        gateway.store.fetch, collection, keys, include_values=False, timeout_s=STORE_TIMEOUT_S
    )


def _changed(
    rows: Iterable[Record],
    change_of: Callable[[str], Change],
    counts: Counter[str] | None,
    collection: Collection,
    gateway: Gateway,
) -> list[Record]:
    """The records that a change alters, with the change.

    Args:
        counts: the images that were changed before are named in an error; None: no such images.

    Raises:
        InvalidRequest: an image cannot have these values; it is named.
    """
    now, limit = int(time.time() * 1000), gateway.settings.limits.metadata_bytes
    changed: list[Record] = []
    for row in rows:
        new = change_of(row.pk).applied(row, collection)
        if new.label == row.label and _same(new.metadata, row.metadata):
            continue
        problem = image_problem(collection, row.id, row.uri, new.label, new.metadata, limit)
        if problem:
            before = counts["updated"] if counts else 0
            done = f" ({before} images were changed before it)" if before else ""
            raise InvalidRequest(f"image {row.id[:200]!r}: {problem}{done}")
        changed.append(replace(new, indexed_at=now))
    return changed


def _same(metadata: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two metadata are the same, for which 1 and True are two values."""
    if metadata != other:
        return False
    return json.dumps(metadata, sort_keys=True) == json.dumps(other, sort_keys=True)


def _require_possible(change: Change, collection: Collection, gateway: Gateway) -> None:
    """InvalidRequest when no image can have these values."""
    limit, metadata = gateway.settings.limits.metadata_bytes, dict(change.metadata)
    if problem := image_problem(collection, "id", "", change.label or "", metadata, limit):
        raise InvalidRequest(problem)


def _batches(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
