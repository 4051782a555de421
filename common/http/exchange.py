"""The Parquet file of an exported collection: one row per image, and a description of the
collection in the file's metadata. It needs pyarrow, which is imported when it is used.

Each declared field has a column of its name and type, with null for images without it; other
metadata is one JSON object in the column `metadata`. The names cannot clash: neither a declared
field nor a key of metadata may have the name of one of the fixed columns.

Version 1 is what the gateway writes; `embedding` is list<float32>. Version 2 is what clients write;
`embedding` is a list of fixed size, undeclared metadata may have columns, too, and `metadata` has
what no column holds exactly.
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
    """The description of an exported collection. The fields are those of `Collection`.

    Attributes:
        columns: in version 2, the types of undeclared metadata with columns, by name.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1, 2] = 1
    name: str
    metric: Metric
    model: str
    dim: int
    fields: dict[str, FieldType]
    columns: dict[str, FieldType] = {}


def schema_of(description: Description) -> Any:
    """The pyarrow schema of a file of version 1."""
    import pyarrow as pa

    return _schema(description, pa.list_(pa.float32()), exclude={"columns"})


def subset_schema(description: Description, score: str | None = None) -> Any:
    """The pyarrow schema of a file of version 2.

    Args:
        description: the description of the collection.
        score: name of a column for scores; None: there is none.
    """
    import pyarrow as pa

    schema = _schema(description, pa.list_(pa.float32(), description.dim))
    return schema if score is None else schema.append(pa.field(score, pa.float64()))


def _schema(description: Description, embedding: Any, exclude: set[str] | None = None) -> Any:
    import pyarrow as pa

    kinds = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    kinds |= {name: pa.list_(kinds[kind]) for name, kind in ELEMENTS.items()}
    typed = {**description.fields, **description.columns}
    columns = [
        *((name, pa.string()) for name in TEXT),
        *((name, pa.int64()) for name in WHOLE),
        ("indexed_at", pa.timestamp("ms", "UTC")),
        *((name, kinds[kind]) for name, kind in typed.items()),
        ("metadata", pa.string()),
        ("embedding", embedding),
    ]
    return pa.schema(columns, metadata={KEY: description.model_dump_json(exclude=exclude)})


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
        if isinstance(description, dict) and description.get("version", 1) not in (1, 2):
            raise NotOurs(
                "it was exported by another version of clipfleet, which this one cannot read"
            )
        return Description.model_validate(description)
    except (ValueError, ValidationError) as error:
        if isinstance(error, NotOurs):
            raise
        raise NotOurs("its description of the collection cannot be understood") from error
