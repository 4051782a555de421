"""Converts records to rows of Milvus fields and back. Does not use pymilvus."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipfleet.common.collection import LABEL_BYTES, URI_BYTES, Collection, FieldType
from clipfleet.common.identity import ID_BYTES, NAMESPACE_BYTES
from clipfleet.common.store import Match, Record, kept_metadata
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


IDS = ("pk", "id")


def output_fields(collection: Collection, include_values: bool) -> list[str]:
    """The Milvus fields that make a record, with or without the embedding."""
    declared = [column(name) for name in collection.fields]
    vector = ["embedding"] if include_values else []
    return [*TEXT, *WHOLE, "metadata", *declared, *vector]


def to_row(collection: Collection, record: Record) -> dict[str, Any]:
    """The row of a record."""
    row: dict[str, Any] = {name: getattr(record, name) for name in (*TEXT, *WHOLE)}
    metadata = kept_metadata(record.metadata)
    free = {k: v for k, v in metadata.items() if k not in collection.fields}
    for name, kind in collection.fields.items():
        value = record.metadata.get(name)
        row[column(name)] = MISSING[kind] if value is None else _as_stored(value, kind)
    return {**row, "metadata": free, "embedding": record.embedding}


def _as_stored(value: Any, kind: FieldType) -> Any:
    if kind == "float":
        return float(value)
    return int(value) if kind == "bool" else value


def bare(row: Any) -> Record:
    """The record of a row that has only the fields IDS."""
    nothing = np.empty(0, np.float32)
    return Record(pk=row["pk"], id=row["id"], namespace="", uri="", embedding=nothing)


def to_record(collection: Collection, row: Any) -> Record:
    """The record of a row with `output_fields`."""
    metadata = dict(row["metadata"] or {})
    for name, kind in collection.fields.items():
        value = row[column(name)]
        if value != MISSING[kind]:
            metadata[name] = bool(value) if kind == "bool" else value
    return Record(
        **{name: row[name] for name in (*TEXT, *WHOLE)},
        metadata=metadata,
        embedding=np.asarray(row.get("embedding", ()), np.float32),
    )


def to_match(collection: Collection, hit: Any) -> Match:
    """The match of a hit. Milvus returns the square of the euclidean distance."""
    row = {**hit["entity"], "pk": hit["pk"]}
    score = float(hit["distance"])
    if collection.metric == "euclidean":
        score = max(0.0, score) ** 0.5
    return Match(to_record(collection, row), score)


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
