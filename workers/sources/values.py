"""The one rule for the values of rows and sidecars, whatever their format.

Null, NaN and infinite numbers are no values. Numbers over 64 bits become text. Dates and times
become text in ISO format. A value of a declared field is converted to the field's type where no
more than its notation changes: 3.0, "3" and 3 are the same int, and True, "TRUE" and 1 the same
bool. What cannot be converted stays as it is; the store then refuses the image by the field's name.
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from clipfleet.common.collection import ELEMENTS, INT_LIMIT, METADATA_DEPTH, RESERVED
from clipfleet.common.identity import text_problem
from clipfleet.workers.sources.notes import Notes

BIG_NUMBERS = "numbers over 64 bits were kept as text"
BYTES = "values that are bytes and no text were left out"

EXACT_FLOAT = 2**53  # up to here, a float holds every whole number
BYTES_OF_ESCAPE = 6  # of a character in JSON at most: \u0000
MAX_PLAIN_INT, BYTES_OF_INT = 10**15, 16
BYTES_BETWEEN = 13  # quotes, colon, comma and spaces of one entry, and `false`

_TRUTH = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_BOOLS = {**_TRUTH, "1": True, "0": False, "1.0": True, "0.0": False}
_NO_VALUE = {"", "nan", "null", "none", "na", "n/a", "<na>"}  # of a declared number or bool
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40})(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")


class BadRow(Exception):
    """The row or sidecar cannot be used; the text is the reason."""


class Values:
    """Reads the values of the rows or sidecars of one source.

    Attributes:
        notes: counts what was changed or left out.

    Args:
        fields: the declared fields of the collection, by name, with their types.
        notes: counts what was changed or left out.
        metadata_bytes: the size of an image's metadata as JSON at most.
    """

    def __init__(self, fields: Mapping[str, str], notes: Notes, metadata_bytes: int) -> None:
        self._fields, self.notes, self._metadata_bytes = fields, notes, metadata_bytes

    def text(self, row: Mapping[str, Any], name: str) -> str:
        """The text of `id`, `uri` or `label`. Whole numbers are turned into text, no value into "".

        Raises:
            BadRow: the value is no text.
        """
        value = row.get(name)
        if type(value) is not str:
            value = self._plain_text(name, value)
        if value is None or value == "":
            return ""
        if isinstance(value, float) and value.is_integer():
            if abs(value) > EXACT_FLOAT:
                raise BadRow(f"{name} is a float over 2^53, which may stand for several numbers")
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadRow(f"{name} must be text, not {type(value).__name__}")
        text = str(value)
        if problem := text_problem(name, text, 65_535, empty=True):
            raise BadRow(problem)
        return text

    def metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of a row: all fields except reserved ones, such as id, uri, width, height.

        Raises:
            BadRow: the metadata is not valid, is nested too deep, or has too many bytes.
        """
        kept: dict[str, Any] = {}
        for name, value in row.items():
            if name in RESERVED:
                continue
            is_plain = type(value) is str and name not in self._fields
            read = value if is_plain else self._value(name, value)
            if read is not None:
                kept[name] = read
        limit = self._metadata_bytes
        if _most_bytes(kept) <= limit:
            return kept
        try:
            size = len(json.dumps(kept, ensure_ascii=False).encode())
        except UnicodeEncodeError as error:
            raise BadRow("metadata is not valid UTF-8") from error
        if size > limit:
            raise BadRow(f"metadata has {size} bytes as JSON; the limit is {limit}")
        return kept

    def cell(self, name: str, cell: str) -> Any:
        """The value of a CSV cell: a number or a truth value if it reads as one, else text.

        A cell of a declared field is text, which `metadata` converts.
        """
        if name in self._fields:
            return cell
        text = cell.strip()
        if text in _TRUTH:
            return _TRUTH[text]
        match = _JSON_NUMBER.fullmatch(text)
        if not match:
            return cell
        number = float(text) if match[2] or match[3] else int(text)
        return number if math.isfinite(number) else cell

    def _plain_text(self, name: str, value: Any) -> Any:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise BadRow(f"{name} is not valid UTF-8") from error
        return self._plain(value)

    def _value(self, name: str, value: Any) -> Any:
        kind = self._fields.get(name)
        if kind is None:
            return self._plain(value)
        if isinstance(value, bytes):
            value = _decoded(value)
            if value is None:
                raise BadRow(f"field {name} is not valid UTF-8")
        if not isinstance(value, int | str):
            value = self._plain(value)
        return _converted(value, kind)

    def _plain(self, value: Any, levels: int = METADATA_DEPTH) -> Any:
        """The value as JSON that the store can hold; None for no value."""
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, int):
            return value if abs(value) <= INT_LIMIT else self._as_text(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict | list | tuple):
            return self._nested(value, levels)
        if isinstance(value, Decimal):
            return self._plain(_number_of(value))
        if isinstance(value, date | datetime | time):
            return value.isoformat()
        if isinstance(value, bytes):
            text = _decoded(value)
            if text is None:
                self.notes.remark(BYTES)
            return text
        return str(value)

    def _nested(self, value: Any, levels: int) -> Any:
        if not levels:
            raise BadRow(f"metadata is nested more than {METADATA_DEPTH} levels deep")
        if isinstance(value, list) and value and all(isinstance(pair, tuple) for pair in value):
            value = dict(value)  # a map of Parquet
        if isinstance(value, dict):
            return {str(key): self._plain(member, levels - 1) for key, member in value.items()}
        return [self._plain(member, levels - 1) for member in value]

    def _as_text(self, number: int) -> str:
        self.notes.remark(BIG_NUMBERS)
        return str(number)


def _converted(value: Any, kind: str) -> Any:
    """A plain value in the type of its declared field; unchanged if it does not fit."""
    if kind in ELEMENTS:
        return _as_list(value, ELEMENTS[kind])
    if kind == "string":
        return _as_string(value)
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in _NO_VALUE:
            return None
        if kind == "bool":
            return _BOOLS.get(text, value)
        number = _read_number(text)
        value = value if number is None else number
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind == "bool":
        return bool(value) if value in (0, 1) else value
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value) if abs(value) <= EXACT_FLOAT else value
    return value


def _as_list(value: Any, kind: str) -> Any:
    """A list of the elements that are a value. Text may be a list in JSON; other values are one."""
    if isinstance(value, str):
        text = value.strip()
        if not text or (kind != "string" and text.lower() in _NO_VALUE):
            return None
        if text.startswith("["):
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
    if value is None or isinstance(value, dict):
        return value
    elements = value if isinstance(value, list) else [value]
    converted = (_converted(element, kind) for element in elements)
    return [element for element in converted if element is not None]


def _as_string(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOAT
    return str(int(value) if is_whole else value)


def _read_number(text: str) -> int | float | None:
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    number = float(text) if match[2] or match[3] else int(text)
    return number if math.isfinite(number) else None


def _number_of(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


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
