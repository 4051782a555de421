"""Turns the rows of a manifest into items."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipfleet.common.collection import METADATA_DEPTH, RESERVED
from clipfleet.common.http import uris
from clipfleet.common.identity import id_problem, printable, text_problem
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import SourceError
from clipfleet.workers.storage.locations import BadLocation, Storage

BYTES_OF_ESCAPE = 6  # of a character in JSON at most: \u0000
MAX_PLAIN_INT, BYTES_OF_INT = 10**15, 16
BYTES_BETWEEN = 13  # quotes, colon, comma and spaces of one entry, and `false`
_ENDINGS = tuple(SUFFIXES)


class BadRow(Exception):
    """The row cannot become an item; the text is the reason."""


def require_distinct(names: Sequence[str]) -> None:
    """Raise SourceError if two columns have the same name."""
    for number, name in enumerate(names, 1):
        first = names.index(name) + 1
        if first < number:
            raise SourceError(
                f"two columns of the manifest have the same name: numbers {first} and {number}"
            )


class Rows:
    """The rows of one manifest. No error quotes a row, since any file may be named as a manifest.

    Args:
        storage: resolves the URIs of the rows.
        location: the manifest's location.
        uri: the manifest's URI.
        plain: the manifest is a list of URIs without columns; any text file could be such a list.
    """

    def __init__(self, storage: Storage, location: str, uri: str, *, plain: bool = False) -> None:
        self._storage, self._location, self._uri = storage, location, printable(uri)
        self._plain = plain
        self._metadata_bytes = storage.settings.limits.metadata_bytes

    def item(self, row: Mapping[str, Any], name: str) -> Item:
        """The item of a row; one with a `problem` if the row is not valid.

        Args:
            name: names a row that has no id or URI, such as `line 12`.
        """
        try:
            return self._item(row, name)
        except BadRow as error:
            return self.bad(name, str(error))

    def bad(self, name: str, problem: str) -> Item:
        """An item that fails with this problem."""
        return Item(id=name, uri=self._uri, read="", problem=f"{name}: {problem}")

    def _item(self, row: Mapping[str, Any], name: str) -> Item:
        text = _text(row, "uri")
        if not text:
            raise BadRow("there is no uri")
        try:
            read = self._storage.find(text, self._location)
        except BadLocation as error:
            raise BadRow(f"the uri {error.problem}") from error
        uri = read.partition(":")[2]
        label, metadata = _text(row, "label"), metadata_of(row, self._metadata_bytes)
        item_id = _text(row, "id") or uri
        if problem := id_problem(item_id) or text_problem("uri", uri, 4_096):
            raise BadRow(problem)
        row_name = "" if self._is_uri(text) else name
        return Item(id=item_id, uri=uri, read=read, label=label, metadata=metadata, row=row_name)

    def _is_uri(self, text: str) -> bool:
        """Whether a text is meant as a URI, and is not a line of some other file."""
        if text.lower().endswith(_ENDINGS):
            return True
        return not self._plain and bool(uris.scheme(text))


def _text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field; numbers are turned into text, and null or NaN into ""."""
    value = row.get(name)
    if not _is_present(value) or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"{name} must be text, not {type(value).__name__}")
    text = str(value)
    if problem := text_problem(name, text, 65_535, empty=True):
        raise BadRow(problem)
    return text


def metadata_of(row: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The metadata of a row: all fields except reserved ones, such as id, uri, width and height.

    Raises:
        BadRow: the metadata is not valid JSON, is nested too deep, or has more than `limit` bytes.
    """
    kept = {
        name: value for name, value in row.items() if name not in RESERVED and _is_present(value)
    }
    if _most_bytes(kept) <= limit:
        return kept
    try:
        _check_depth(kept, METADATA_DEPTH)
        size = len(json.dumps(kept, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError as error:
        raise BadRow("metadata is not valid UTF-8") from error
    except ValueError as error:
        raise BadRow("metadata has a number that is not finite") from error
    if size > limit:
        raise BadRow(f"metadata has {size} bytes as JSON; the limit is {limit}")
    return kept


def _most_bytes(metadata: Mapping[str, Any]) -> float:
    """The size of metadata as JSON at most; infinity if it may be invalid or nested."""
    size = 2
    for name, value in metadata.items():
        if not name.isascii():
            return math.inf
        if type(value) is str and value.isascii():
            size += len(value) * BYTES_OF_ESCAPE
        elif type(value) is int and abs(value) < MAX_PLAIN_INT:
            size += BYTES_OF_INT
        elif value is not True and value is not False:
            return math.inf
        size += len(name) * BYTES_OF_ESCAPE + BYTES_BETWEEN
    return size


def _is_present(value: Any) -> bool:
    """Whether a cell has a value; tables write a missing number as NaN."""
    return value is not None and (not isinstance(value, float) or not math.isnan(value))


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise BadRow(f"metadata is nested more than {METADATA_DEPTH} levels deep")
        for member in value.values() if isinstance(value, dict) else value:
            _check_depth(member, levels - 1)
