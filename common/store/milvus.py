"""The store on Milvus: a server, or `milvus-lite server`."""

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import grpc

from clipfleet.common.collection import Collection
from clipfleet.common.http.loopback import is_loopback
from clipfleet.common.settings import Settings
from clipfleet.common.store import (
    CollectionGone,
    Fingerprint,
    Match,
    Record,
    StoreRefuses,
    StoreUnavailable,
    Vectors,
    require_distinct,
)
from clipfleet.common.store.answer import Answer
from clipfleet.common.store.driver import MilvusClient, MilvusException
from clipfleet.common.store.expressions import (
    Dialect,
    doubtful_expression,
    keys_expression,
    range_expression,
    search_expression,
)
from clipfleet.common.store.filters import Filter, matches
from clipfleet.common.store.layout import (
    DEPLOYMENT,
    METRICS,
    PREFIX,
    RECORD,
    indexes_of,
    is_lite,
    marker,
    marker_schema,
    physical,
    schema_of,
)
from clipfleet.common.store.refusals import StoreRejected, translated
from clipfleet.common.store.request import Upsert
from clipfleet.common.store.rows import (
    IDS,
    bare,
    batches,
    output_fields,
    rows_per_message,
    to_record,
)
from clipfleet.common.store.scan import LARGEST_READ, in_order
from clipfleet.common.tls import UnusableAuthority, require_authority
from clipfleet.common.versions import parse_versioned, skipping_unknown_versions

T = TypeVar("T")
FINGERPRINT = ("content_hash", "job_id", "indexed_at")

NOT_LOADED = 101  # error of milvus-lite after a restart; a server reloads collections by itself
LOAD_S = 60.0  # timeout of a call that loads or drops a collection
MAX_EFFORT = 32_768
COUNT = ["count(*)"]

# pymilvus pings every 10 s, and milvus-lite disconnects such clients (GOAWAY too_many_pings).
GRPC_OPTIONS = {"grpc.keepalive_time_ms": 600_000}
NO_PROXY = {"grpc.enable_http_proxy": 0}

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises


def make_store(settings: Settings, timeout_s: float = 10.0) -> "MilvusStore":
    """Create the store of the settings. It connects at the first call.

    Args:
        timeout_s: timeout of one call, seconds.
    """
    return MilvusStore(
        settings.milvus_uri,
        token=settings.milvus_token,
        database=settings.milvus_database,
        authority=settings.milvus_ca,
        effort=settings.search_ef,
        timeout_s=timeout_s,
    )


