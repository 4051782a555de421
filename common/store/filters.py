"""Metadata filters as Pinecone and MongoDB write them: `{"label": {"$in": ["church"]}}`.

`parse_filter` checks the filter of a request and returns a tree; `matches` evaluates the tree on
the values of an image. `expressions.py` compiles the tree for Milvus.

As in MongoDB, a comparison with a list is true when it is true of one of its elements. `$ne` and
`$nin` are the opposites of `$eq` and `$in`, so they are true when no element is equal.

`cam.make` is the field `make` of the object `cam`, unless the metadata has a key `cam.make`.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from clipfleet.common.collection import (
    BUILTIN_BYTES,
    BUILTIN_FIELDS,
    ELEMENTS,
    INT_LIMIT,
    METADATA_DEPTH,
    STRING_BYTES,
    FieldType,
    field_problem,
)
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.identity import text_problem

Scalar = str | int | float | bool
Op = Literal[
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$prefix", "$exists",
    "$contains", "$contains_any", "$contains_all",
]  # fmt: skip
CONTAINS = ("$contains", "$contains_any", "$contains_all")

MAX_DEPTH = 8
MAX_NODES = 256
MAX_LIST = 1_000
MAX_LISTED = 4_000  # values in all lists of a filter: the duration of a search grows with them
# How often a filter may read undeclared fields of one image. milvus-lite parses the metadata each
# time, 4 microseconds for 400 bytes.
MAX_FREE_READS = 100
_OPS: tuple[Op, ...] = get_args(Op)


@dataclass(frozen=True)
class Field:
    """A field that a filter names.

    Attributes:
        name: its name.
        kind: its type; None for a metadata key that the collection does not declare.
    """

    name: str
    kind: FieldType | None


@dataclass(frozen=True)
class Compare:
    """A comparison of a field with a value, or with each value of a tuple.

    The value is a tuple for `$in`, `$nin` and `$contains_any`. A parsed filter has no `$contains`
    and no `$contains_all`: they are written with `$contains_any`, and so are `$eq`, `$ne`, `$in`
    and `$nin` of a declared list.
    """

    field: Field
    op: Op
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class AllOf:
    """True when all parts are true."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """True when at least one part is true."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """True when the part is false."""

    part: "Filter"


Filter = Compare | AllOf | AnyOf | Not


def parse_filter(
    raw: Mapping[str, Any], fields: Mapping[str, FieldType], *, for_store: bool = True
) -> Filter | None:
    """Parse the filter of a request. None for an empty filter.

    As in MongoDB, a comparison is false when the image does not have the field, except `$ne` and
    `$nin`, which are true.

    Args:
        raw: the filter as parsed from JSON.
        fields: the declared fields of the collection.
        for_store: whether a store evaluates the filter, so that MAX_FREE_READS applies. False for
            a filter that only `matches` evaluates.

    Raises:
        InvalidRequest: the filter is not valid; `detail` says where.

    Example:
        parse_filter({"label": {"$in": ["church"]}, "year": {"$gte": 2020}}, {"year": "int"})
    """
    return _Parser(fields, MAX_FREE_READS if for_store else None).tree(raw) if raw else None


def matches(node: Filter, values: Mapping[str, Any]) -> bool:
    """Whether an image passes the filter.

    Args:
        node: the filter, from `parse_filter`.
        values: the built-in, declared and other fields of the image, from `Record.values`.
    """
    if isinstance(node, AllOf):
        return all(matches(part, values) for part in node.parts)
    if isinstance(node, AnyOf):
        return any(matches(part, values) for part in node.parts)
    if isinstance(node, Not):
        return not matches(node.part, values)
    return _compare(node.op, _stored(values, node.field), node.value)


@lru_cache(maxsize=1_000)
def path_of(field: Field) -> tuple[str, ...]:
    """The keys of the objects that an undeclared field with dots may be in; () for none.

    Numbers are no keys: Milvus takes them for places in a list.
    """
    keys = tuple(field.name.split("."))
    is_path = len(keys) > 1 and all(key and not key.isdigit() for key in keys)
    return keys if field.kind is None and is_path and len(keys) <= METADATA_DEPTH else ()


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field, of which a name with dots may be a path; None when there is none.

    Args:
        values: the built-in, declared and other fields of an image, from `Record.values`.
        name: the name of the field.
    """
    return _stored(values, Field(name, None))


def _stored(values: Mapping[str, Any], field: Field) -> Any:
    value = values.get(field.name)
    if value is not None or not (path := path_of(field)):
        return value
    value = values
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


