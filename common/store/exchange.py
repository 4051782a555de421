"""The Parquet file in which a collection travels: one row per image, the collection's own
description in the file's metadata. Needs pyarrow, which is imported when it is used.

`embedding`: list<float32>. A declared field has a column of its own name and type, null where an
image does not have it; all other metadata is one JSON object in `metadata`. No name can clash: a
collection cannot declare a field that is called as one of these.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.http.schemas import FieldType, Metric

KEY = b"clipfleet"
TEXT = ("id", "namespace", "uri", "label", "content_hash")
WHOLE = ("bytes", "width", "height")


class NotOurs(ValueError):
    """A file that was not exported by clipfleet, or by a later one, or is broken."""


class Description(BaseModel):
    """What is exported."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    name: str
    metric: Metric
    model: str
    dim: int
    fields: dict[str, FieldType]


def schema_of(about: Description) -> Any:
    import pyarrow as pa

    kinds = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    columns = [
        *((name, pa.string()) for name in TEXT),
        *((name, pa.int64()) for name in WHOLE),
        ("indexed_at", pa.timestamp("ms", "UTC")),
        *((name, kinds[kind]) for name, kind in about.fields.items()),
        ("metadata", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
    return pa.schema(columns, metadata={KEY: about.model_dump_json()})


def description_of(metadata: Mapping[bytes, bytes] | None) -> Description:
    raw = (metadata or {}).get(KEY)
    if raw is None:
        raise NotOurs("it is Parquet, but no export of clipfleet")
    try:
        told = json.loads(raw)
        if isinstance(told, dict) and told.get("version", 1) != 1:
            raise NotOurs("it was exported by another version of clipfleet, which is not known")
        return Description.model_validate(told)
    except (ValueError, ValidationError) as error:
        if isinstance(error, NotOurs):
            raise
        raise NotOurs("its description of the collection cannot be understood") from error
