"""Files of `export_collection`: written completely or not at all, and read in pieces."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from clipfleet.client import arguments
from clipfleet.common.http.exchange import (
    TEXT,
    WHOLE,
    Description,
    NotOurs,
    description_of,
    schema_of,
    subset_schema,
)
from clipfleet.errors import invalid_argument

MAX_ROWS = 1_000  # rows in one request
MAX_NUMBERS = 200_000  # numbers of embeddings in one request, about 4 MB as JSON
MAGIC = b"PAR1"  # at the beginning and at the end of a Parquet file


@contextmanager
def new_file(file: str | Path, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that replaces `file` at the end of the block, or is removed after an error.

    Raises:
        FileExistsError: `file` exists, and `overwrite` is False.
    """
    path = Path(arguments.text("file", file)).expanduser()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with unfinished.open("xb") as out:
            yield out
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_complete(out: BinaryIO) -> bool:
    """Whether the file ends as a Parquet file does."""
    out.flush()
    with open(out.name, "rb") as written:
        written.seek(-min(len(MAGIC), out.tell()), os.SEEK_END)
        return written.read() == MAGIC


class ExportFile:
    """An exported file, to be imported.

    Attributes:
        description: the collection that was exported.
        rows: number of images.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidRequest: the file is not an export, or is damaged. Raised by `pieces`, too.
    """

    def __init__(self, file: str | Path) -> None:
        self._path = Path(arguments.text("file", file)).expanduser()
        with self._readable():
            self._file = _parquet(self._path)
            schema = self._file.schema_arrow
            self.description: Description = description_of(schema.metadata)
            _require_columns(schema, self.description)
            self.rows: int = self._file.metadata.num_rows

    def pieces(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield (namespace, vectors for `upsert`), with as many vectors as one request takes."""
        size = max(1, min(MAX_ROWS, MAX_NUMBERS // self.description.dim))
        batches = self._file.iter_batches(size)
        before = 0
        while True:
            with self._readable():
                batch = next(batches, None)
                if batch is None:
                    return
                _require_vectors(batch, self.description.dim, before)
                rows = batch.to_pylist()
            before += len(rows)
            rows.sort(key=lambda row: str(row["namespace"]))
            for namespace, some in groupby(rows, lambda row: str(row["namespace"])):
                yield namespace, [self._vector(row) for row in some]

    def _vector(self, row: dict[str, Any]) -> dict[str, Any]:
        values = {name: row[name] for name in (*TEXT, *WHOLE) if name != "namespace"}
        with self._readable():
            metadata = json.loads(row["metadata"] or "{}")
        typed = (*self.description.fields, *self.description.columns)
        declared = {name: row[name] for name in typed if row[name] is not None}
        return {**values, "metadata": {**declared, **metadata}, "values": row["embedding"]}

    @contextmanager
    def _readable(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except (ArrowException, OSError, ValueError) as error:
            reason = "it is not a Parquet file, or is incomplete or damaged"
            if isinstance(error, NotOurs):
                reason = str(error)
            message = f"{self._path} cannot be imported: {reason}"
            raise invalid_argument("file", message, is_sentence=True) from error


def _parquet(path: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    with path.open("rb"):  # raises FileNotFoundError and PermissionError
        return ParquetFile(path)


def _require_columns(schema: Any, description: Description) -> None:
    expected = schema_of(description) if description.version == 1 else subset_schema(description)
    for field in expected:
        actual = schema.field(field.name).type if field.name in schema.names else "missing"
        if actual != field.type:
            message = f"its column {field.name!r} is {actual}, not {field.type}"
            raise NotOurs(message)


def _require_vectors(batch: Any, dim: int, before: int) -> None:
    """NotOurs with the number of the first row that has no valid vector."""
    from pyarrow import compute

    embeddings = batch.column("embedding")
    if embeddings.null_count or not compute.all(compute.is_finite(embeddings.flatten())).as_py():
        for at, values in enumerate(embeddings, before + 1):
            if not values.is_valid or not compute.all(compute.is_finite(values.values)).as_py():
                raise NotOurs(f"row {at} has no vector, or one that is not finite")
    for at, length in enumerate(compute.list_value_length(embeddings).to_pylist(), before + 1):
        if length != dim:
            raise NotOurs(f"the vector in row {at} has {length} numbers, not {dim}")
