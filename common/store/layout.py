"""How a collection lies in Milvus: its name there, its fields, its indexes."""

from typing import Any

from pymilvus import DataType, MilvusClient

from clipfleet.common.collection import STRING_BYTES, Collection, FieldType
from clipfleet.common.store.expressions import column
from clipfleet.common.store.rows import TEXT, WHOLE

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
TYPES: dict[FieldType, Any] = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.INT8,  # 0, 1 and MISSING
}


RECORD = "clipfleet.collection"  # property of a Milvus collection: what the catalogue says of it
PREFIX = "cf_"


def physical(collection: Collection) -> str:
    """A name of its own per generation: a late write can never reach the successor."""
    return f"{PREFIX}{collection.name.replace('-', '_')}_{collection.generation}"


def schema_of(collection: Collection) -> Any:
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


def indexes_of(collection: Collection, version: str) -> Any:
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


DEPLOYMENT = f"{PREFIX}deployment_"


def marker(mark: str) -> str:
    return f"{DEPLOYMENT}{mark}"


def marker_schema() -> Any:
    """The least that Milvus calls a collection."""
    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=2)
    return schema
