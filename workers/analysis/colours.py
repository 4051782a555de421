"""Which colour a point of a map gets: the values of fields as small numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.maps import NONE, OTHER, Colours, Value
from clipfleet.common.store import Record

MOST_FIELDS = 8
MOST_VALUES = 40
RANGES = 8  # of numbers that are more different than MOST_VALUES
LONGEST = 200  # characters of a value


def fields_of(collection: Collection, extra: str) -> list[str]:
    """The fields that colour points: the one of the request, the label, the declared ones."""
    every = [*([extra] if extra else []), "label", *collection.fields]
    return list(dict.fromkeys(every))[: MOST_FIELDS + 1]


def values_of(record: Record, fields: Sequence[str]) -> list[Value | None]:
    """The value of each field: of a list its first element, of an object nothing."""
    values = record.values()
    return [_plain(_at(values, name)) for name in fields]


def _at(values: Mapping[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    for part in name.split("."):
        if not isinstance(values, Mapping):
            return None
        values = values.get(part)  # type: ignore[assignment]
    return values


def _plain(value: Any) -> Value | None:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, str):
        return value[:LONGEST] or None
    return value if isinstance(value, bool | int | float) else None


def coloured(values: Sequence[Value | None]) -> tuple[Colours, list[int]]:
    """The colours of a field, and the code of each point.

    Numbers of more than MOST_VALUES kinds are divided into RANGES of about equally many points.
    Of other values the MOST_VALUES most frequent ones have colours.
    """
    numbers = [value for value in values if _is_number(value)]
    present = len(values) - sum(value is None for value in values)
    if present and len(numbers) == present and len(set(numbers)) > MOST_VALUES:
        return _ranges(values, np.asarray(numbers, np.float64))
    counts = Counter((type(value).__name__, value) for value in values if value is not None)
    often = sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))[:MOST_VALUES]
    codes = {key: place for place, (key, _) in enumerate(often)}
    places = [
        NONE if value is None else codes.get((type(value).__name__, value), OTHER)
        for value in values
    ]
    colours = Colours(
        values=[key[1] for key, _ in often],
        counts=[count for _, count in often],
        other=present - sum(count for _, count in often),
        none=len(values) - present,
    )
    return colours, places


def _is_number(value: Value | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ranges(
    values: Sequence[Value | None], numbers: "np.ndarray[Any, np.dtype[np.float64]]"
) -> tuple[Colours, list[int]]:
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, RANGES + 1)))
    filled = np.array([np.nan if value is None else float(value) for value in values])
    places = np.clip(np.searchsorted(edges, filled, side="right") - 1, 0, len(edges) - 2)
    places[np.isnan(filled)] = NONE
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    counts = [int((places == number).sum()) for number in range(len(names))]
    colours = Colours(values=list(names), counts=counts, none=int(np.isnan(filled).sum()))
    return colours, [int(place) for place in places]
