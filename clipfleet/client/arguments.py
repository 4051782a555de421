"""Checks the arguments of the clients' methods, and converts what is clear to JSON.

Numbers and arrays of numpy, torch and pandas become numbers and lists, dates and times text in ISO
format, paths and UUIDs text. An argument that is not valid is an `InvalidRequest` with its name, as
if the service had refused it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from clipfleet.common.collection import METADATA_DEPTH
from clipfleet.errors import invalid_argument, invalid_arguments

_PLAIN = (str, int, float, bool, type(None))
_BYTES = (bytes, bytearray, memoryview)


@contextmanager
def checking(name: str = "") -> Iterator[None]:
    """Turn the errors of a schema into InvalidRequest.

    Args:
        name: what the fields of the schema are parts of, such as "vectors.3".
    """
    try:
        yield
    except ValidationError as error:
        faults = [
            (".".join(str(part) for part in (name, *fault["loc"]) if part != ""), fault["msg"])
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise invalid_arguments(faults) from None


def text(name: str, value: Any, *, empty: bool = False) -> str:
    """A text, or a path as text.

    Args:
        name: name of the argument.
        value: the value.
        empty: whether the text may be empty.

    Raises:
        InvalidRequest: the value is no text, is empty, or contains half a character.
    """
    plain = as_json(name, value)
    if not isinstance(plain, str):
        raise invalid_argument(name, f"expected text, not {kind_of(value)}")
    if not (plain or empty):
        raise invalid_argument(name, "it is empty")
    return plain


def whole(name: str, value: Any) -> int:
    """A whole number. InvalidRequest if the value is none."""
    plain = as_json(name, value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise invalid_argument(name, f"expected a whole number, not {kind_of(value)}")
    return plain


def items(name: str, value: Any, what: str) -> Iterable[Any]:
    """The items of an iterable. InvalidRequest for a text, bytes, a mapping or a single value.

    Args:
        name: name of the argument.
        value: the value.
        what: what is expected, for the message: "a list of texts".
    """
    single = isinstance(value, (str, PurePath, Mapping, *_BYTES))
    if single or not hasattr(value, "__iter__") or hasattr(value, "read"):
        raise invalid_argument(name, f"expected {what}, not {kind_of(value)}")
    elements: Iterable[Any] = value
    return elements


def mapping(name: str, value: Any, what: str) -> Mapping[str, Any]:
    """A mapping whose keys are text. InvalidRequest for anything else.

    Args:
        name: name of the argument.
        value: the value.
        what: what is expected, for the message.
    """
    if not isinstance(value, Mapping):
        raise invalid_argument(name, f"expected {what}, not {kind_of(value)}")
    for key in value:
        _check_key(name, key)
    return value


def as_filter(value: Any, name: str = "filter") -> dict[str, Any] | None:
    """A filter as JSON. A set becomes a list. InvalidRequest for what no filter compares with."""
    if value is None:
        return None
    entries = mapping(name, value, 'a mapping such as {"label": "cat"}')
    return {key: as_json(f"{name}.{key}", entry) for key, entry in entries.items()}


def as_metadata(name: str, value: Any) -> dict[str, Any]:
    """Metadata as JSON.

    As in all sources, a number that is not finite is no value: the field is left out, or is null in
    a list or an object.
    """
    entries = mapping(name, value, 'a mapping such as {"year": 2024}')
    plain = ((key, as_json(f"{name}.{key}", entry, nan=True)) for key, entry in entries.items())
    return {key: entry for key, entry in plain if entry is not None}


def as_changes(name: str, value: Any) -> dict[str, Any]:
    """New values of metadata as JSON. None, and a number that is not finite, removes a key."""
    entries = mapping(name, value, 'a mapping such as {"year": 2024}')
    return {key: as_json(f"{name}.{key}", entry, nan=True) for key, entry in entries.items()}


def as_json(name: str, value: Any, *, nan: bool = False, levels: int = METADATA_DEPTH) -> Any:
    """A value as JSON.

    Args:
        name: name of the argument, with the place in it: "filter.year".
        value: the value.
        nan: NaN and infinite numbers become null instead of an error.
        levels: levels of lists and mappings at most.

    Raises:
        InvalidRequest: the value cannot be converted.
    """
    if type(value) is str:
        return value if value.isascii() else _unicode(name, value)
    if type(value) in (int, bool, type(None)):
        return value
    if isinstance(value, float | Decimal):
        return _number(name, value, nan)
    if isinstance(value, Enum):
        return as_json(name, value.value, nan=nan, levels=levels)
    if isinstance(value, str | int):  # of a subclass: JSON of another library may know it
        return _unicode(name, str(value)) if isinstance(value, str) else int(value)
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return _number(name, math.nan, nan)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, PurePath):
        return _unicode(name, value.as_posix())
    if isinstance(value, UUID):
        return str(value)
    return _nested(name, value, nan, levels)


def _nested(name: str, value: Any, nan: bool, levels: int) -> Any:
    if isinstance(value, _BYTES):
        raise invalid_argument(name, "bytes are no JSON: decode them, as in value.decode()")
    if not levels:
        raise invalid_argument(name, f"it is nested more than {METADATA_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key in value:
            _check_key(name, key)
        return {
            key: as_json(f"{name}.{key}", entry, nan=nan, levels=levels - 1)
            for key, entry in value.items()
        }
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)  # in the same order at every call
    elif hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = _of_numpy(value)
        if not isinstance(value, list):
            return as_json(name, value, nan=nan, levels=levels - 1)
    if isinstance(value, list | tuple):
        return [
            as_json(f"{name}.{n}", entry, nan=nan, levels=levels - 1)
            for n, entry in enumerate(value)
        ]
    raise invalid_argument(name, f"{kind_of(value)} cannot be sent as JSON")


def _of_numpy(value: Any) -> Any:
    """An array as a list, a number as Python's, and a time as Python's."""
    plain = value.tolist()
    has_times = str(value.dtype).startswith(("datetime64", "timedelta64"))
    if has_times and isinstance(plain, int | list):  # nanoseconds would be whole numbers
        kind = str(value.dtype).partition("[")[0]
        return value.astype(f"{kind}[us]").tolist()
    return plain


def _number(name: str, value: float | Decimal, nan: bool) -> float | int | None:
    if not math.isfinite(value):
        if nan:
            return None
        raise invalid_argument(name, f"{value} is not a finite number")
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    return float(value)


def _unicode(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid_argument(
            name, f"{value[:100]!r} is not valid Unicode: it contains half a character"
        ) from None
    return value


def _check_key(name: str, key: Any) -> None:
    if not isinstance(key, str):
        raise invalid_argument(name, f"a name must be text, not {kind_of(key)}: {key!r:.100}")
    _unicode(name, key)


def numbers(name: str, values: Any) -> list[Any]:
    """A vector as a list. The schema checks that the elements are finite numbers.

    Raises:
        InvalidRequest: the value is no list, or has another shape.
    """
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        advice = "; give one row of it" if len(shape) == 2 else ""
        message = f"expected a list of numbers, not an array of shape {tuple(shape)}{advice}"
        raise invalid_argument(name, message)
    plain = values.tolist() if hasattr(values, "tolist") else values
    elements = list(items(name, plain, "a list of numbers"))
    if all(type(element) is float for element in elements):
        return elements
    return [
        element if isinstance(element, float) else as_json(f"{name}.{n}", element)
        for n, element in enumerate(elements)
    ]


def kind_of(value: Any) -> str:
    """The kind of a value, for messages: "text", "a list", "ndarray"."""
    if value is None:
        return "None"
    known = {
        str: "text", bytes: "bytes", bool: "True or False", int: "a number", float: "a number",
        list: "a list", tuple: "a tuple", dict: "a mapping", set: "a set",
    }  # fmt: skip
    return known.get(type(value), type(value).__name__)


def seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """Seconds. InvalidRequest if they are no number, or not above 0."""
    plain = as_json(name, value)
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise invalid_argument(name, f"expected seconds, not {kind_of(value)}")
    if plain < 0 or not (plain or zero):
        raise invalid_argument(name, f"{plain} is no time to wait for")
    return float(plain)


def header(name: str, value: Any) -> str:
    """A text that may stand in a header of HTTP, without blanks around it.

    The message does not contain the value, which may be a secret.
    """
    plain = text(name, value).strip()
    if not plain:
        raise invalid_argument(name, "it is empty")
    if not (plain.isascii() and plain.isprintable()):
        raise invalid_argument(name, "it may have printable ASCII characters only")
    return plain
