"""Compiles filters to boolean expressions of Milvus. Only `_literal` inserts a caller's value.

Milvus before 2.5 has no NULL, so a declared field that an image does not have is stored as MISSING,
and comparisons that MISSING would pass exclude it explicitly.

milvus-lite compares free-form metadata as Python does: true equals 1, and false equals 0. None of
its operators tells a truth value from a number. The order of a number and a value of another type
is NULL, of which `not` is NULL, too.

Milvus has no expression for the order of the elements of a list, or for their prefixes.

The records on which a store may err are found by `doubtful_expression`, on milvus-lite by the text
of their metadata, and the store compares these records itself.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clipfleet.common.collection import (
    BUILTIN_FIELDS,
    ELEMENTS,
    FLOAT_LIMIT,
    INT_LIMIT,
    MISSING_STRING,
    FieldType,
)
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store.filters import (
    AllOf,
    AnyOf,
    Compare,
    Field,
    Filter,
    Not,
    Scalar,
    path_of,
)

MISSING: dict[FieldType, Scalar] = {
    "string": MISSING_STRING,
    "int": -INT_LIMIT - 1,
    "float": -FLOAT_LIMIT * 10,
    "bool": -1,
}
LAST = chr(0x10FFFF)
EXACT_FLOAT = 2**53  # below, a float holds every whole number
NOTHING = 'pk == ""'
ANYTHING = 'pk != ""'
_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}

Dialect = Literal["server", "lite"]  # only a server has `in` on JSON


def column(field_name: str) -> str:
    """The Milvus field of a declared field."""
    return f"f_{field_name}"


def search_expression(
    namespace: str | None, where: Filter | None, *also: str, dialect: Dialect = "server"
) -> str:
    """The expression for a search or a query; "" when every record passes.

    Records that do not match may pass, too, if they pass `doubtful_expression`.

    Args:
        namespace: the namespace of the records; None: all namespaces.
        where: the filter that they pass; None: all records.
        also: further expressions that must be true.
        dialect: whether a server or milvus-lite evaluates it.
    """
    parts = list(also)
    if namespace is not None:
        parts.append(f"namespace == {_literal(namespace)}")
    if where is not None:
        parts.append(f"({_compile(where, dialect)})")
        if missed := _doubtful(where, dialect, missed=True):
            parts[-1] = f"({parts[-1]} or {missed})"
    return " and ".join(parts)


def doubtful_expression(where: Filter, dialect: Dialect = "server") -> str:
    """The expression for records on which the store may err with a filter; "": on none."""
    return _doubtful(where, dialect)


def range_expression(above: str, up_to: str) -> str:
    """The expression for primary keys above `above`, up to and including `up_to`."""
    return f"pk > {_literal(above)} and pk <= {_literal(up_to)}"


def keys_expression(keys: Sequence[str]) -> str:
    """The expression for records with one of these primary keys."""
    return f"pk in [{', '.join(_literal(key) for key in keys)}]"


def _compile(node: Filter, dialect: Dialect, negated: bool = False) -> str:
    if isinstance(node, AllOf):
        return " and ".join(f"({_compile(part, dialect, negated)})" for part in node.parts)
    if isinstance(node, AnyOf):
        return " or ".join(f"({_compile(part, dialect, negated)})" for part in node.parts)
    if isinstance(node, Not):
        return f"not ({_compile(node.part, dialect, negated=True)})"
    if node.field.kind and node.field.kind not in ELEMENTS:
        return _compile_typed(node)
    return _compile_free(node, dialect, negated)


def _compile_typed(node: Compare) -> str:
    field, kind = node.field, node.field.kind
    assert kind is not None
    builtin = field.name in BUILTIN_FIELDS
    name = field.name if builtin else column(field.name)
    missing = _literal("" if builtin else MISSING[kind])
    present = ANYTHING if builtin and kind != "string" else f"{name} != {missing}"
    if node.op == "$exists":
        return present if node.value else f"not ({present})"
    if node.op in ("$in", "$nin"):
        return _membership(name, node, kind)
    if node.op == "$prefix":
        return f"({_starts(name, str(node.value))} and {present})"
    if node.op in _ORDER and kind == "bool":  # truth values have no order
        return NOTHING
    value = _typed(node.value, kind)
    if node.op == "$eq":
        return f"({name} == {value} and {present})"
    if node.op == "$ne":
        return f"({name} != {value} or not ({present}))"
    return f"({name} {_ORDER[node.op]} {value} and {present})"


def _membership(name: str, node: Compare, kind: FieldType) -> str:
    assert isinstance(node.value, tuple)
    if not node.value:
        return NOTHING if node.op == "$in" else ANYTHING
    listed = f"{name} in [{', '.join(_typed(value, kind) for value in node.value)}]"
    return listed if node.op == "$in" else f"not ({listed})"


@dataclass(frozen=True)
class _Key:
    """A place in the metadata: the keys of objects in each other."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        """The Milvus expression of its value."""
        return "metadata" + "".join(f"[{_literal(key)}]" for key in self.path)

    def begins(self, begin: str) -> str:
        """Whether the text of the metadata has such a value, on milvus-lite.

        Args:
            begin: how the value begins as JSON.
        """
        name = json.dumps(self.path[-1], ensure_ascii=False)
        return f"(metadata like {_literal(f'%{name}: {begin}%')})"


def _keys(field: Field) -> list[_Key]:
    """The places of an undeclared field: its name and, if there is no such key, its path."""
    path = path_of(field)
    return [_Key((field.name,)), *([_Key(path)] if path else [])]


def _compile_free(node: Compare, dialect: Dialect, negated: bool) -> str:
    keys = _keys(node.field)
    parts = [_compile_key(node, key, dialect, negated) for key in keys]
    if len(parts) > 1:
        parts = [f"{parts[0]} or ((not (exists {keys[0]})) and {parts[1]})"]
    is_opposite = node.op in ("$ne", "$nin") or (node.op == "$exists" and not node.value)
    return f"not ({parts[0]})" if is_opposite else f"({parts[0]})"


def _compile_key(node: Compare, key: _Key, dialect: Dialect, negated: bool) -> str:
    """The comparison of one place; of `$ne`, `$nin` and `{$exists: false}` the opposite."""
    if node.op == "$contains_any":
        assert isinstance(node.value, tuple)
        if not node.value:
            return NOTHING
        return f"((exists {key}) and {_contains(key, node.value, dialect)})"
    if node.op == "$exists":
        return f"(exists {key})"
    if node.op in ("$in", "$nin"):
        return f"({_free_membership(node, key, dialect)})"
    assert not isinstance(node.value, tuple)
    if node.op in ("$eq", "$ne"):
        equal = f"{key} == {_literal(node.value)} or {_contains(key, (node.value,), dialect)}"
        return f"((exists {key}) and ({equal}))"
    if node.op in _ORDER and isinstance(node.value, bool):
        return NOTHING
    # The order of a text and another value is NULL in milvus-lite, which only matters below `not`.
    is_null = dialect == "lite" and negated and isinstance(node.value, str)
    is_text = f'({key} like "%") and ' if is_null else ""
    if node.op == "$prefix":
        return f"((exists {key}) and {is_text}{_starts(str(key), str(node.value))})"
    return f"((exists {key}) and {is_text}({key} {_ORDER[node.op]} {_literal(node.value)}))"


@dataclass(frozen=True)
class _Doubt:
    """Values on which a store may err when it compares an undeclared field.

    Attributes:
        key: the place of the field.
        begins: how such values begin as JSON.
        missed: whether the store may miss records that match, as well as find others.
    """

    key: _Key
    begins: tuple[str, ...]
    missed: bool

    def tests(self, dialect: Dialect) -> list[str]:
        """Expressions, one of which is true if there may be such a value."""
        if dialect == "lite":
            return [self.key.begins(begin) for begin in self.begins]
        is_list = f"(array_length({self.key}) != 0)"
        return [is_list if begin == "[" else f"(exists {self.key})" for begin in self.begins]


def _doubts(node: Filter, dialect: Dialect, negated: bool = False) -> Iterator[_Doubt]:
    if isinstance(node, AllOf | AnyOf):
        for part in node.parts:
            yield from _doubts(part, dialect, negated)
    elif isinstance(node, Not):
        yield from _doubts(node.part, dialect, negated=True)
    elif node.field.kind is None:
        for key in _keys(node.field):
            yield from _doubts_of_key(node, key, dialect, negated)


def _doubts_of_key(node: Compare, key: _Key, dialect: Dialect, negated: bool) -> Iterator[_Doubt]:
    if (node.op in _ORDER or node.op == "$prefix") and not isinstance(node.value, bool):
        yield _Doubt(key, ("[",), missed=True)
    if dialect == "lite":
        yield from _doubts_of_lite(node, key, negated)
    elif node.op == "$exists" and len(key.path) > 1:  # for a server, a key with null exists
        yield _Doubt(key, ("null",), missed=True)


def _doubts_of_lite(node: Compare, key: _Key, negated: bool) -> Iterator[_Doubt]:
    if node.op in _ORDER:
        if not isinstance(node.value, str | bool):
            yield _Doubt(key, ("true", "false", '"', "{"), negated)
        return
    if node.op in ("$prefix", "$exists"):
        return
    if node.op == "$contains_any":
        if any(not isinstance(value, str) and value in (0, 1) for value in _tuple(node.value)):
            yield _Doubt(key, ("[",), negated)
        return
    for value in _tuple(node.value):
        if not isinstance(value, str) and value in (0, 1):
            number = ("1",) if value else ("0", "-0")
            begins = number if isinstance(value, bool) else ("true" if value else "false",)
            missed = negated or node.op in ("$ne", "$nin")
            yield _Doubt(key, (*begins, "["), missed)


def _tuple(value: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return value if isinstance(value, tuple) else (value,)


def _doubtful(where: Filter, dialect: Dialect, *, missed: bool = False) -> str:
    """The expression for records with a doubtful value; "" when there can be none.

    On milvus-lite others may pass, too: those with such a value in a deeper object, and those whose
    field has another name, as `like` cannot take `%` and `_` for themselves.

    Args:
        missed: whether to take only those records that the store may miss.
    """
    doubts = [doubt for doubt in _doubts(where, dialect) if doubt.missed or not missed]
    tests = [test for doubt in doubts for test in doubt.tests(dialect)]
    return " or ".join(dict.fromkeys(tests))


def _contains(key: _Key, values: Sequence[Scalar], dialect: Dialect) -> str:
    """Whether an existing field is a list with one of these elements."""
    texts = sorted({value for value in values if isinstance(value, str)})
    others = [value for value in values if not isinstance(value, str)]
    if dialect == "lite":  # its json_contains_any reads the text of a list as a list
        listed = ", ".join(map(_literal, [*texts, *others]))
        is_list = f'{key.begins("[")} and not ({key} like "%")'
        return f"({is_list} and json_contains_any({key}, [{listed}]))"
    parts = [f"json_contains_any({key}, [{', '.join(map(_literal, texts))}])"] if texts else []
    parts += [
        f"json_contains({key}, {_literal(twin)})" for value in others for twin in _twins(value)
    ]
    return f"({' or '.join(parts)})"


def _twins(value: int | float | bool) -> Sequence[Scalar]:
    """The number as an int and as a float: in lists, a server compares numbers of one type."""
    if isinstance(value, bool) or abs(value) >= EXACT_FLOAT or not float(value).is_integer():
        return (value,)
    return (int(value), float(value))


def _free_membership(node: Compare, key: _Key, dialect: Dialect) -> str:
    """Whether an existing key has one of these values, or is a list with one of them.

    milvus-lite parses the metadata again for each comparison, but stops when the result is known.
    So texts are searched for, and what is not text is excluded before.
    """
    name, values = str(key), node.value
    assert isinstance(values, tuple)
    if not values:
        return NOTHING
    texts = sorted({value for value in values if isinstance(value, str)})
    parts = [f"{name} == {_literal(value)}" for value in values if not isinstance(value, str)]
    if texts and dialect == "server":
        parts.append(f"{name} in [{', '.join(map(_literal, texts))}]")
    elif texts:
        parts.append(f'({name} like "%") and ({_one_of(name, texts)})')
    parts.append(_contains(key, values, dialect))
    return f"(exists {name}) and ({' or '.join(parts)})"


def _one_of(name: str, texts: Sequence[str]) -> str:
    """Whether a text is among sorted texts, as a binary search."""
    if len(texts) <= 2:
        return " or ".join(f"{name} == {_literal(text)}" for text in texts)
    half = len(texts) // 2
    middle = _literal(texts[half])
    below, above = _one_of(name, texts[:half]), _one_of(name, texts[half:])
    return f"{name} < {middle} and ({below}) or {name} >= {middle} and ({above})"


def _starts(name: str, prefix: str) -> str:
    """The prefix as a range in the order of code points.

    `like` cannot be used: in it, neither milvus-lite on JSON nor a server (2.3) understands an
    escaped `%`, `_` or backslash (tested).
    """
    end = _after(prefix)
    first = f"{name} >= {_literal(prefix)}"
    return f"({first})" if end is None else f"({first} and {name} < {_literal(end)})"


def _after(prefix: str) -> str | None:
    """The first text after all texts with this prefix; None when there is none."""
    stem = prefix.rstrip(LAST)
    if not stem:
        return None
    code = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if code == 0xD800 else code)  # no surrogates in UTF-8


def _typed(value: Any, kind: FieldType) -> str:
    return _literal(int(value) if kind == "bool" else value)


def _literal(value: Scalar) -> str:
    """A value as a literal: the only way for a value into an expression.

    milvus-lite understands no \\u escapes, and Milvus no raw newlines. So backslash, quote, line
    feed, carriage return and tab are escaped; all other characters are written as they are.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if "\0" in value:
        raise InvalidRequest("a filter value contains a NUL character")
    for plain, escaped in _ESCAPES:
        value = value.replace(plain, escaped)
    return f'"{value}"'


_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
