"""A whole collection as a Parquet file, made while it is sent."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import AccessDep, CallerDep, CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.collection import Collection
from clipfleet.common.errors import ClipfleetError, Unavailable
from clipfleet.common.store import Record
from clipfleet.common.store.exchange import TEXT, WHOLE, Description, schema_of

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

PARQUET = "application/vnd.apache.parquet"
GROUP_BYTES = 3_000_000  # of embeddings in one row group
BUSY_S = 10
PATIENCE_S, PAUSE_S = 30.0, 1.0


async def _a_place(gateway: GatewayDep) -> AsyncIterator[None]:
    """Held until the file has been sent, one way or the other."""
    if gateway.exports >= gateway.settings.limits.exports:
        raise Unavailable("enough collections are exported here just now", retry_after_s=BUSY_S)
    gateway.exports += 1
    try:
        yield
    finally:
        gateway.exports -= 1


@router.get(
    "/export",
    response_class=StreamingResponse,
    dependencies=[Depends(_a_place)],
    responses={200: {"content": {PARQUET: {}}, "description": "docs/collections.md describes it"}},
)
@needs("read")
async def export_collection(
    collection: CollectionDep, gateway: GatewayDep, caller: CallerDep, access: AccessDep
) -> StreamingResponse:
    """The collection as Parquet: ids, texts, sizes, hashes, embeddings and metadata of all
    namespaces. A row that is there from the beginning to the end is in it once, whatever is written
    meanwhile. When something breaks midway, or the API key is revoked, so does the answer: such a
    file has no end."""
    file = ParquetFile(collection)
    rows = await _page(collection, "", file.group_rows, gateway)  # what is wrong is said now
    headers = {"Content-Disposition": f'attachment; filename="{collection.name}.parquet"'}
    allowed = partial(access.require_in_force, caller, "read", collection.name)
    body = _body(rows, file, collection, gateway, allowed)
    return StreamingResponse(body, media_type=PARQUET, headers=headers)


class BrokenOff(Exception):
    """Too late for an answer: raised, it ends the connection."""


async def _body(
    rows: list[Record],
    file: "ParquetFile",
    collection: Collection,
    gateway: Gateway,
    allowed: Callable[[], None],
) -> AsyncIterator[bytes]:
    try:
        yield await gateway.export(file.group, rows)
        while len(rows) == file.group_rows:
            allowed()
            rows = await _next_page(collection, rows[-1].pk, file.group_rows, gateway)
            yield await gateway.export(file.group, rows)
        yield await gateway.export(file.end)
    except ClipfleetError as error:
        raise BrokenOff(f"the export of {collection.name}: {error.detail}") from error


async def _page(collection: Collection, after: str, limit: int, gateway: Gateway) -> list[Record]:
    return await gateway.export(
        gateway.store.scan, collection, after=after, limit=limit, include_values=True
    )


async def _next_page(
    collection: Collection, after: str, limit: int, gateway: Gateway
) -> list[Record]:
    """A store that is away for a moment ends nothing that has begun."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await _page(collection, after, limit, gateway)
        except Unavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_S)


class ParquetFile:
    """The bytes of a file, one row group after the other; the last ones hold its end."""

    def __init__(self, collection: Collection) -> None:
        from pyarrow.parquet import ParquetWriter

        self.group_rows = max(1, GROUP_BYTES // (4 * collection.dim))
        self._about = Description(**collection.model_dump(include={*Description.model_fields}))
        self._schema, self._sink = schema_of(self._about), _Sink()
        self._writer = ParquetWriter(self._sink, self._schema, compression="zstd")

    def group(self, rows: Sequence[Record]) -> bytes:
        if rows:
            self._writer.write_table(_table(rows, self._about, self._schema))
        return self._sink.taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.taken()


def _table(rows: Sequence[Record], about: Description, schema: Any) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in TEXT + WHOLE}
    columns["label"] = [row.label or None for row in rows]
    columns["indexed_at"] = [row.indexed_at for row in rows]
    for name in about.fields:
        columns[name] = [row.metadata.get(name) for row in rows]
    columns["metadata"] = [_free(row, about) for row in rows]
    flat = np.concatenate([row.embedding for row in rows])
    ends = np.arange(len(rows) + 1, dtype=np.int32) * about.dim
    columns["embedding"] = pa.ListArray.from_arrays(ends, pa.array(flat, pa.float32()))
    return pa.Table.from_pydict(columns, schema=schema)


def _free(row: Record, about: Description) -> str:
    kept = {name: value for name, value in row.metadata.items() if name not in about.fields}
    return json.dumps(kept, ensure_ascii=False)


class _Sink:
    """A file that is taken away while it is written."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
