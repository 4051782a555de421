"""The store port on Milvus (a server, or `milvus-lite server`). The only file with pymilvus."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from clipfleet.common.collection import (
    LABEL_BYTES,
    STRING_BYTES,
    URI_BYTES,
    Collection,
    FieldType,
)
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.filters import Filter
from clipfleet.common.identity import ID_BYTES, NAMESPACE_BYTES
from clipfleet.common.store import (
    CollectionGone,
    Fingerprint,
    Match,
    Record,
    StoreUnavailable,
    Vectors,
    require_distinct,
)
from clipfleet.common.store.expressions import (
    MISSING,
    column,
    keys_expression,
    search_expression,
)

T = TypeVar("T")

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
TYPES: dict[FieldType, Any] = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.INT8,  # 0, 1 and MISSING
}
UPSERT_BYTES = 16_000_000  # a gRPC message may have 64 MB on a server's defaults

NOT_LOADED = 101  # milvus-lite after a restart; a server loads again what was loaded
NOT_FOUND = 100
REJECTED = (6, 1100, 1101, 1700)
LOAD_S = 60.0

# pymilvus pings every 10 s and milvus-lite hangs up on such clients (GOAWAY too_many_pings).
GRPC_OPTIONS = {"grpc.keepalive_time_ms": 600_000}

_TEXT = {
    "pk": 32,
    "id": ID_BYTES,
    "namespace": NAMESPACE_BYTES,
    "uri": URI_BYTES,
    "content_hash": 32,
    "job_id": 64,
    "label": LABEL_BYTES,
}
_WHOLE = ("bytes", "width", "height", "indexed_at")

log = logging.getLogger(__name__)
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises


class StoreRejected(ClipfleetError):
    """The store understood and said no: a fault of this program, not of the caller."""


class MilvusStore:
    def __init__(self, uri: str, *, token: str = "", timeout_s: float = 10.0) -> None:
        self._uri, self._token, self._timeout = uri, token, timeout_s
        self._client: Any = None
        self._connecting = threading.Lock()

    def create(self, collection: Collection) -> None:
        def run(client: Any) -> None:
            client.create_collection(
                _physical(collection),
                schema=_schema(collection),
                index_params=_indexes(collection, client.get_server_version()),
                timeout=max(60.0, self._timeout),
            )

        self._call(run, collection)

    def drop(self, collection: Collection) -> None:
        try:
            self._call(
                lambda c: c.drop_collection(_physical(collection), timeout=LOAD_S), collection
            )
        except CollectionGone:
            return

    def count(self, collection: Collection) -> int:
        rows = self._query(collection, "", ["count(*)"])
        return int(rows[0]["count(*)"])

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        if not keys:
            return {}
        rows = self._query(collection, keys_expression(keys), ["pk", "content_hash", "job_id"])
        return {row["pk"]: Fingerprint(row["content_hash"], row["job_id"]) for row in rows}

    def fetch(self, collection: Collection, keys: Sequence[str]) -> dict[str, Record]:
        if not keys:
            return {}
        wanted = _output_fields(collection, include_values=True)
        rows = self._query(collection, keys_expression(keys), wanted)
        return {row["pk"]: _record(collection, row) for row in rows}

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        require_distinct(records)
        for part in _parts(records, collection.dim):
            rows = [_row(collection, record) for record in part]
            self._call(partial(_upsert, _physical(collection), rows, self._timeout), collection)

    def delete(self, collection: Collection, keys: Sequence[str]) -> None:
        if keys:
            self._call(
                lambda c: c.delete(_physical(collection), ids=list(keys), timeout=self._timeout),
                collection,
            )

    def search(
        self,
        collection: Collection,
        vectors: Vectors,
        *,
        namespace: str,
        top_k: int,
        offset: int = 0,
        where: Filter | None = None,
        include_values: bool = False,
        fresh: bool = True,
    ) -> list[list[Match]]:
        effort = min(max(64, 2 * (offset + top_k)), 32_768)
        answers = self._call(
            lambda c: c.search(
                _physical(collection),
                data=vectors.tolist(),
                anns_field="embedding",
                filter=search_expression(namespace, where),
                limit=top_k,
                offset=offset,
                output_fields=_output_fields(collection, include_values),
                search_params={
                    "metric_type": METRICS[collection.metric],
                    "params": {"ef": effort},
                },
                consistency_level="Strong" if fresh else "Bounded",
                timeout=self._timeout,
            ),
            collection,
        )
        return [[_match(collection, hit) for hit in hits] for hits in answers]

    def ping(self) -> None:
        self._call(lambda c: c.list_collections(timeout=self._timeout), None)

    def _query(self, collection: Collection, expression: str, fields: list[str]) -> list[Any]:
        def run(client: Any) -> list[Any]:
            return list(
                client.query(
                    _physical(collection),
                    filter=expression,
                    output_fields=fields,
                    consistency_level="Strong",
                    timeout=self._timeout,
                )
            )

        return self._call(run, collection)

    def _call(self, run: Callable[[Any], T], collection: Collection | None) -> T:
        try:
            client = self._connected()
            try:
                return run(client)
            except MilvusException as error:
                if collection is None or error.code != NOT_LOADED:
                    raise
                client.load_collection(_physical(collection), timeout=LOAD_S)
                return run(client)
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            raise _translated(error, collection) from error

    def _connected(self) -> Any:
        if not self._connecting.acquire(timeout=self._timeout):
            raise StoreUnavailable("the vector store cannot be reached just now; try again")
        try:
            if self._client is None:
                self._client = MilvusClient(
                    self._uri,
                    token=self._token,
                    timeout=self._timeout,
                    grpc_options=GRPC_OPTIONS,
                )
            return self._client
        finally:
            self._connecting.release()


def _upsert(name: str, rows: list[dict[str, Any]], timeout_s: float, client: Any) -> None:
    client.upsert(name, rows, timeout=timeout_s)


def _physical(collection: Collection) -> str:
    """A name of its own per generation: a late write can never reach the successor."""
    return f"cf_{collection.name.replace('-', '_')}_{collection.generation}"


def _schema(collection: Collection) -> Any:
    """`namespace` is a plain indexed field: docs/decisions/0002 says why no partition key."""
    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    for name, size in _TEXT.items():
        schema.add_field(name, DataType.VARCHAR, max_length=size, is_primary=name == "pk")
    for name in _WHOLE:
        schema.add_field(name, DataType.INT64)
    schema.add_field("metadata", DataType.JSON)
    for name, kind in collection.fields.items():
        extra = {"max_length": STRING_BYTES} if kind == "string" else {}
        schema.add_field(column(name), TYPES[kind], **extra)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=collection.dim)
    return schema


def _indexes(collection: Collection, version: str) -> Any:
    """HNSW (Malkov and Yashunin 2016) on the embedding, an index on every typed field."""
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index(
        "embedding",
        index_type="HNSW",
        metric_type=METRICS[collection.metric],
        params={"M": 16, "efConstruction": 200},
    )
    # Empty: the server's own choice for the type. milvus-lite has no default and only this one.
    scalar = "INVERTED" if version.startswith("milvus_lite") else ""
    for name in ("namespace", "label", *map(column, collection.fields)):
        indexes.add_index(name, index_type=scalar)
    return indexes


def _output_fields(collection: Collection, include_values: bool) -> list[str]:
    declared = [column(name) for name in collection.fields]
    vector = ["embedding"] if include_values else []
    return [*_TEXT, *_WHOLE, "metadata", *declared, *vector]


def _row(collection: Collection, record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in (*_TEXT, *_WHOLE)}
    free = {k: v for k, v in record.metadata.items() if k not in collection.fields}
    for name, kind in collection.fields.items():
        value = record.metadata.get(name)
        row[column(name)] = MISSING[kind] if value is None else _as_stored(value, kind)
    return {**row, "metadata": free, "embedding": record.embedding}


def _as_stored(value: Any, kind: FieldType) -> Any:
    if kind == "float":
        return float(value)
    return int(value) if kind == "bool" else value


def _record(collection: Collection, row: Any) -> Record:
    metadata = dict(row["metadata"] or {})
    for name, kind in collection.fields.items():
        value = row[column(name)]
        if value != MISSING[kind]:
            metadata[name] = bool(value) if kind == "bool" else value
    return Record(
        **{name: row[name] for name in (*_TEXT, *_WHOLE)},
        metadata=metadata,
        embedding=np.asarray(row.get("embedding", ()), np.float32),
    )


def _match(collection: Collection, hit: Any) -> Match:
    """Milvus gives the square of the euclidean distance."""
    row = {**hit["entity"], "pk": hit["pk"]}
    score = float(hit["distance"])
    if collection.metric == "euclidean":
        score = max(0.0, score) ** 0.5
    return Match(_record(collection, row), score)


def _parts(records: Sequence[Record], dim: int) -> Iterator[Sequence[Record]]:
    step = max(1, UPSERT_BYTES // (4 * dim + 8_000))
    for start in range(0, len(records), step):
        yield records[start : start + step]


def _translated(error: Exception, collection: Collection | None) -> ClipfleetError:
    text = str(error)
    code = getattr(error, "code", None)
    if code == NOT_FOUND or "collection not found" in text or "can't find collection" in text:
        name = collection.name if collection else "?"
        return CollectionGone(f"collection {name!r} is not there any more")
    if code in REJECTED or "cannot parse expression" in text:
        return StoreRejected(f"the store rejected a request: {text[:300]}")
    log.warning("Milvus: %s", text[:300])
    return StoreUnavailable("the vector store does not answer just now; try again")
