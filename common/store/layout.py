"""The layout of a collection in Milvus: its name there, its schema, its indexes."""

from typing import Any

from clipfleet.common.collection import STRING_BYTES, Collection, FieldType
from clipfleet.common.store.driver import DataType, MilvusClient
from clipfleet.common.store.expressions import column
from clipfleet.common.store.rows import TEXT, WHOLE

METRICS = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
TYPES: dict[FieldType, Any] = {
    "string": DataType.VARCHAR,
    "int": DataType.INT64,
    "float": DataType.DOUBLE,
    "bool": DataType.INT8,  # 0, 1 and MISSING
}


RECORD = "clipfleet.collection"  # property of a Milvus collection: its record in the catalogue
PREFIX = "cf_"


def physical(collection: Collection) -> str:
    """The name of a collection in Milvus.

    It contains the generation: a late write cannot reach the next generation.
    """
    return f"{PREFIX}{collection.name.replace('-', '_')}_{collection.generation}"


def schema_of(collection: Collection) -> Any:
    """The Milvus schema of a collection.

    `namespace` is a plain indexed field, and not a partition key: docs/decisions/0002.
    """
    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    for name, size in TEXT.items():
        schema.add_field(name, DataType.VARCHAR, max_length=size, is_primary=name == "pk")
    for name in WHOLE:
        schema.add_field(name, DataType.INT64)
    schema.add_field("metadata", DataType.JSON)
    for name, kind in collection.columns.items():
        extra = {"max_length": STRING_BYTES} if kind == "string" else {}
        schema.add_field(column(name), TYPES[kind], **extra)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=collection.dim)
    return schema


def is_lite(version: str) -> bool:
    """Whether a server that gives this version is milvus-lite."""
    return version.startswith("milvus_lite")


def indexes_of(collection: Collection, version: str) -> Any:
    """The Milvus indexes of a collection: HNSW (Malkov and Yashunin 2016) and one for each field.

    Args:
        version: the version of the server, as the server gives it.
    """
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index(
        "embedding",
        index_type="HNSW",
        metric_type=METRICS[collection.metric],
        params={"M": 16, "efConstruction": 200},
    )
    # "": the server chooses by the type of the field. milvus-lite has INVERTED only, no default.
    scalar = "INVERTED" if is_lite(version) else ""
    for name in ("namespace", "label", *map(column, collection.columns)):
        indexes.add_index(name, index_type=scalar)
    return indexes


DEPLOYMENT = f"{PREFIX}deployment_"


def marker(mark: str) -> str:
    """The name of the empty collection that stands for a mark."""
    return f"{DEPLOYMENT}{mark}"


def marker_schema() -> Any:
    """The smallest schema that Milvus accepts, for a mark."""
    schema = MilvusClient.create_schema(enable_dynamic_field=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=2)
    return schema
