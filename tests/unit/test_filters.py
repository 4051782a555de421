"""Which filters are valid, and that no value can inject an expression into the store."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from milvus_lite.search.filter.eval.python_backend import _eval_row
from milvus_lite.search.filter.parser import parse_expr

from clipfleet.common.collection import BUILTIN_FIELDS, URI_BYTES, FieldType
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.identity import ID_BYTES
from clipfleet.common.store.expressions import Dialect, keys_expression, search_expression
from clipfleet.common.store.filters import (
    MAX_DEPTH,
    MAX_FREE_READS,
    MAX_LIST,
    MAX_LISTED,
    MAX_NODES,
    AllOf,
    AnyOf,
    Compare,
    Field,
    Filter,
    matches,
    parse_filter,
    path_of,
)

FIELDS: dict[str, FieldType] = {"year": "int", "size_m": "float", "open": "bool", "town": "string"}


def parsed(raw: dict[str, Any]) -> Filter:
    condition = parse_filter(raw, FIELDS)
    assert condition is not None
    return condition


def refused(raw: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter(raw, FIELDS)
    return caught.value.detail


def nested(depth: int, how: str) -> dict[str, Any]:
    if how == "field":
        condition: dict[str, Any] = {"$gt": 1}
        for _ in range(depth):
            condition = {"$not": condition}
        return {"year": condition}
    node: dict[str, Any] = {"year": 1}
    for _ in range(depth):
        node = {"$not": node} if how == "$not" else {how: [node]}
    return node


def test_an_empty_filter_is_none() -> None:
    assert parse_filter({}, FIELDS) is None


def test_a_plain_value_means_equal_and_several_keys_mean_all() -> None:
    year = Compare(Field("year", "int"), "$eq", 1900)
    assert parsed({"year": 1900}) == year
    assert parsed({"year": 1900, "free": "x"}) == AllOf(
        (year, Compare(Field("free", None), "$eq", "x"))
    )
    assert parsed({"$or": [{"year": 1900}]}) == AnyOf((year,))


@pytest.mark.parametrize("how", ["$and", "$or", "$not", "field"])
def test_nesting_ends_at_its_limit(how: str) -> None:
    assert parsed(nested(MAX_DEPTH, how))
    assert "deeper" in refused(nested(MAX_DEPTH + 1, how))
    assert "deeper" in refused(nested(50_000, how))


def test_a_value_nested_beyond_all_depth_is_refused_too() -> None:
    value: list[Any] = []
    for _ in range(5_000):
        value = [value]
    assert refused({"year": value})
    assert refused({"$and": [value]})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"$nor": [{"year": 1}]}, "unknown operator '$nor'"),
        ({"$where": "1"}, "unknown operator '$where'"),
        ({"$": 1}, "unknown operator '$'"),
        ({"year": {"$like": "1"}}, "unknown operator '$like'"),
        ({"year": {"gt": 1}}, "unknown operator 'gt'"),
        ({"year": {}}, "is empty"),
        ({"$and": []}, "non-empty list"),
        ({"$or": {"year": 1}}, "non-empty list"),
        ({"$or": [{}]}, "non-empty object"),
        ({"$or": ["year"]}, "non-empty object"),
        ({"$not": []}, "non-empty object"),
        ({"$not": None}, "non-empty object"),
        ({"year": None}, "cannot be compared with"),
        ({"year": [1]}, "cannot be compared with"),
        ({"free": {"$eq": {"a": 1}}}, "cannot be compared with"),
        ({"year": "1900"}, "must be int"),
        ({"year": True}, "must be int"),
        ({"year": 1.5}, "must be int"),
        ({"open": 1}, "must be bool"),
        ({"town": 1}, "must be string"),
        ({"label": 1}, "must be string"),
        ({"size_m": "1"}, "must be float"),
        ({"size_m": float("nan")}, "out of range"),
        ({"free": float("inf")}, "out of range"),
        ({"year": 2**63}, "64 bits"),
        ({"free": 10**400}, "64 bits"),
        ({"size_m": 10**400}, "64 bits"),
        ({"year": {"$in": 1}}, "takes a list"),
        ({"year": {"$in": [1, "2"]}}, "must be int"),
        ({"year": {"$in": [[1]]}}, "cannot be compared with"),
        ({"year": {"$exists": 1}}, "true or false"),
        ({"year": {"$prefix": "1"}}, "$prefix is for text"),
        ({"town": {"$prefix": 1}}, "$prefix is for text"),
        ({"free": {"$prefix": None}}, "$prefix is for text"),
        ({"town": {"$prefix": "a\0b"}}, "NUL"),
        ({"town": {"$prefix": "\ud800"}}, "UTF-8"),
        ({"town": {"$not": "x"}}, "takes a condition"),
        ({"town": {"$not": {}}}, "is empty"),
        ({"town": {"$not": {"$no": 1}}}, "unknown operator"),
        ({"town": "a\0b"}, "NUL"),
        ({"free": {"$in": ["a\0b"]}}, "NUL"),
        ({"a\0b": 1}, "cannot name"),
        ({"": 1}, "cannot name"),
        ({"x" * 257: 1}, "cannot name"),
        ({"town": "\ud800"}, "UTF-8"),
        ({"\ud800": 1}, "cannot name"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(raw: dict[str, Any], reason: str) -> None:
    assert reason in refused(raw)


@pytest.mark.parametrize("raw", [["year"], "year", 7, [{"year": 1}]])
def test_a_filter_that_is_no_object_is_refused(raw: Any) -> None:
    assert "object" in refused(raw)


def test_lists_and_conditions_have_a_limit() -> None:
    assert parsed({"year": {"$in": list(range(MAX_LIST))}})
    assert str(MAX_LIST) in refused({"year": {"$in": list(range(MAX_LIST + 1))}})
    assert parsed({"$or": [{"year": n} for n in range(MAX_NODES - 1)]})
    assert str(MAX_NODES) in refused({"$or": [{"year": n} for n in range(MAX_NODES)]})
    assert refused({f"k{n}": 1 for n in range(100_000)})


def test_a_refusal_quotes_no_megabytes_back() -> None:
    for raw in ({"$" + "x" * 10**6: 1}, {"x" * 10**6: 1}, {"year": [1] * 10**6}):
        assert len(refused(raw)) < 500


@pytest.mark.parametrize(("name", "size"), [("id", ID_BYTES), ("uri", URI_BYTES)])
def test_whatever_can_be_stored_as_id_or_uri_can_be_asked_for(name: str, size: int) -> None:
    assert parsed({name: "x" * size})


def test_a_whole_float_is_an_int_where_an_int_is_declared() -> None:
    node = parsed({"year": {"$gte": 1900.0}})
    assert isinstance(node, Compare)
    assert repr(node.value) == "1900"


@pytest.mark.parametrize("mine", [None, ["1"], [[0]], {"a": 1}, "1", True])
def test_a_number_is_not_compared_with_what_is_none(mine: Any) -> None:
    for op in ("$gt", "$gte", "$lt", "$lte", "$eq"):
        assert matches(parsed({"free": {op: 0}}), {"free": mine}) is False
    assert matches(parsed({"free": {"$in": [0, 1]}}), {"free": mine}) is False


def test_unlike_and_not_in_are_true_of_what_is_absent() -> None:
    assert matches(parsed({"town": {"$ne": "x"}}), {})
    assert matches(parsed({"town": {"$nin": ["x"]}}), {})
    assert not matches(parsed({"town": {"$in": []}}), {"town": "x"})
    assert matches(parsed({"town": {"$nin": []}}), {"town": "x"})
    assert matches(parsed({"town": {"$exists": False}}), {})


def test_not_denies_a_condition_as_it_does_a_filter() -> None:
    old = parsed({"year": {"$lt": 1900, "$not": {"$lt": 1800}}})
    assert [year for year in (1700, 1850, 1950) if matches(old, {"year": year})] == [1850]
    assert parsed({"year": {"$not": {"$gt": 1}}}) == parsed({"$not": {"year": {"$gt": 1}}})
    assert matches(parsed({"year": {"$not": {"$gt": 1}}}), {})


def test_a_prefix_is_of_text_alone_and_letter_by_letter() -> None:
    node = parsed({"free": {"$prefix": "a%"}})
    assert matches(node, {"free": "a%b"})
    assert matches(node, {"free": ["b", "a%b"]})
    for other in ("axb", "A%b", 1, True, None, ["axb"], [["a%"]]):
        assert not matches(node, {"free": other})
    assert matches(parsed({"town": {"$prefix": ""}}), {"town": "x"})
    assert not matches(parsed({"town": {"$prefix": ""}}), {})


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("ab", "ac"), ("a\\", "a]"), ('"', "#"), ("\ud7ff", "\ue000"), ("a\U0010ffff", "b")],
)
def test_a_prefix_is_a_range_up_to_the_next_text(prefix: str, end: str) -> None:
    expression = search_expression("n", parsed({"town": {"$prefix": prefix}}))
    assert "f_town >= TEXT and f_town < TEXT" in skeleton(expression)
    assert [json.loads(text) for text in LITERAL.findall(expression)][1:3] == [prefix, end]
    assert " < " not in search_expression("n", parsed({"town": {"$prefix": "\U0010ffff"}}))


LITERAL = re.compile(r'"(?:[^"\\\n\r]|\\[\\"nrt])*"')
SAYABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NASTY = st.sampled_from(
    ['"', '\\"', '\\', '" or pk != "', "\\\\\" or true or \"", "\n", "'", "%", "{x}", "\u2028"]
)  # fmt: skip
TEXT = st.lists(SAYABLE | NASTY, max_size=5).map("".join).filter(lambda text: len(text) < 200)
OPS = st.sampled_from(["$eq", "$ne", "$gt", "$lte"])


def skeleton(expression: str) -> str:
    """The expression with every well-formed quoted text removed."""
    return LITERAL.sub("TEXT", expression)


@effort(max_examples=300, deadline=None)
@given(TEXT, TEXT.filter(lambda name: bool(name) and "." not in name), OPS, TEXT)
def test_no_value_name_or_namespace_breaks_out_of_its_quotes(
    value: str, name: str, op: str, namespace: str
) -> None:
    name = f"x{name}"
    raw = {"$or": [{name: {op: value}}, {"town": {op: value}}, {"uri": {"$in": [value]}}]}
    plain = {"$or": [{"xfree": {op: "a"}}, {"town": {op: "a"}}, {"uri": {"$in": ["a"]}}]}
    expression = search_expression(namespace, parsed(raw))
    assert skeleton(expression) == skeleton(search_expression("n", parsed(plain)))
    assert '"' not in skeleton(expression)


@effort(max_examples=200, deadline=None)
@given(TEXT.filter(lambda text: bool(text.rstrip("\U0010ffff"))))
def test_no_prefix_breaks_out_of_its_quotes(value: str) -> None:
    raw = {"$or": [{"x": {"$prefix": value}}, {"town": {"$prefix": value}}]}
    plain = {"$or": [{"x": {"$prefix": "a"}}, {"town": {"$prefix": "a"}}]}
    bare = skeleton(search_expression("n", parsed(raw)))
    assert bare == skeleton(search_expression("n", parsed(plain)))


@effort(max_examples=200, deadline=None)
@given(TEXT)
def test_a_text_reads_back_as_itself(value: str) -> None:
    expression = keys_expression([value])
    (literal,) = LITERAL.findall(expression)
    plain = {"n": "\n", "r": "\r", "t": "\t"}
    back = re.sub(r"\\(.)", lambda escape: plain.get(escape[1], escape[1]), literal[1:-1])
    assert back == value
    assert expression == f"pk in [{literal}]"


def test_a_nul_reaches_no_expression() -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        search_expression("a\0b", None)


def test_numbers_and_truth_are_written_bare_and_read_back() -> None:
    assert "f_year == -5" in search_expression("n", parsed({"year": -5}))
    assert "f_size_m >= 1e-07" in search_expression("n", parsed({"size_m": {"$gte": 1e-7}}))
    assert "f_open == 1" in search_expression("n", parsed({"open": True}))
    assert 'metadata["x"] == true' in search_expression("n", parsed({"x": True}))


def test_a_declared_field_cannot_be_mistaken_for_one_of_the_services_own() -> None:
    expression = search_expression("n", parsed({"year": 1, "pk": "x", "namespace": "other"}))
    assert 'metadata["pk"]' in expression
    assert 'metadata["namespace"]' in expression
    assert expression.startswith('namespace == "n" and (')
    assert set(BUILTIN_FIELDS).isdisjoint(FIELDS)


def test_alternatives_never_widen_the_namespace() -> None:
    expression = search_expression("n", parsed({"$or": [{"year": 1}, {"year": 2}]}))
    scope, _, rest = expression.partition(" and ")
    assert scope == 'namespace == "n"'
    assert rest[0] == "("
    depth, closes = 0, []
    for place, sign in enumerate(skeleton(rest)):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            closes.append(place)
    assert closes == [len(skeleton(rest)) - 1]


def test_many_lists_are_refused_by_what_they_list_together() -> None:
    lists = MAX_LISTED // MAX_LIST
    fine = [{"year": {"$in": list(range(MAX_LIST))}} for _ in range(lists)]
    assert isinstance(parsed({"$or": fine}), AnyOf)
    one_more = {"free": {"$nin": ["one more"]}}
    assert f"more than {MAX_LISTED} values" in refused({"$and": [{"$or": fine}, one_more]})


def words(count: int) -> list[str]:
    return [f"w{n:04d}" for n in range(count)]


@pytest.mark.parametrize(
    ("just", "too_much"),
    [
        ({f"k{n}": n for n in range(25)}, {f"k{n}": n for n in range(26)}),
        ({"q": {"$in": list(range(97))}}, {"q": {"$in": list(range(98))}}),
        ({"q": {"$nin": [*words(512), *range(78)]}}, {"q": {"$nin": [*words(512), *range(79)]}}),
        (
            {"$or": [{"q": {"$prefix": f"{n}"}} for n in range(33)]},
            {"$and": [{"q": {"$prefix": f"{n}"}} for n in range(34)]},
        ),
        (
            {"$and": [{"$not": {"q": {"$prefix": f"{n}"}}} for n in range(25)]},
            {"$and": [{"q": {"$not": {"$prefix": f"{n}"}}} for n in range(26)]},
        ),
        (
            {"$not": {f"k{n}": {"$gt": n} for n in range(25)}},
            {"$not": {f"k{n}": {"$gt": n} for n in range(26)}},
        ),
        (
            {"$and": [{f"k{n}": {"$exists": True}} for n in range(100)]},
            {"$and": [{f"k{n}": {"$exists": True}} for n in range(101)]},
        ),
    ],
    ids=[
        "equal",
        "numbers",
        "texts and numbers",
        "prefixes",
        "prefixes below not",
        "orders below not",
        "exists",
    ],
)
def test_reads_of_undeclared_fields_have_a_limit(
    just: dict[str, Any], too_much: dict[str, Any]
) -> None:
    assert parsed(just)
    reason = refused(too_much)
    assert f"more than {MAX_FREE_READS} times" in reason
    assert "declare them" in reason
    assert parse_filter(too_much, FIELDS, for_store=False)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (
            {"tags": {"$gt": "a"}},
            r"\$gt is not for lists, and 'tags' is string\[\]; use \$contains",
        ),
        ({"tags": {"$prefix": "a"}}, "prefix is not for lists"),
        ({"tags": {"$contains": 3}}, "field tags must be string, not int"),
        ({"codes": {"$contains_any": [1, "2"]}}, "field codes must be int, not str"),
        ({"codes": {"$contains": True}}, "field codes must be int, not bool"),
        ({"codes": {"$contains": 1.5}}, "field codes must be int, not float"),
        ({"tags": ["a"]}, "whole list; use .contains_all"),
        ({"tags": {"$contains": ["a"]}}, "takes one value; .contains_any and"),
        ({"tags": {"$contains_any": "a"}}, "contains_any takes a list"),
        ({"tags": {"$contains_all": []}}, "at least one value"),
        ({"free": {"$contains_any": ["a"] * 1_001}}, "at most 1000 values"),
        ({"year": {"$contains": 3}}, "contains is for lists; 'year' is int"),
        ({"label": {"$contains_any": ["a"]}}, "is for lists; 'label' is string"),
        ({"tags": {"$contains_all": ["a"] * 300}}, "more than 256 conditions"),
        ({"tags": {"$contains_all": ["a"] * 40}}, "more than 100 times"),
    ],
)
def test_what_a_list_is_not_compared_with_is_refused(raw: dict[str, Any], reason: str) -> None:
    fields: dict[str, FieldType] = {**FIELDS, "tags": "string[]", "codes": "int[]"}
    with pytest.raises(InvalidRequest, match=reason):
        parse_filter(raw, fields)


def test_declared_fields_may_be_read_as_often_as_conditions_allow() -> None:
    assert parsed({"$or": [{"year": {"$in": list(range(n, n + 300))}} for n in range(12)]})


class Metadata(str):
    """The text of metadata, which counts how often it is parsed."""

    reads = 0

    def startswith(self, *args: Any) -> bool:  # json.loads looks for a byte order mark
        self.reads += 1
        return super().startswith(*args)


STORED: list[Any] = [None, 5, -1, [1], {"a": 1}, "", "w", "w0000", "w0499", "w0500", "w0999", "x"]
STORED += [["w0499", 1], ["x"], [], ["w0500"]]


@pytest.mark.parametrize(
    "raw",
    [
        {"q": {"$in": words(1)}},
        {"q": {"$in": words(3)}},
        {"q": {"$nin": words(1_000)}},
        {"q": {"$in": [*words(130), *range(5)]}},
        {"$not": {"q": {"$in": words(130)}}},
        {"q": {"$prefix": "w05"}},
        {"q": {"$not": {"$prefix": "w05"}}},
        {"q": {"$ne": "w0499"}},
        {"q": {"$lt": "w0499"}},
        {"q": {"$not": {"$lt": "w0499"}}},
        {"q": {"$exists": True}},
        {"q.r": "w0499"},
        {"q.r": {"$in": [*words(130), *range(5)]}},
        {"q.r": {"$not": {"$prefix": "w05"}}},
    ],
)
def test_milvus_lite_reads_an_undeclared_field_as_often_as_is_counted(raw: dict[str, Any]) -> None:
    where = parsed(raw)
    expression = parse_expr(search_expression(None, where, dialect="lite"))
    reads = []
    for value in STORED:
        name, inner = next(iter(where_names(raw))), {} if value is None else {"r": value}
        values = ({} if value is None else {"q": value}) if name == "q" else {"q": inner}
        metadata = Metadata(json.dumps(values))
        result = _eval_row(expression, {"metadata": metadata})
        reads.append(metadata.reads)
        if matches(where, values) or not isinstance(value, list):  # lists are compared again
            assert (result is True) is matches(where, values), value
    spare = 0
    while accepted({"$and": [raw, *({f"k{n}": {"$exists": True}} for n in range(spare + 1))]}):
        spare += 1
    assert max(reads) <= MAX_FREE_READS - spare <= max(reads) + 2


def where_names(raw: dict[str, Any]) -> list[str]:
    """The names of the fields that a filter of these tests compares."""
    return [name for key in raw for name in (where_names(raw[key]) if key == "$not" else [key])]


def test_a_label_is_found_in_each_normal_form() -> None:
    composed, decomposed = "église", "e\u0301glise"
    for spelling in (composed, decomposed):
        for stored in (composed, decomposed):
            assert matches(parsed({"label": spelling}), {"label": stored})
            assert matches(parsed({"label": {"$in": ["x", spelling]}}), {"label": stored})
            assert not matches(parsed({"label": {"$ne": spelling}}), {"label": stored})
            assert not matches(parsed({"label": {"$nin": [spelling]}}), {"label": stored})
        for name in ("id", "uri", "town", "free"):
            other = composed if spelling == decomposed else decomposed
            assert not matches(parsed({name: spelling}), {name: other})
    assert parsed({"label": "a"}) == Compare(Field("label", "string"), "$eq", "a")


def test_a_name_with_dots_is_a_path_unless_it_is_a_key() -> None:
    where = parsed({"cam.make": "Canon"})
    assert matches(where, {"cam": {"make": "Canon"}})
    assert matches(where, {"cam": {"make": ["Nikon", "Canon"]}})
    assert matches(where, {"cam.make": "Canon", "cam": {"make": "Nikon"}})
    assert not matches(where, {"cam.make": "Nikon", "cam": {"make": "Canon"}})
    for cam in ("Canon", ["make"], [{"make": "Canon"}], {"make": None}, {}, None):
        assert not matches(where, {"cam": cam})
    for name in ("cam.", ".make", "cam..make", "cam.0", ".".join("x" * 17), "."):
        assert path_of(Field(name, None)) == ()
    assert path_of(Field("a.b", "string")) == ()


@effort(max_examples=200, deadline=None)
@given(TEXT, TEXT, st.sampled_from(["server", "lite"]))
def test_no_path_breaks_out_of_its_quotes(first: str, second: str, dialect: Dialect) -> None:
    first, second = (f"x{part}".replace(".", "")[:60] for part in (first, second))
    expression = search_expression("n", parsed({f"{first}.{second}": "v"}), dialect=dialect)
    assert '"' not in skeleton(expression)
    plain = search_expression("n", parsed({"xa.xb": "v"}), dialect=dialect)
    assert skeleton(expression) == skeleton(plain)


def accepted(raw: dict[str, Any]) -> bool:
    try:
        return bool(parsed(raw))
    except InvalidRequest:
        return False


@effort(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=9), st.sampled_from(["server", "lite"]))
def test_no_listed_text_breaks_out_of_its_quotes(texts: list[str], dialect: Dialect) -> None:
    where = parsed({"x": {"$in": texts}})
    expression = search_expression("n", where, dialect=dialect)
    assert '"' not in skeleton(expression)
    plain = parsed({"x": {"$in": words(len(set(texts)))}})
    assert skeleton(expression) == skeleton(search_expression("n", plain, dialect=dialect))
