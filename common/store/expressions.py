"""Compiles filters to boolean expressions of Milvus. Only `_literal` inserts a caller's value.

Milvus before 2.5 has no NULL, so a declared field that an image does not have is stored as MISSING,
and comparisons that MISSING would pass exclude it explicitly.
"""

from collections.abc import Sequence
from typing import Any, Literal

from clipfleet.common.collection import (
    BUILTIN_FIELDS,
    FLOAT_LIMIT,
    INT_LIMIT,
    MISSING_STRING,
    FieldType,
)
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store.filters import AllOf, AnyOf, Compare, Filter, Not, Scalar

MISSING: dict[FieldType, Scalar] = {
    "string": MISSING_STRING,
    "int": -INT_LIMIT - 1,
    "float": -FLOAT_LIMIT * 10,
    "bool": -1,
}
LAST = chr(0x10FFFF)
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
    return " and ".join(parts)


def range_expression(above: str, up_to: str) -> str:
    """The expression for primary keys above `above`, up to and including `up_to`."""
    return f"pk > {_literal(above)} and pk <= {_literal(up_to)}"


def keys_expression(keys: Sequence[str]) -> str:
    """The expression for records with one of these primary keys."""
    return f"pk in [{', '.join(_literal(key) for key in keys)}]"


def _compile(node: Filter, dialect: Dialect) -> str:
    if isinstance(node, AllOf):
        return " and ".join(f"({_compile(part, dialect)})" for part in node.parts)
    if isinstance(node, AnyOf):
        return " or ".join(f"({_compile(part, dialect)})" for part in node.parts)
    if isinstance(node, Not):
        return f"not ({_compile(node.part, dialect)})"
    return _compile_typed(node) if node.field.kind else _compile_free(node, dialect)


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


def _compile_free(node: Compare, dialect: Dialect) -> str:
    name = f"metadata[{_literal(node.field.name)}]"
    if node.op == "$exists":
        return f"(exists {name})" if node.value else f"not (exists {name})"
    if node.op in ("$in", "$nin"):
        assert isinstance(node.value, tuple)
        listed = _free_membership(name, node.value, dialect)
        return f"({listed})" if node.op == "$in" else f"not ({listed})"
    assert not isinstance(node.value, tuple)
    if node.op == "$prefix":
        return f"((exists {name}) and {_starts(name, str(node.value))})"
    if node.op == "$ne":
        return f"not ({_has(name, '==', node.value)})"
    return f"({_has(name, _ORDER.get(node.op, '=='), node.value)})"


def _free_membership(name: str, values: Sequence[Scalar], dialect: Dialect) -> str:
    """Whether an existing key has one of these values.

    milvus-lite parses the metadata again for each comparison, but stops when the result is known.
    So texts are searched for, and what is not text is excluded before.
    """
    if not values:
        return NOTHING
    texts = sorted({value for value in values if isinstance(value, str)})
    parts = [f"{name} == {_literal(value)}" for value in values if not isinstance(value, str)]
    if texts and dialect == "server":
        parts.append(f"{name} in [{', '.join(map(_literal, texts))}]")
    elif texts:
        parts.append(f'({name} like "%") and ({_one_of(name, texts)})')
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


def _has(name: str, operator: str, value: Scalar) -> str:
    """A comparison of an existing key.

    A comparison with an absent key is NULL in milvus-lite and false in a server.
    """
    return f"(exists {name}) and ({name} {operator} {_literal(value)})"


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
