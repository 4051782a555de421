"""Writes the rows of an export as one Parquet file. Needs pyarrow."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clipfleet.client.exports.columns import Columns, kind_of
from clipfleet.client.exports.plan import Progress
from clipfleet.client.exports.spool import RowDict, Spool
from clipfleet.common.collection import FieldType
from clipfleet.common.http.exchange import TEXT, WHOLE, Description, subset_schema

GROUP_BYTES = 3_000_000  # of embeddings in one row group
GROUP_ROWS = 2_000  # at most
SCORE = "_score"


def write_parquet(spool: Spool, path: Path, progress: Progress | None) -> None:
    """Write a Parquet file.

    Args:
        spool: the rows.
        path: the new file.
        progress: told how many rows are written.
    """
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    description = _described(spool)
    scores = spool.scores
    score = _score_name(description) if scores is not None else None
    schema = subset_schema(description, score)
    size = max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * description.dim)))
    done = 0
    with ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _groups(spool, size):
            columns = _columns(rows, description)
            if score is not None:
                columns[score] = [(scores or {}).get(row["id"]) for row in rows]
            writer.write_table(Table.from_pydict(columns, schema=schema))
            done += len(rows)
            if progress:
                progress("writing", done)


def _described(spool: Spool) -> Description:
    """The description of the collection with the columns that the metadata needs."""
    plain = spool.plan.description
    columns = Columns(plain.fields)
    for _, row in spool.rows():
        columns.add(row["metadata"])
    return plain.model_copy(update={"version": 2, "columns": columns.typed()})


def _score_name(description: Description) -> str:
    name = SCORE
    while name in description.fields or name in description.columns:
        name = f"_{name}"
    return name


def _groups(spool: Spool, size: int) -> Iterator[list[RowDict]]:
    rows = (row for _, row in spool.rows())
    while group := list(islice(rows, size)):
        yield group


def _columns(rows: Sequence[RowDict], description: Description) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in TEXT + WHOLE}
    columns["indexed_at"] = [row["indexed_at"] for row in rows]
    typed = {**description.fields, **description.columns}
    for name, kind in typed.items():
        columns[name] = [_cell(row["metadata"].get(name), kind) for row in rows]
    columns["metadata"] = [_rest(row["metadata"], typed) for row in rows]
    numbers = b"".join(base64.b64decode(row["embedding"]) for row in rows)
    flat = pa.Array.from_buffers(
        pa.float32(), len(rows) * description.dim, [None, pa.py_buffer(numbers)]
    )
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, description.dim)
    return columns


def _cell(value: Any, kind: FieldType) -> Any:
    return float(value) if kind == "float" and isinstance(value, int) else value


def _rest(metadata: Mapping[str, Any], typed: Mapping[str, FieldType]) -> str:
    """As JSON, all metadata that no column holds exactly: 3 in a column of 3.0 is in it, too."""
    rest = {
        name: value
        for name, value in metadata.items()
        if name not in typed or typed[name] != kind_of(value)
    }
    return json.dumps(rest, ensure_ascii=False)
