"""Parsers of manifests of lines: JSON objects, CSV records, plain URIs."""

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import from_json

from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import Listed, SourceError
from clipfleet.workers.sources.lines import MAX_LINE_BYTES, Line, Mark
from clipfleet.workers.sources.rows import Rows, require_distinct

TOO_LONG = f"the line has more than {MAX_LINE_BYTES} bytes"
DELIMITERS = ",\t;"  # the first one is taken unless another one tells the column `uri` apart


def json_items(lines: Iterator[Line], rows: Rows) -> Iterator[Listed]:
    """Items of JSON lines; SourceError if the manifest is one JSON array."""
    for line in lines:
        if line.raw is None:
            yield _bad(rows, line, TOO_LONG)
        elif text := line.raw.strip():
            if line.number == 1 and text[:1] == b"[":
                raise SourceError(
                    "the manifest is one JSON array; write one object per line (JSON lines)"
                )
            yield Listed(_json_item(text, rows, line.name), str(line.after))


def _json_item(text: bytes, rows: Rows, name: str) -> Item:
    try:
        row = _parsed(text)
    except UnicodeDecodeError:
        return rows.bad(name, "it is not valid UTF-8")
    except (ValueError, RecursionError) as error:
        return rows.bad(name, f"it is not JSON: {error}"[:200])
    if not isinstance(row, dict):
        return rows.bad(name, "it is not a JSON object")
    return rows.item(row, name)


def _parsed(text: bytes) -> Any:
    """The value of a JSON text. Errors are those of `json`, which also reads what JSON forbids."""
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        return json.loads(text.decode())


def plain_items(lines: Iterator[Line], rows: Rows) -> Iterator[Listed]:
    """Items of a list with one URL or path per line; blank lines and # comments are skipped."""
    for line in lines:
        if line.raw is None:
            yield _bad(rows, line, TOO_LONG)
        elif (text := line.raw.strip()) and not text.startswith(b"#"):
            try:
                yield Listed(rows.item({"uri": text.decode()}, line.name), str(line.after))
            except UnicodeDecodeError:
                yield _bad(rows, line, "it is not valid UTF-8")


class Records:
    """Parses lines into CSV records.

    A record that is not valid ends at its first line, so that an open quote does not swallow the
    valid records after it.

    Blanks at the beginning of a cell do not count, even in front of a quote.

    Args:
        delimiter: what separates the cells; "" until the header shows it.

    Attributes:
        after: the position after the last record.
    """

    def __init__(self, lines: Iterator[Line], delimiter: str = "") -> None:
        self._lines, self._again = lines, deque[Line]()
        self.delimiter = delimiter
        self._taken: list[Line] = []
        self.after = Mark()

    def __iter__(self) -> Iterator[tuple[list[str] | str, Line, Line]]:
        """(cells or the problem, first line, last line) of each record."""
        while True:
            self._taken = []
            cells: list[str] | str | None
            try:
                cells = next(self._reader(), None)
            except csv.Error as error:
                cells = TOO_LONG if self._taken[0].raw is None else f"it is not CSV: {error}"
                while len(self._taken) > 1:
                    self._again.appendleft(self._taken.pop())
            if cells is None:
                return
            self.after = self._taken[-1].after
            if cells:
                yield cells, self._taken[0], self._taken[-1]

    def _reader(self) -> Iterator[list[str]]:
        delimiter = self.delimiter or DELIMITERS[0]
        return csv.reader(self._texts(), strict=True, skipinitialspace=True, delimiter=delimiter)

    def _texts(self) -> Iterator[str]:
        while line := self._next():
            self._taken.append(line)
            if line.raw is None:
                raise csv.Error(TOO_LONG)
            yield line.raw.decode("utf-8", "surrogateescape")

    def _next(self) -> Line | None:
        return self._again.popleft() if self._again else next(self._lines, None)


def csv_header(records: Records) -> list[str]:
    """The column names from the first record; none if the file is empty.

    It also shows what separates the cells: a comma, a tab or a semicolon.

    Raises:
        SourceError: the first record does not name the columns.
    """
    first = next(iter(records), None)
    if first is None:
        return []
    cells = first[0]
    if isinstance(cells, str):
        raise SourceError(f"the first line must name the columns, but {cells}")
    names = [cell.strip() for cell in cells]
    for delimiter in DELIMITERS[1:]:
        if "uri" not in names and len(names) == 1 and delimiter in names[0]:
            others = [cell.strip() for cell in next(csv.reader(names, delimiter=delimiter))]
            if "uri" in others:
                names, records.delimiter = others, delimiter
    if "uri" not in names:
        raise SourceError("the manifest has no column 'uri'; its first line must name the columns")
    require_distinct(names)
    return names


def csv_items(records: Records, names: Sequence[str], rows: Rows) -> Iterator[Listed]:
    """Items of CSV records.

    Args:
        names: the column names.
    """
    for cells, first, last in records:
        yield Listed(_csv_item(cells, names, rows, first.name), str(last.after))


def _csv_item(cells: list[str] | str, names: Sequence[str], rows: Rows, name: str) -> Item:
    if isinstance(cells, str):
        return rows.bad(name, cells)
    if len(cells) != len(names):
        return rows.bad(name, f"it has {len(cells)} cells; the first line has {len(names)}")
    row = {
        column: (
            cell.strip() if column in ("id", "uri", "label") else rows.values.cell(column, cell)
        )
        for column, cell in zip(names, cells, strict=True)
        if column and cell
    }
    return rows.item(row, name)


def _bad(rows: Rows, line: Line, problem: str) -> Listed:
    return Listed(rows.bad(line.name, problem), str(line.after))
