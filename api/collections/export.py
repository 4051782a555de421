"""The route that exports a collection as a Parquet file, which is written while it is sent."""

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
from clipfleet.common.http.exchange import TEXT, WHOLE, Description, schema_of
from clipfleet.common.store import Record

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

PARQUET = "application/vnd.apache.parquet"
GROUP_BYTES = 3_000_000  # of embeddings in one row group
MAX_OUTAGE_S, RETRY_INTERVAL_S = 30.0, 1.0


async def export_slot(gateway: GatewayDep) -> AsyncIterator[None]:
    """Hold one of the gateway's exports until the response has ended."""
    with gateway.exports.hold():
        yield


@router.get(
    "/export",
    summary="Export a collection",
    response_class=StreamingResponse,
    dependencies=[Depends(export_slot)],
    responses={200: {"content": {PARQUET: {}}, "description": "A Parquet file."}},
)
@needs("read")
async def export_collection(
    collection: CollectionDep, gateway: GatewayDep, caller: CallerDep, access: AccessDep
) -> StreamingResponse:
    """Return a collection as a Parquet file; docs/collections.md describes its columns.

    The file has the ids, texts, sizes, hashes, embeddings and metadata of all namespaces. A row
    that exists from the beginning to the end of the export is in the file exactly once, even when
    other rows are written in between. When a part fails during the export, or the API key is
    revoked, the connection is closed and the file is incomplete: it has no footer.
    """
    file = ParquetFile(collection)
    rows = await _page(collection, "", file.group_rows, gateway)  # before the response starts
    headers = {"Content-Disposition": f'attachment; filename="{collection.name}.parquet"'}
    check_key = partial(access.require_valid_key, caller, "read", collection.name)
    body = _body(rows, file, collection, gateway, check_key)
    return StreamingResponse(body, media_type=PARQUET, headers=headers)


class ExportFailed(Exception):
    """The export failed after the response had started. Raising it closes the connection."""


async def _body(
    rows: list[Record],
    file: "ParquetFile",
    collection: Collection,
    gateway: Gateway,
    check_key: Callable[[], None],
) -> AsyncIterator[bytes]:
    try:
        yield await gateway.export(file.group, rows)
        while len(rows) == file.group_rows:
            check_key()
            rows = await _next_page(collection, rows[-1].pk, file.group_rows, gateway)
            yield await gateway.export(file.group, rows)
        yield await gateway.export(file.end)
    except ClipfleetError as error:
        raise ExportFailed(f"the export of {collection.name} failed: {error.detail}") from error


async def _page(collection: Collection, after: str, limit: int, gateway: Gateway) -> list[Record]:
    return await gateway.export(
        gateway.store.scan, collection, after=after, limit=limit, include_values=True
    )


async def _next_page(
    collection: Collection, after: str, limit: int, gateway: Gateway
) -> list[Record]:
    """Read the next rows; a short outage of the store does not end the export."""
    until = time.monotonic() + MAX_OUTAGE_S
    while True:
        try:
            return await _page(collection, after, limit, gateway)
        except Unavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(RETRY_INTERVAL_S)


class ParquetFile:
    """Writes a Parquet file row group by row group and returns its bytes piece by piece.

    Args:
        collection: the collection; its settings go into the file's metadata.

    Attributes:
        group_rows: rows of one group.
    """

    def __init__(self, collection: Collection) -> None:
        from pyarrow.parquet import ParquetWriter

        self.group_rows = max(1, GROUP_BYTES // (4 * collection.dim))
        fields = collection.model_dump(include={*Description.model_fields})
        self._description = Description(**fields)
        self._schema, self._sink = schema_of(self._description), _Sink()
        self._writer = ParquetWriter(self._sink, self._schema, compression="zstd")

    def group(self, rows: Sequence[Record]) -> bytes:
        """Return the bytes up to the end of a group with these rows."""
        if rows:
            self._writer.write_table(_table(rows, self._description, self._schema))
        return self._sink.take()

    def end(self) -> bytes:
        """Return the footer of the file."""
        self._writer.close()
        return self._sink.take()


def _table(rows: Sequence[Record], description: Description, schema: Any) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in TEXT + WHOLE}
    columns["label"] = [row.label or None for row in rows]
    columns["indexed_at"] = [row.indexed_at for row in rows]
    for name in description.fields:
        columns[name] = [row.metadata.get(name) for row in rows]
    columns["metadata"] = [_undeclared_metadata(row, description) for row in rows]
    flat = np.concatenate([row.embedding for row in rows])
    ends = np.arange(len(rows) + 1, dtype=np.int32) * description.dim
    columns["embedding"] = pa.ListArray.from_arrays(ends, pa.array(flat, pa.float32()))
    return pa.Table.from_pydict(columns, schema=schema)


def _undeclared_metadata(row: Record, description: Description) -> str:
    fields = description.fields
    metadata = {name: value for name, value in row.metadata.items() if name not in fields}
    return json.dumps(metadata, ensure_ascii=False)


class _Sink:
    """A file object whose bytes are taken away while it is written."""

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

    def take(self) -> bytes:
        """Return the bytes that were written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