class _Parser:
    def __init__(self, fields: Mapping[str, FieldType], max_free_reads: int | None) -> None:
        self._fields = {**fields, **BUILTIN_FIELDS}
        self._nodes = self._listed = self._free_reads = self._negations = 0
        self._max_free_reads = max_free_reads

    def tree(self, raw: Any, depth: int = 0) -> Filter:
        if not isinstance(raw, Mapping) or not raw:
            raise InvalidRequest(f"a filter is a non-empty object, not {_short(raw)}")
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"the filter is nested deeper than {MAX_DEPTH} levels")
        return _all_of([self._entry(key, value, depth) for key, value in raw.items()])

    def _entry(self, key: str, value: Any, depth: int) -> Filter:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidRequest(f"the filter has more than {MAX_NODES} conditions")
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise InvalidRequest(f"{key} takes a non-empty list of filters")
            parts = [self.tree(part, depth + 1) for part in value]
            return _all_of(parts) if key == "$and" else AnyOf(tuple(parts))
        if key == "$not":
            return self._not(lambda: self.tree(value, depth + 1))
        if key.startswith("$"):
            raise InvalidRequest(f"unknown operator {_short(key)} in the filter")
        return self._field(key, value, depth)

    def _field(self, name: str, condition: Any, depth: int) -> Filter:
        if problem := text_problem("it", name, 256):
            raise InvalidRequest(f"{_short(name)} cannot name a metadata field: {problem}")
        field = Field(name, self._fields.get(name))
        if not isinstance(condition, Mapping):
            condition = {"$eq": condition}
        if not condition:
            raise InvalidRequest(f"the condition on {name!r} is empty")
        return _all_of(
            [self._condition(field, op, value, depth) for op, value in condition.items()]
        )

    def _condition(self, field: Field, op: str, value: Any, depth: int) -> Filter:
        """One operator of a field. `{"year": {"$not": {"$gt": 1}}}` negates a condition."""
        if op != "$not":
            return self._compare(field, op, value)
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"$not takes a condition, like {{'$gt': 1}}, not {_short(value)}")
        if depth >= MAX_DEPTH:
            raise InvalidRequest(f"the filter is nested deeper than {MAX_DEPTH} levels")
        return self._not(lambda: self._field(field.name, value, depth + 1))

    def _not(self, parse: Callable[[], Filter]) -> Not:
        self._negations += 1
        node = Not(parse())
        self._negations -= 1
        return node

    def _counted(self, node: Compare) -> Compare:
        is_free = node.field.kind is None or node.field.kind in ELEMENTS
        if is_free and self._max_free_reads is not None:
            self._free_reads += _reads(node, negated=self._negations > 0)
            if self._free_reads > self._max_free_reads:
                kind = "lists and metadata" if node.field.kind else "metadata"
                raise InvalidRequest(
                    f"the filter reads {kind} fields that the collection does not declare, such "
                    f"as {_short(node.field.name)}, more than {self._max_free_reads} times for "
                    "each image; compare them with fewer values, or declare them in `fields` when "
                    "the collection is created"
                )
        return node

    def _compare(self, field: Field, op: str, value: Any) -> Filter:
        if op not in _OPS:
            raise InvalidRequest(f"unknown operator {_short(op)}; known: {', '.join(_OPS)}")
        if op in CONTAINS:
            return self._contains(field, op, value)
        if field.kind in ELEMENTS and op != "$exists":
            return self._of_list(field, op, value)
        return self._counted(self._compare_one(field, op, value))

    def _contains(self, field: Field, op: str, value: Any) -> Filter:
        """Whether a list has an element, one of several elements, or all of them."""
        if field.kind is not None and field.kind not in ELEMENTS:
            raise InvalidRequest(f"{op} is for lists; {field.name!r} is {field.kind}")
        if op == "$contains":
            if isinstance(value, list):
                raise InvalidRequest(
                    "$contains takes one value; $contains_any and $contains_all take a list"
                )
            value = [value]
        values = self._values(field, op, value)
        if op != "$contains_all":
            return self._counted(Compare(field, "$contains_any", values))
        if not values:
            raise InvalidRequest("$contains_all takes a list of at least one value")
        self._nodes += len(values) - 1
        if self._nodes > MAX_NODES:
            raise InvalidRequest(f"the filter has more than {MAX_NODES} conditions")
        return _all_of([self._counted(Compare(field, "$contains_any", (each,))) for each in values])

    def _of_list(self, field: Field, op: str, value: Any) -> Filter:
        """A comparison of a declared list: one with its elements."""
        if op not in ("$eq", "$ne", "$in", "$nin"):
            raise InvalidRequest(
                f"{op} is not for lists, and {field.name!r} is {field.kind}; "
                f"use {', '.join(CONTAINS)} or $exists"
            )
        if op in ("$eq", "$ne") and isinstance(value, list):
            raise InvalidRequest(
                f"{field.name!r} cannot be compared with a whole list; use $contains_all"
            )
        values = self._values(field, op, value if op in ("$in", "$nin") else [value])
        node = self._counted(Compare(field, "$contains_any", values))
        return node if op in ("$eq", "$in") else Not(node)

    def _values(self, field: Field, op: str, value: Any) -> tuple[Scalar, ...]:
        if not isinstance(value, list) or len(value) > MAX_LIST:
            raise InvalidRequest(f"{op} takes a list of at most {MAX_LIST} values")
        self._listed += len(value)
        if self._listed > MAX_LISTED:
            raise InvalidRequest(f"the filter lists more than {MAX_LISTED} values")
        return tuple(_scalar(field, element) for element in value)

    def _compare_one(self, field: Field, op: Any, value: Any) -> Compare:
        if op == "$exists":
            if not isinstance(value, bool):
                raise InvalidRequest("$exists takes true or false")
            return Compare(field, "$exists", value)
        if op in ("$in", "$nin"):
            scalars = self._values(field, op, value)
            return Compare(
                field, op, tuple(form for each in scalars for form in _forms(field, each))
            )
        if op == "$prefix" and (not isinstance(value, str) or field.kind not in ("string", None)):
            raise InvalidRequest(f"$prefix is for text; {field.name!r} or its value is not text")
        scalar = _scalar(field, value)
        forms = _forms(field, scalar)
        if len(forms) > 1 and op in ("$eq", "$ne"):
            return Compare(field, "$in" if op == "$eq" else "$nin", forms)
        return Compare(field, op, scalar)