class MilvusStore:
    """The store on Milvus.

    Args:
        uri: address of the server.
        token: user:password, or an API key.
        database: existing database of the server; "": its default database.
        authority: CA certificate (PEM) used to verify the server; "": those that gRPC brings.
        effort: candidates that a search keeps (HNSW's ef). A search keeps at least twice as many
            as the matches that it returns.
        timeout_s: timeout of one call, seconds.
    """

    def __init__(
        self,
        uri: str,
        *,
        token: str = "",
        database: str = "",
        authority: str = "",
        effort: int = 64,
        timeout_s: float = 10.0,
    ) -> None:
        self._uri, self._token, self._database = uri, token, database
        self._authority, self._effort, self._timeout = authority, effort, timeout_s
        self._client: Any = None
        self._dialect: Dialect = "server"
        self._connecting = threading.Lock()

    def create(self, collection: Collection) -> None:
        def run(client: Any) -> None:
            name, timeout_s = physical(collection), max(60.0, self._timeout)
            indexes = indexes_of(collection, client.get_server_version())
            client.create_collection(
                name,
                schema=schema_of(collection),
                properties={RECORD: collection.model_dump_json()},
                timeout=timeout_s,
            )
            # An empty collection has nothing to index. Without `sync=False`, pymilvus sleeps half
            # a second for each index before it notices that.
            client.create_index(name, indexes, timeout=timeout_s, sync=False)
            client.load_collection(name, timeout=timeout_s)

        self._call(run, collection)

    def drop(self, collection: Collection) -> None:
        try:
            self._call(
                lambda c: c.drop_collection(physical(collection), timeout=LOAD_S), collection
            )
        except CollectionGone:
            return

    def count(
        self, collection: Collection, namespace: str | None = None, where: Filter | None = None
    ) -> int:
        doubt = self._doubt(where)
        if where is None or not doubt:
            return self._counted(collection, self._expression(namespace, where))
        certain = self._counted(collection, self._expression(namespace, where, f"not ({doubt})"))
        doubtful = self._expression(namespace, where, f"({doubt})")
        if not (limit := self._counted(collection, doubtful)):
            return certain
        fields = output_fields(collection, include_values=False)
        rows = self._in_order(collection, doubtful, fields, after="", limit=limit)
        return certain + sum(matches(where, to_record(collection, row).values()) for row in rows)

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        if not keys:
            return {}
        rows = self._query(collection, keys_expression(keys), ["pk", *FINGERPRINT])
        return {row["pk"]: Fingerprint(*(row[name] for name in FINGERPRINT)) for row in rows}

    def present(self, collection: Collection, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()
        rows = self._query(collection, keys_expression(keys), ["pk"])
        return {row["pk"] for row in rows}

    def fetch(
        self, collection: Collection, keys: Sequence[str], *, include_values: bool = True
    ) -> dict[str, Record]:
        if not keys:
            return {}
        fields = output_fields(collection, include_values)
        rows = self._query(collection, keys_expression(keys), fields)
        return {row["pk"]: to_record(collection, row) for row in rows}

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        require_distinct(records)
        for part in batches(records, collection.dim):
            upsert = Upsert(collection, part)
            self._call(partial(_upsert, physical(collection), upsert, self._timeout), collection)

    def update(self, collection: Collection, records: Sequence[Record]) -> None:
        """milvus-lite keeps what an upsert leaves out; a server before 2.6 does not."""
        require_distinct(records)
        is_lite = self._call(lambda _: self._dialect, None) == "lite"
        for part in batches(records, 0 if is_lite else collection.dim):
            if is_lite:
                with suppress(StoreRejected):  # one of the records is not stored
                    upsert = Upsert(collection, part, with_values=False)
                    write = partial(_upsert, physical(collection), upsert, self._timeout)
                    self._call(write, collection)
                    continue
            stored = self.fetch(collection, [record.pk for record in part])
            known = [record for record in part if record.pk in stored]
            whole = [replace(record, embedding=stored[record.pk].embedding) for record in known]
            self.upsert(collection, whole)

    def delete(self, collection: Collection, keys: Sequence[str]) -> None:
        if keys:
            self._call(
                lambda c: c.delete(physical(collection), ids=list(keys), timeout=self._timeout),
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
        brief: bool = False,
        fresh: bool = True,
    ) -> list[list[Match]]:
        doubtful = where is not None and bool(self._doubt(where))
        brief = brief and not doubtful
        fields = output_fields(collection, include_values, brief=brief)
        search = partial(self._nearest, collection, vectors, namespace, fields, fresh)
        expression = self._expression(namespace, where)
        if where is None or not doubtful:
            return search(expression, top_k, offset)
        needed = offset + top_k
        answers = search(expression, needed, 0)
        kept = [
            [match for match in nearest if matches(where, match.record.values())]
            for nearest in answers
        ]
        if any(
            len(those) < needed == len(nearest)
            for those, nearest in zip(kept, answers, strict=True)
        ):  # others that match may be farther away
            rows = self.scan(
                collection, namespace=namespace, where=where, limit=sys.maxsize, only_ids=True
            )
            if rows:
                again = search(keys_expression([row.pk for row in rows]), needed, 0)
                kept = [max(pair, key=len) for pair in zip(again, kept, strict=True)]
        return [those[offset:] for those in kept]

    def _nearest(
        self,
        collection: Collection,
        vectors: Vectors,
        namespace: str,
        fields: list[str],
        fresh: bool,
        expression: str,
        top_k: int,
        offset: int,
    ) -> list[list[Match]]:
        effort = min(max(self._effort, 2 * (offset + top_k)), MAX_EFFORT)
        answer: Answer = self._call(
            lambda c: c.search(
                physical(collection),
                data=vectors.tolist(),
                anns_field="embedding",
                filter=expression,
                limit=top_k,
                offset=offset,
                output_fields=fields,
                search_params={
                    "metric_type": METRICS[collection.metric],
                    "params": {"ef": effort},
                },
                consistency_level="Strong" if fresh else "Bounded",
                timeout=self._timeout,
            ),
            collection,
        )
        return list(answer.matches(collection, namespace=namespace))

    def scan(
        self,
        collection: Collection,
        *,
        namespace: str | None = None,
        where: Filter | None = None,
        after: str = "",
        limit: int,
        include_values: bool = False,
        only_ids: bool = False,
    ) -> list[Record]:
        doubtful = bool(self._doubt(where))
        bare_rows = only_ids and not doubtful
        fields = list(IDS) if bare_rows else output_fields(collection, include_values)
        expression = self._expression(namespace, where)
        records: list[Record] = []
        while len(records) < limit:
            rows = self._in_order(
                collection, expression, fields, after=after, limit=limit, values=include_values,
                bare_rows=bare_rows,
            )  # fmt: skip
            for row in rows:
                record = bare(row) if bare_rows else to_record(collection, row)
                if where is None or not doubtful or matches(where, record.values()):
                    records.append(bare(row) if only_ids else record)
            if len(rows) < limit or not doubtful:
                break
            after = str(rows[-1]["pk"])
        return records[:limit]

    def _in_order(
        self,
        collection: Collection,
        expression: str,
        fields: list[str],
        *,
        after: str,
        limit: int,
        values: bool = False,
        bare_rows: bool = False,
    ) -> list[Any]:
        def read(above: str, up_to: str, max_rows: int) -> list[Any]:
            within = " and ".join(filter(None, (range_expression(above, up_to), expression)))
            return self._query(collection, within, fields, max_rows)

        return in_order(
            read,
            lambda row: str(row["pk"]),
            after=after,
            limit=limit,
            rows=self._counted(collection, "", fresh=False),
            largest=LARGEST_READ
            if bare_rows
            else rows_per_message(collection.dim if values else 0),
        )

    def missing(self, known: Sequence[Collection]) -> list[Collection]:
        names = set(self._names())
        return [collection for collection in known if physical(collection) not in names]

    def others(self, known: Sequence[Collection]) -> list[Collection]:
        expected = {physical(collection) for collection in known}
        others = []
        for name in self._names():
            if name.startswith(PREFIX) and not name.startswith(DEPLOYMENT) and name not in expected:
                with skipping_unknown_versions(), suppress(CollectionGone):
                    others += self._described(name)
        return others

    def _names(self) -> list[str]:
        return list(self._call(lambda c: c.list_collections(timeout=self._timeout), None))

    def _described(self, name: str) -> list[Collection]:
        """The catalogue record in the properties of a Milvus collection; [] when it has none."""
        description = self._call(lambda c: c.describe_collection(name, timeout=self._timeout), None)
        raw = (description.get("properties") or {}).get(RECORD)
        return [parse_versioned(Collection, raw, "collection")] if raw else []

    def ping(self) -> None:
        self._call(lambda c: c.list_collections(timeout=self._timeout), None)

    def version(self) -> str:
        return str(self._call(lambda c: c.get_server_version(timeout=self._timeout), None))

    def has_mark(self, mark: str) -> bool:
        name = marker(mark)
        return bool(self._call(lambda c: c.has_collection(name, timeout=self._timeout), None))

    def set_mark(self, mark: str) -> None:
        """Create an empty collection, which is never loaded."""
        name, schema = marker(mark), marker_schema()
        limit = max(60.0, self._timeout)
        self._call(lambda c: c.create_collection(name, schema=schema, timeout=limit), None)

    def _expression(self, namespace: str | None, where: Filter | None, *also: str) -> str:
        return search_expression(namespace, where, *also, dialect=self._dialect_for(where))

    def _doubt(self, where: Filter | None) -> str:
        """The expression for records that this program compares itself; "": for none."""
        return doubtful_expression(where, self._dialect_for(where)) if where else ""

    def _dialect_for(self, where: Filter | None) -> Dialect:
        dialect: Dialect = self._call(lambda _: self._dialect, None) if where else "server"
        return dialect

    def _counted(self, collection: Collection, expression: str, *, fresh: bool = True) -> int:
        return int(self._query(collection, expression, COUNT, fresh=fresh)[0]["count(*)"])

    def _query(
        self,
        collection: Collection,
        expression: str,
        fields: list[str],
        limit: int | None = None,
        *,
        fresh: bool = True,
    ) -> list[Any]:
        def run(client: Any) -> list[Any]:
            return list(
                client.query(
                    physical(collection),
                    filter=expression,
                    output_fields=fields,
                    limit=limit,
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
                client.load_collection(physical(collection), timeout=LOAD_S)
                return run(client)
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            raise translated(error, collection, self._uri, self._database) from error

    def _connected(self) -> Any:
        if not self._connecting.acquire(timeout=self._timeout):
            raise StoreUnavailable("the vector store cannot be reached; try again")
        try:
            if self._client is None:
                client = self._connect()
                if is_lite(client.get_server_version(timeout=self._timeout)):
                    self._dialect = "lite"
                self._client = client
            return self._client
        finally:
            self._connecting.release()

    def _connect(self) -> Any:
        if self._authority:
            try:
                require_authority(self._authority)
            except UnusableAuthority as error:
                raise StoreRefuses(f"CLIPFLEET_MILVUS_CA: {error}") from error
        return MilvusClient(
            self._uri,
            token=self._token,
            db_name=self._database,
            server_pem_path=self._authority,
            timeout=self._timeout,
            grpc_options=GRPC_OPTIONS | (NO_PROXY if is_loopback(self._uri) else {}),
            dedicated=True,  # pymilvus shares connections by address and token, whatever the CA is
        )


def _upsert(name: str, upsert: Upsert, timeout_s: float, client: Any) -> None:
    client.upsert(name, upsert, timeout=timeout_s)
