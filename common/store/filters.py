"""Metadata filters as Pinecone and MongoDB write them: `{"label": {"$in": ["church"]}}`.

`parse_filter` checks a caller's filter and gives a tree; `matches` evaluates it on plain values.
Compiling to a store's own language is that store's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from clipfleet.common.collection import (
    BUILTIN_BYTES,
    BUILTIN_FIELDS,
    INT_LIMIT,
    STRING_BYTES,
    FieldType,
    field_problem,
)
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.identity import text_problem

Scalar = str | int | float | bool
Op = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$prefix", "$exists"]

MAX_DEPTH = 8
MAX_NODES = 256
MAX_LIST = 1_000
MAX_LISTED = 4_000  # in all lists together: stores take a time that grows with them
_OPS: tuple[Op, ...] = get_args(Op)


@dataclass(frozen=True)
class Field:
    """`kind` is None for a key of the free-form metadata."""

    name: str
    kind: FieldType | None


@dataclass(frozen=True)
class Compare:
    field: Field
    op: Op
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class AllOf:
    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    part: "Filter"


Filter = Compare | AllOf | AnyOf | Not


def parse_filter(raw: Mapping[str, Any], fields: Mapping[str, FieldType]) -> Filter | None:
    """The tree of a filter, None for an empty one.

    `fields` are the collection's declared fields. Semantics follow MongoDB: a comparison with a
    value an image does not have is false, except `$ne` and `$nin`, which are true.
    """
    return _Parser(fields).tree(raw) if raw else None


def matches(node: Filter, values: Mapping[str, Any]) -> bool:
    """Whether an image with these values (built-in, declared and free-form alike) passes."""
    if isinstance(node, AllOf):
        return all(matches(part, values) for part in node.parts)
    if isinstance(node, AnyOf):
        return any(matches(part, values) for part in node.parts)
    if isinstance(node, Not):
        return not matches(node.part, values)
    return _compare(node.op, values.get(node.field.name), node.value)


class _Parser:
    def __init__(self, fields: Mapping[str, FieldType]) -> None:
        self._fields = {**fields, **BUILTIN_FIELDS}
        self._nodes = self._listed = 0

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
            return Not(self.tree(value, depth + 1))
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
        return _all_of([self._one(field, op, value, depth) for op, value in condition.items()])

    def _one(self, field: Field, op: str, value: Any, depth: int) -> Filter:
        """`{"year": {"$not": {"$gt": 1}}}` denies a condition, `$not` on its own a filter."""
        if op != "$not":
            return self._compare(field, op, value)
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"$not takes a condition, like {{'$gt': 1}}, not {_short(value)}")
        if depth >= MAX_DEPTH:
            raise InvalidRequest(f"the filter is nested deeper than {MAX_DEPTH} levels")
        return Not(self._field(field.name, value, depth + 1))

    def _compare(self, field: Field, op: str, value: Any) -> Compare:
        if op not in _OPS:
            raise InvalidRequest(f"unknown operator {_short(op)}; there are {', '.join(_OPS)}")
        if op == "$exists":
            if not isinstance(value, bool):
                raise InvalidRequest("$exists takes true or false")
            return Compare(field, "$exists", value)
        if op in ("$in", "$nin"):
            if not isinstance(value, list) or len(value) > MAX_LIST:
                raise InvalidRequest(f"{op} takes a list of at most {MAX_LIST} values")
            self._listed += len(value)
            if self._listed > MAX_LISTED:
                raise InvalidRequest(f"the filter lists more than {MAX_LISTED} values")
            return Compare(field, op, tuple(_scalar(field, one) for one in value))
        if op == "$prefix" and (not isinstance(value, str) or field.kind not in ("string", None)):
            raise InvalidRequest(f"$prefix is for text; {field.name!r} or its value is none")
        return Compare(field, op, _scalar(field, value))


def _all_of(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _scalar(field: Field, value: Any) -> Scalar:
    if not isinstance(value, str | int | float | bool):
        raise InvalidRequest(f"{field.name!r} is compared with {_short(value)}, which is no value")
    kind = field.kind
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


def _compare(op: Op, mine: Any, value: Any) -> bool:
    if op == "$exists":
        return (mine is not None) is value
    if op in ("$ne", "$nin"):
        wanted = value if op == "$nin" else (value,)
        return not any(_equal(mine, one) for one in wanted)
    if op in ("$eq", "$in"):
        wanted = value if op == "$in" else (value,)
        return any(_equal(mine, one) for one in wanted)
    if op == "$prefix":
        return isinstance(mine, str) and mine.startswith(value)
    return _order(op, mine, value) if _ordered(mine, value) else False


def _equal(mine: Any, value: Any) -> bool:
    same_kind = isinstance(mine, bool) == isinstance(value, bool)
    return mine is not None and same_kind and bool(mine == value)


def _ordered(mine: Any, value: Any) -> bool:
    if isinstance(mine, bool) or isinstance(value, bool):
        return False
    numbers = isinstance(mine, int | float) and isinstance(value, int | float)
    return numbers or (isinstance(mine, str) and isinstance(value, str))


def _order(op: Op, mine: Any, value: Any) -> bool:
    if op == "$gt":
        return bool(mine > value)
    if op == "$gte":
        return bool(mine >= value)
    return bool(mine < value) if op == "$lt" else bool(mine <= value)


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):  # may be nested deeper than repr can follow
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
