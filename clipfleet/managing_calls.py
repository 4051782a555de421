"""What the clients send about many images of a collection at once. As `clipfleet.calls`."""

from collections.abc import Mapping
from typing import Any

from clipfleet.calls import Call, _nothing, _path, _read
from clipfleet.common.http.collections import (
    Count,
    DeletedSome,
    DeleteIn,
    IdPage,
    RecallIn,
    RecallOut,
    Which,
)
from clipfleet.common.http.fleet import FleetOut

AnyFilter = Mapping[str, Any] | None
IDS = 10_000
RECALL_S = 120.0


def count(collection: str, filter: AnyFilter, namespace: str) -> Call[int]:
    where = _path("collections", collection, "count")
    body = Which(filter=_plain(filter), namespace=namespace).model_dump()
    return Call("POST", where, lambda body: _read(Count)(body).count, json=body)


def ids(collection: str, cursor: str, namespace: str) -> Call[IdPage]:
    asked = {"cursor": cursor, "limit": IDS, "namespace": namespace}
    return Call("GET", _path("collections", collection, "ids"), _read(IdPage), params=asked)


def delete(collection: str, filter: AnyFilter, namespace: str, all: bool) -> Call[DeletedSome]:
    where = _path("collections", collection, "delete")
    body = DeleteIn(filter=_plain(filter), namespace=namespace, all=all).model_dump()
    return Call("POST", where, _read(DeletedSome), json=body, repeatable=False)


def recall(
    collection: str, k: int, sample: int, filter: AnyFilter, namespace: str, seed: int
) -> Call[RecallOut]:
    where = _path("collections", collection, "recall")
    body = RecallIn(k=k, sample=sample, filter=_plain(filter), namespace=namespace, seed=seed)
    told = body.model_dump()
    return Call("POST", where, _read(RecallOut), json=told, timeout_s=RECALL_S)


def fleet() -> Call[FleetOut]:
    return Call("GET", _path("fleet"), _read(FleetOut))


def export(collection: str) -> Call[None]:
    return Call("GET", _path("collections", collection, "export"), _nothing)


def _plain(filter: AnyFilter) -> dict[str, Any] | None:
    return None if filter is None else dict(filter)
