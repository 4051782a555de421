"""Parquet manifests, read row group by row group. An export of clipfleet is one, too."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.exchange import NotOurs, description_of
from clipfleet.common.http.sources import ManifestSource
from clipfleet.common.identity import printable
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import Listed, SourceError
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.rows import Rows, require_distinct
from clipfleet.workers.storage.locations import Storage

BATCH = 512
MAX_MEAN_BYTES = 4_096  # of a column of bytes that may be text
COLUMNS_OF_BYTES = "columns of bytes were not read"


class Parquet:
    """A Parquet manifest. The cursor is a row group and a row: resuming reads one group at most."""

    def __init__(
        self,
        source: ManifestSource,
        storage: Storage,
        copies: Copies,
        fields: Mapping[str, str],
    ) -> None:
        self._fields, self.notes = fields, Notes()
        self._uri, self._storage, self._copies = source.uri, storage, copies
        self._shown = printable(source.uri)

    def stream(self, after: str) -> Iterator[Listed]:
        from pyarrow import ArrowException

        try:
            location = self._storage.find(self._uri)
            rows = Rows(self._storage, location, self._uri, self._fields, self.notes)
            with self._storage.open(self._copies.ensure_local(location)) as file:
                yield from self._items(file, after, rows)
        except Unreadable as error:
            raise SourceError(f"the manifest {self._shown} cannot be read: {error}") from error
        except (ArrowException, OSError) as error:  # the error's text may quote the file
            raise SourceError(
                f"the manifest {self._shown} cannot be read: it is damaged or not a Parquet file"
            ) from error

    def _items(self, file: BinaryIO, after: str, rows: Rows) -> Iterator[Listed]:
        from pyarrow.parquet import ParquetFile

        table = ParquetFile(file)
        columns = _columns(table, self._fields, Notes() if after else self.notes)
        is_export = _exported_columns(table.schema_arrow.metadata) is not None
        group, _, row = after.partition(":")
        begin, skip = (int(group), int(row)) if after else (0, 0)
        if after and skip >= table.metadata.row_group(begin).num_rows:
            begin, skip = begin + 1, 0
        before = sum(table.metadata.row_group(g).num_rows for g in range(begin))
        for number in range(begin, table.num_row_groups):
            for index, values in enumerate(_rows(table, number, columns)):
                if number > begin or index >= skip:
                    name = f"row {before + index + 1}"
                    whole = _with_metadata(values) if is_export else values
                    yield Listed(_item(whole, name, rows), f"{number}:{index + 1}")
            before += table.metadata.row_group(number).num_rows

    def count(self) -> int:
        from pyarrow.parquet import ParquetFile

        location = self._storage.find(self._uri)
        if location.startswith("url:"):
            return 0
        with self._storage.open(location) as file:
            return int(ParquetFile(file).metadata.num_rows)

    def nothing_found(self) -> str:
        return f"the manifest {self._shown} has no rows"


def _columns(table: Any, fields: Mapping[str, str], notes: Notes) -> list[str]:
    """The columns to read: all except columns of long bytes, such as images."""
    schema = table.schema_arrow
    names = list(schema.names)
    if "uri" not in names:
        raise SourceError("the manifest has no column 'uri'")
    require_distinct(names)
    if (exported := _exported_columns(schema.metadata)) is not None:
        return [name for name in names if name in exported]
    expected = {"id", "uri", "label", *fields}
    columns = []
    for field in schema:
        is_bytes = "binary" in str(field.type)
        is_text = "<" not in str(field.type) and (
            field.name in expected or _mean_bytes(table.metadata, field.name) <= MAX_MEAN_BYTES
        )
        if is_bytes and not is_text:
            notes.remark(COLUMNS_OF_BYTES)
        else:
            columns.append(field.name)
    return columns


def _exported_columns(metadata: Mapping[bytes, bytes] | None) -> set[str] | None:
    """The columns of an export that describe its images; None for other files."""
    try:
        description = description_of(metadata)
    except NotOurs:
        return None
    return {"id", "uri", "label", "metadata", *description.fields, *description.columns}


def _mean_bytes(metadata: Any, name: str) -> float:
    """The mean size of a column's values."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == name)
    return float(size / max(1, metadata.num_rows))


def _rows(table: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any] | str]:
    """The rows of a group; the reason for a row that cannot be read."""
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns):
        try:
            yield from batch.to_pylist()
        except (ValueError, OverflowError):
            for index in range(batch.num_rows):
                yield _single_row(batch.slice(index, 1))


def _with_metadata(row: dict[str, Any] | str) -> dict[str, Any] | str:
    """A row of an export with the metadata that has no column, or none that holds it exactly."""
    if isinstance(row, str):
        return row
    try:
        rest = json.loads(row.pop("metadata", None) or "{}")
    except (ValueError, TypeError, RecursionError):
        return "its metadata is not JSON"
    return {**row, **rest} if isinstance(rest, dict) else "its metadata is not a JSON object"


def _single_row(batch: Any) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
        return row
    except UnicodeDecodeError:
        return "it is not valid UTF-8"
    except (ValueError, OverflowError):
        return "a date or a time of it is not in the years 1 to 9999"


def _item(row: dict[str, Any] | str, name: str, rows: Rows) -> Item:
    return rows.bad(name, row) if isinstance(row, str) else rows.item(row, name)