def _forms(field: Field, value: Scalar) -> tuple[Scalar, ...]:
    """A value as it may be stored. A label may be in another normal form of Unicode.

    macOS decomposes letters in the names of folders, which become labels: "é" is then two
    characters.
    """
    if field.name != "label" or not isinstance(value, str) or value.isascii():
        return (value,)
    forms = (value, unicodedata.normalize("NFC", value), unicodedata.normalize("NFD", value))
    return tuple(dict.fromkeys(forms))


def _reads(node: Compare, *, negated: bool) -> int:
    """How often a comparison reads its undeclared field, for one image at most.

    A field with dots is looked for by its name and, if there is none, by its path.

    `expressions.py` first tests whether the field exists, and last whether it is a list with an
    equal element. It searches a list of texts in halves. Below `$not`, an order or a prefix also
    tests the type of the value: for the order of numbers, this takes the time of two reads.
    """
    if path_of(node.field):
        return 2 + _reads(Compare(Field("plain", None), node.op, node.value), negated=negated)
    if node.op == "$exists":
        return 1
    if node.op == "$contains_any":
        return 3
    if node.op == "$prefix":
        return 4 if negated else 3
    if not isinstance(node.value, tuple):
        if node.op in ("$eq", "$ne"):
            return 4
        return 4 if negated else 2
    texts = len({value for value in node.value if isinstance(value, str)})
    others = sum(not isinstance(value, str) for value in node.value)
    halvings = (texts - 1).bit_length() if texts else 0
    return 3 + others + (1 + max(1, 2 * halvings) if texts else 0)


def _all_of(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _scalar(field: Field, value: Any) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise InvalidRequest(f"{field.name!r} cannot be compared with {_short(value)}")
    kind = ELEMENTS.get(field.kind or "", field.kind)
    if kind is None:
        kind = "string" if isinstance(value, str) else "float"
        kind = "bool" if isinstance(value, bool) else kind
    if kind == "int" and isinstance(value, float) and value.is_integer():
        value = int(value)
    longest = BUILTIN_BYTES.get(field.name, STRING_BYTES)
    problem = field_problem(field.name, value, kind, longest)
    if isinstance(value, int) and abs(value) > INT_LIMIT:
        problem = f"{field.name} is compared with a number over 64 bits"
    if problem:
        raise InvalidRequest(f"in the filter, {problem}")
    scalar: Scalar = value
    return scalar


def _compare(op: Op, stored: Any, value: Any) -> bool:
    if op == "$exists":
        return (stored is not None) is value
    if op == "$contains_any":
        elements = stored if isinstance(stored, list) else ()
        return any(_equal(mine, other) for mine in elements for other in value)
    candidates = stored if isinstance(stored, list) else (stored,)
    if op in ("$eq", "$in", "$ne", "$nin"):
        values = value if isinstance(value, tuple) else (value,)
        has_equal = any(_equal(mine, other) for mine in candidates for other in values)
        return has_equal == (op in ("$eq", "$in"))
    if op == "$prefix":
        return any(isinstance(mine, str) and mine.startswith(value) for mine in candidates)
    return any(_ordered(mine, value) and _order(op, mine, value) for mine in candidates)


def _equal(stored: Any, value: Any) -> bool:
    same_kind = isinstance(stored, bool) == isinstance(value, bool)
    return stored is not None and same_kind and bool(stored == value)


def _ordered(stored: Any, value: Any) -> bool:
    if isinstance(stored, bool) or isinstance(value, bool):
        return False
    numbers = isinstance(stored, int | float) and isinstance(value, int | float)
    return numbers or (isinstance(stored, str) and isinstance(value, str))


def _order(op: Op, stored: Any, value: Any) -> bool:
    if op == "$gt":
        return bool(stored > value)
    if op == "$gte":
        return bool(stored >= value)
    return bool(stored < value) if op == "$lt" else bool(stored <= value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):  # may be nested deeper than repr can follow
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
