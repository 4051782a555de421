"""Which metadata gets a column of its own in a table, and with which type.

A key whose values are all text, all truth values, all whole numbers, or all numbers, gets a column.
Any other key (a number in one row and a text in another, lists, objects) has none, and is in the
column `metadata` as JSON. So no value can fail an export.
"""

from collections.abc import Mapping
from typing import Any

from clipfleet.common.collection import FieldType

MAX_COLUMNS = 500  # further keys are in `metadata` alone


class Columns:
    """Finds the columns of undeclared metadata.

    Attributes:
        names: every key, in the order of their first row; at most `limit` of them.
        overflow: whether there were more.

    Args:
        fields: the declared fields, which have columns anyway.
        limit: the number of keys at most.
    """

    def __init__(self, fields: Mapping[str, FieldType], limit: int = MAX_COLUMNS) -> None:
        self._fields, self._limit = fields, limit
        self.names: dict[str, FieldType | None] = {}
        self.overflow = False

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata of one row into account."""
        for name, value in metadata.items():
            if name in self._fields or value is None:
                continue
            kind = kind_of(value)
            if name in self.names:
                self.names[name] = _common(self.names[name], kind)
            elif len(self.names) < self._limit:
                self.names[name] = kind
            else:
                self.overflow = True

    def typed(self) -> dict[str, FieldType]:
        """The columns with their types: of keys with a type and a name."""
        return {name: kind for name, kind in self.names.items() if kind is not None and name}


def kind_of(value: Any) -> FieldType | None:
    """The type of a value; None for lists and objects."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    return "string" if isinstance(value, str) else None


def _common(known: FieldType | None, other: FieldType | None) -> FieldType | None:
    if known == other:
        return known
    return "float" if {known, other} == {"int", "float"} else None
