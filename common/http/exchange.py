"""The Parquet file of an exported collection: one row per image, and a description of the
collection in the file's metadata. It needs pyarrow, which is imported when it is used.

`embedding` is list<float32>. Each declared field has a column of its name and type, with null for
images without it; all other metadata is one JSON object in the column `metadata`. The names cannot
clash: a collection cannot declare a field with the name of one of the fixed columns.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.collection import ELEMENTS, FieldType, Metric

KEY = b"clipfleet"
TEXT = ("id", "namespace", "uri", "label", "content_hash")
WHOLE = ("bytes", "width", "height")


class NotOurs(ValueError):
    """The file was not exported by clipfleet, was exported by a later version, or is damaged."""


class Description(BaseModel):
    """The description of an exported collection. The fields are those of `Collection`."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    name: str
    metric: Metric
    model: str
    dim: int
    fields: dict[str, FieldType]


def schema_of(description: Description) -> Any:
    """The pyarrow schema of the file."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    kinds |= {name: pa.list_(kinds[kind]) for name, kind in ELEMENTS.items()}
    columns = [
        *((name, pa.string()) for name in TEXT),
        *((name, pa.int64()) for name in WHOLE),
        ("indexed_at", pa.timestamp("ms", "UTC")),
        *((name, kinds[kind]) for name, kind in description.fields.items()),
        ("metadata", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
    return pa.schema(columns, metadata={KEY: description.model_dump_json()})


def description_of(metadata: Mapping[bytes, bytes] | None) -> Description:
    """The description in the metadata of a Parquet file.

    Raises:
        NotOurs: there is none, or it cannot be understood.
    """
    raw = (metadata or {}).get(KEY)
    if raw is None:
        raise NotOurs("it is a Parquet file, but not an export of clipfleet")
    try:
        description = json.loads(raw)
        if isinstance(description, dict) and description.get("version", 1) != 1:
            raise NotOurs(
                "it was exported by another version of clipfleet, which this one cannot read"
            )
        return Description.model_validate(description)
    except (ValueError, ValidationError) as error:
        if isinstance(error, NotOurs):
            raise
        raise NotOurs("its description of the collection cannot be understood") from error
