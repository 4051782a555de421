"""The store port on Milvus (a server, or `milvus-lite server`). The only file with pymilvus."""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from clipfleet.common.collection import (
    STRING_BYTES,
    Collection,
    FieldType,
)
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.filters import Filter
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
    column,
    keys_expression,
    range_expression,
    search_expression,
)
from clipfleet.common.store.rows import (
    TEXT,
    WHOLE,
    in_parts,
    most_rows,
    output_fields,
    to_match,
    to_record,
    to_row,
)
from clipfleet.common.store.scan import in_order

T = TypeVar("T")

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
TYPES: dict[FieldType, Any] = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.INT8,  # 0, 1 and MISSING
}
NOT_LOADED = 101  # milvus-lite after a restart; a server loads again what was loaded
NOT_FOUND = 100
REJECTED = (6, 1100, 1101, 1700)
LOAD_S = 60.0
COUNT = ["count(*)"]

# pymilvus pings every 10 s and milvus-lite hangs up on such clients (GOAWAY too_many_pings).
GRPC_OPTIONS = {"grpc.keepalive_time_ms": 600_000}

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

    def count(
        self, collection: Collection, namespace: str | None = None, where: Filter | None = None
    ) -> int:
        rows = self._query(collection, search_expression(namespace, where), COUNT)
        return int(rows[0]["count(*)"])

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        if not keys:
            return {}
        rows = self._query(collection, keys_expression(keys), ["pk", "content_hash", "job_id"])
        return {row["pk"]: Fingerprint(row["content_hash"], row["job_id"]) for row in rows}

    def fetch(self, collection: Collection, keys: Sequence[str]) -> dict[str, Record]:
        if not keys:
            return {}
        wanted = output_fields(collection, include_values=True)
        rows = self._query(collection, keys_expression(keys), wanted)
        return {row["pk"]: to_record(collection, row) for row in rows}

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        require_distinct(records)
        for part in in_parts(records, collection.dim):
            rows = [to_row(collection, record) for record in part]
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
                output_fields=output_fields(collection, include_values),
                search_params={
                    "metric_type": METRICS[collection.metric],
                    "params": {"ef": effort},
                },
                consistency_level="Strong" if fresh else "Bounded",
                timeout=self._timeout,
            ),
            collection,
        )
        return [[to_match(collection, hit) for hit in hits] for hits in answers]

    def scan(
        self,
        collection: Collection,
        *,
        namespace: str | None = None,
        where: Filter | None = None,
        after: str = "",
        limit: int,
        include_values: bool = False,
    ) -> list[Record]:
        wanted = output_fields(collection, include_values)

        def read(above: str, up_to: str, most: int) -> list[Any]:
            within = search_expression(namespace, where, range_expression(above, up_to))
            return self._query(collection, within, wanted, most)

        rows = in_order(
            read,
            lambda row: str(row["pk"]),
            after=after,
            limit=limit,
            rows=int(self._query(collection, "", COUNT, fresh=False)[0]["count(*)"]),
            largest=most_rows(collection.dim if include_values else 0),
        )
        return [to_record(collection, row) for row in rows]

    def ping(self) -> None:
        self._call(lambda c: c.list_collections(timeout=self._timeout), None)

    def _query(
        self,
        collection: Collection,
        expression: str,
        fields: list[str],
        most: int | None = None,
        *,
        fresh: bool = True,
    ) -> list[Any]:
        def run(client: Any) -> list[Any]:
            return list(
                client.query(
                    _physical(collection),
                    filter=expression,
                    output_fields=fields,
                    limit=most,
                    consistency_level="Strong" if fresh else "Bounded",
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
    for name, size in TEXT.items():
        schema.add_field(name, DataType.VARCHAR, max_length=size, is_primary=name == "pk")
    for name in WHOLE:
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


def _translated(error: Exception, collection: Collection | None) -> ClipfleetError:
    text = str(error)
    code = getattr(error, "code", None)
    if code == NOT_FOUND or "collection not found" in text or "can't find collection" in text:
        name = collection.name if collection else "?"
        return CollectionGone(f"collection {name!r} is not there any more")
    if code in REJECTED or "cannot parse expression" in text:
        return StoreRejected(f"the store rejected a request: {text[:300]}")
    log.warning("Milvus: %s", text[:300])
    if "No space left" in text:
        return StoreUnavailable("the vector store's disk is full; it goes on when there is room")
    return StoreUnavailable("the vector store does not answer just now; try again")
