"""Parquet manifests, read row group by row group."""

import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import ManifestSource
from clipfleet.common.identity import printable
from clipfleet.workers.sources.base import Listed, SourceError
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.rows import Rows, require_distinct
from clipfleet.workers.storage.locations import Storage

BATCH = 512


class Parquet:
    """A Parquet manifest. The cursor is a row group and a row: resuming reads one group at most."""

    def __init__(self, source: ManifestSource, storage: Storage, copies: Copies) -> None:
        self._uri, self._storage, self._copies = source.uri, storage, copies
        self._shown = printable(source.uri)

    def stream(self, after: str) -> Iterator[Listed]:
        from pyarrow import ArrowException

        try:
            location = self._storage.find(self._uri)
            rows = Rows(self._storage, location, self._uri)
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
        columns = _columns(table.schema_arrow)
        group, _, row = after.partition(":")
        begin, skip = (int(group), int(row)) if after else (0, 0)
        if after and skip >= table.metadata.row_group(begin).num_rows:
            begin, skip = begin + 1, 0
        before = sum(table.metadata.row_group(g).num_rows for g in range(begin))
        for number in range(begin, table.num_row_groups):
            for index, values in enumerate(_rows(table, number, columns)):
                if number > begin or index >= skip:
                    name = f"row {before + index + 1}"
                    yield Listed(_item(values, name, rows), f"{number}:{index + 1}")
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


def _columns(schema: Any) -> list[str]:
    """The columns to read: all except columns of bytes, such as images, which are no metadata."""
    names = list(schema.names)
    if "uri" not in names:
        raise SourceError("the manifest has no column 'uri'")
    require_distinct(names)
    return [field.name for field in schema if "binary" not in str(field.type)]


def _rows(table: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any] | None]:
    """The rows of a group; None for a row whose text is not UTF-8."""
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=columns):
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:
            for index in range(batch.num_rows):
                yield _single_row(batch.slice(index, 1))


def _single_row(batch: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
        return row
    except UnicodeDecodeError:
        return None


def _item(row: dict[str, Any] | None, name: str, rows: Rows) -> Any:
    if row is None:
        return rows.bad(name, "it is not valid UTF-8")
    return rows.item({key: _plain(value) for key, value in row.items()}, name)


def _plain(value: Any) -> Any:
    """A value of JSON: times in ISO format, decimals as numbers, NaN as None."""
    if isinstance(value, dict):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int | float):
        return None if isinstance(value, float) and math.isnan(value) else value
    return str(value)
