"""A row of a manifest becomes an item."""

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
from clipfleet.workers.storage.locations import BadPlace, Storage

OURS = frozenset({"id", "uri", "label"})


class BadRow(Exception):
    """This row cannot be an item; the text says why."""


def require_distinct(names: Sequence[str]) -> None:
    """SourceError when two columns have one name."""
    for number, name in enumerate(names, 1):
        first = names.index(name) + 1
        if first < number:
            raise SourceError(
                f"two columns of the manifest have the same name: numbers {first} and {number}"
            )


class Rows:
    """The rows of one manifest. No error says what a row holds: the file may be no manifest.

    Args:
        place: where the manifest lies.
        uri: its URI.
        plain: it is a list of URIs without columns, as which any text can be read.
    """

    def __init__(self, places: Storage, place: str, uri: str, *, plain: bool = False) -> None:
        self._places, self._place, self._uri = places, place, printable(uri)
        self._plain = plain
        self._metadata_bytes = places.settings.limits.metadata_bytes

    def item(self, row: Mapping[str, Any], name: str) -> Item:
        """`name`: how a row is called that has no id or uri to be called by, `line 12`."""
        try:
            return self._item(row, name)
        except BadRow as error:
            return self.bad(name, str(error))

    def bad(self, name: str, problem: str) -> Item:
        return Item(id=name, uri=self._uri, read="", problem=f"{name}: {problem}")

    def _item(self, row: Mapping[str, Any], name: str) -> Item:
        given = _text(row, "uri")
        if not given:
            raise BadRow("there is no uri")
        try:
            read = self._places.find(given, self._place)
        except BadPlace as error:
            raise BadRow(f"its uri {error.problem}") from error
        uri = read.partition(":")[2]
        label, metadata = _text(row, "label"), metadata_of(row, self._metadata_bytes)
        item_id = _text(row, "id") or uri
        if problem := id_problem(item_id) or text_problem("uri", uri, 4_096):
            raise BadRow(problem)
        row_name = "" if self._is_uri(given) else name
        return Item(id=item_id, uri=uri, read=read, label=label, metadata=metadata, row=row_name)

    def _is_uri(self, given: str) -> bool:
        """Whether a text is meant to be one, and not the line of some other file."""
        if given.lower().endswith(tuple(SUFFIXES)):
            return True
        return not self._plain and bool(uris.scheme(given))


def _text(row: Mapping[str, Any], name: str) -> str:
    """Numbers may name things, too; null is nothing."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"{name} must be text, not {type(value).__name__}")
    text = str(value)
    if problem := text_problem(name, text, 65_535, empty=True):
        raise BadRow(problem)
    return text


def metadata_of(row: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """What is not ours or the service's own (it measures width and height itself). BadRow."""
    kept = {name: value for name, value in row.items() if name not in RESERVED and _said(value)}
    try:
        _check_depth(kept, METADATA_DEPTH)
        size = len(json.dumps(kept, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError as error:
        raise BadRow("metadata is not valid UTF-8") from error
    except ValueError as error:
        raise BadRow("metadata holds a number that is not finite") from error
    if size > limit:
        raise BadRow(f"metadata has {size} bytes as JSON, the limit is {limit}")
    return kept


def _said(value: Any) -> bool:
    """Tables write a missing number as NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise BadRow(f"metadata is nested more than {METADATA_DEPTH} deep")
        for one in value.values() if isinstance(value, dict) else value:
            _check_depth(one, left - 1)
