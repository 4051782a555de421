"""Converts records to rows of Milvus fields and back. Does not use pymilvus."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipfleet.common.collection import LABEL_BYTES, URI_BYTES, Collection, FieldType
from clipfleet.common.identity import ID_BYTES, NAMESPACE_BYTES
from clipfleet.common.store import Record, Vectors, kept_metadata
from clipfleet.common.store.expressions import MISSING, column

MESSAGE_BYTES = 16_000_000  # of one gRPC message; a server accepts 64 MB by default


TEXT = {
    "pk": 32,
    "id": ID_BYTES,
    "namespace": NAMESPACE_BYTES,
    "uri": URI_BYTES,
    "content_hash": 32,
    "job_id": 64,
    "label": LABEL_BYTES,
}
WHOLE = ("bytes", "width", "height", "indexed_at")
OWN = (*TEXT, *WHOLE)
NOTHING: Vectors = np.empty(0, np.float32)


IDS = ("pk", "id")


SHOWN = ("id", "uri", "label")  # in a match, besides its metadata


def output_fields(
    collection: Collection, include_values: bool, *, brief: bool = False
) -> list[str]:
    """The Milvus fields that make a record, with or without the embedding.

    Args:
        brief: only what a match shows.
    """
    own = SHOWN if brief else OWN
    declared = [column(name) for name in collection.columns]
    vector = ["embedding"] if include_values else []
    return [*own, "metadata", *declared, *vector]


def to_row(collection: Collection, record: Record) -> dict[str, Any]:
    """The row of a record."""
    row: dict[str, Any] = {name: getattr(record, name) for name in OWN}
    metadata = kept_metadata(record.metadata)
    free = {k: v for k, v in metadata.items() if k not in collection.columns}
    for name, kind in collection.columns.items():
        value = record.metadata.get(name)
        row[column(name)] = MISSING[kind] if value is None else _as_stored(value, kind)
    return {**row, "metadata": free, "embedding": record.embedding}


def _as_stored(value: Any, kind: FieldType) -> Any:
    if kind == "float":
        return float(value)
    return int(value) if kind == "bool" else value


def bare(row: Any) -> Record:
    """The record of a row that has only the fields IDS."""
    return Record(pk=row["pk"], id=row["id"], namespace="", uri="", embedding=NOTHING)


def to_record(collection: Collection, row: Any) -> Record:
    """The record of a row with `output_fields`, its primary key, and its namespace."""
    metadata = dict(row["metadata"] or {})
    for name, kind in collection.columns.items():
        value = row[column(name)]
        if value != MISSING[kind]:
            metadata[name] = bool(value) if kind == "bool" else value
    embedding = row.get("embedding")
    return Record(
        **{name: row[name] for name in OWN if name in row},
        metadata=metadata,
        embedding=NOTHING if embedding is None else np.asarray(embedding, np.float32),
    )


def rows_per_message(dim: int) -> int:
    """How many rows fit into a message of MESSAGE_BYTES, with their text.

    Args:
        dim: the length of an embedding; 0 for rows without embeddings.
    """
    return max(1, MESSAGE_BYTES // (4 * dim + 8_000))


def batches(records: Sequence[Record], dim: int) -> Iterator[Sequence[Record]]:
    """The records in parts that fit into one message each."""
    step = rows_per_message(dim)
    for start in range(0, len(records), step):
        yield records[start : start + step]
