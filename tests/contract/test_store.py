"""Contract of every store: the in-memory one, milvus-lite and a real Milvus server."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.common.collection import Collection, Metric
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store import CollectionGone, Store
from clipfleet.common.store.filters import CONTAINS, matches, parse_filter
from clipfleet.common.store.memory import MemoryStore
from support.stores import DIM, FIELDS, a_collection, a_record


def matching_ids(store: Store, collection: Collection, raw: dict[str, Any]) -> list[str]:
    where = parse_filter(raw, collection.fields)
    query = np.ones((1, DIM), np.float32)
    (hits,) = store.search(collection, query, namespace="default", top_k=100, where=where)
    return sorted(hit.record.id for hit in hits)


def test_a_record_comes_back_as_it_went_in(store: Store, photos: Collection) -> None:
    record = a_record(
        "a/b c.jpg",
        content_hash="0" * 32,
        job_id="j1",
        label="église",
        bytes=12,
        width=3,
        height=4,
        indexed_at=1_700_000_000_123,
        metadata={"genre": "rock", "year": 1999, "price": 0.5, "sold": False, "tags": ["x", 1]},
    )
    store.upsert(photos, [record])
    back = store.fetch(photos, [record.pk, "f" * 32])
    assert list(back) == [record.pk]
    assert np.allclose(back[record.pk].embedding, record.embedding)
    assert replace(back[record.pk], embedding=record.embedding) == record
    assert store.fingerprints(photos, [record.pk])[record.pk].content_hash == "0" * 32


def test_a_missing_declared_field_stays_missing(store: Store, photos: Collection) -> None:
    store.upsert(photos, [a_record("bare")])
    (back,) = store.fetch(photos, [a_record("bare").pk]).values()
    assert back.metadata == {}


def test_a_null_is_no_value(store: Store, photos: Collection) -> None:
    record = a_record("x", metadata={"genre": None, "free": None, "deep": {"kept": None}})
    store.upsert(photos, [record])
    (back,) = store.fetch(photos, [record.pk]).values()
    assert back.metadata == {"deep": {"kept": None}}
    assert matching_ids(store, photos, {"free": {"$exists": False}}) == ["x"]


def test_an_upsert_overwrites_and_a_delete_removes(store: Store, photos: Collection) -> None:
    store.upsert(photos, [a_record("x", 1), a_record("y", 2)])
    store.upsert(photos, [a_record("x", 3, label="new")])
    assert store.count(photos) == 2
    (back,) = store.fetch(photos, [a_record("x").pk]).values()
    assert back.label == "new"
    store.delete(photos, [back.pk, "0" * 32])
    assert store.count(photos) == 1


def test_an_update_keeps_the_embeddings(store: Store, photos: Collection) -> None:
    rows = [a_record(f"{n}", n, label="old", metadata={"year": n, "free": n}) for n in range(4)]
    store.upsert(photos, rows)
    new = [replace(row, label="new", metadata={"genre": "x"}, indexed_at=7) for row in rows[:2]]
    nothing = np.empty(0, np.float32)
    absent = a_record("absent", label="new")
    store.update(photos, [replace(row, embedding=nothing) for row in [*new, absent]])
    store.update(photos, [replace(new[0], embedding=nothing)])
    back = store.fetch(photos, [row.pk for row in [*rows, absent]])
    for expected in [*new, *rows[2:]]:
        row = back.pop(expected.pk)
        assert np.allclose(row.embedding, expected.embedding)
        assert replace(row, embedding=expected.embedding) == expected
    assert back == {}
    (bare,) = store.fetch(photos, [rows[0].pk], include_values=False).values()
    assert (bare.label, bare.embedding.size) == ("new", 0)
    (hits,) = store.search(photos, rows[1].embedding[None], namespace="default", top_k=1)
    assert (hits[0].record.id, hits[0].record.label) == ("1", "new")
    assert store.count(photos) == 4


def test_one_id_in_two_namespaces_is_two_images(store: Store, photos: Collection) -> None:
    store.upsert(photos, [a_record("x", 1), a_record("x", 2, namespace="other")])
    assert store.count(photos) == 2
    query = a_record("x", 2).embedding[None]
    (hits,) = store.search(photos, query, namespace="other", top_k=5)
    assert [(hit.record.id, hit.record.namespace) for hit in hits] == [("x", "other")]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_scores_and_order_are_those_of_brute_force(
    store: Store, empty_collection: Callable[[Metric], Collection], metric: Metric
) -> None:
    collection, yardstick = empty_collection(metric), MemoryStore()
    yardstick.create(collection)
    records = [a_record(f"{n}", n) for n in range(200)]
    records = [
        replace(record, embedding=record.embedding * (1 + n % 3))
        for n, record in enumerate(records)
    ]
    for each in (store, yardstick):
        each.upsert(collection, records)
    queries = np.stack([a_record("", 1_000 + n).embedding for n in range(5)])
    got = store.search(collection, queries, namespace="default", top_k=10, offset=2)
    want = yardstick.search(collection, queries, namespace="default", top_k=10, offset=2)
    for hits, expected in zip(got, want, strict=True):
        assert [hit.record.id for hit in hits] == [hit.record.id for hit in expected]
        assert np.allclose([hit.score for hit in hits], [hit.score for hit in expected], atol=1e-4)


def test_values_come_only_when_asked_for(store: Store, photos: Collection) -> None:
    record = a_record("x")
    store.upsert(photos, [record])
    query = record.embedding[None]
    ((bare,),) = store.search(photos, query, namespace="default", top_k=1)
    ((full,),) = store.search(photos, query, namespace="default", top_k=1, include_values=True)
    assert bare.record.embedding.size == 0
    assert np.allclose(full.record.embedding, record.embedding)
    assert full.score == pytest.approx(1, abs=1e-5)


def test_an_empty_collection_answers_with_nothing_and_once_dropped_refuses_late_work(
    store: Store, photos: Collection
) -> None:
    old = a_collection()
    store.create(old)
    query = np.ones((2, DIM), np.float32)
    for empty in (old, photos):
        assert store.search(empty, query, namespace="default", top_k=3) == [[], []]
        assert store.scan(empty, limit=5) == []
        assert store.count(empty) == 0
    store.drop(old)
    store.drop(old)
    for late in (
        lambda: store.upsert(old, [a_record("x")]),
        lambda: store.search(old, query, namespace="default", top_k=1),
        lambda: store.count(old),
        lambda: store.scan(old, limit=5),
    ):
        with pytest.raises(CollectionGone):
            late()
    assert store.count(photos) == 0


NASTY = [
    'a"b',
    "a\\b",
    "a'b",
    "new\nline",
    "tab\t",
    "%_*",
    '" or pk != "',
    "é 日本 🎉",
    "\\n",
    "{x}",
]


def test_no_text_breaks_out_of_a_filter(store: Store, photos: Collection) -> None:
    for text in NASTY:
        metadata = {"genre": text, "free": text, text: 1, "words": ["x", text]}
        store.upsert(photos, [a_record(text, 1, label=text, metadata=metadata)])
    for text in NASTY:
        for raw in ({"id": text}, {"label": text}, {"genre": text}, {"free": text}, {text: 1}):
            assert matching_ids(store, photos, raw) == [text], raw
        assert matching_ids(store, photos, {"genre": {"$in": [text]}}) == [text]
        assert matching_ids(store, photos, {"words": {"$contains": text}}) == [text]
        assert matching_ids(store, photos, {"words": {"$contains_all": ["x", text]}}) == [text]
        query = np.ones((1, DIM), np.float32)
        assert store.search(photos, query, namespace=text, top_k=5) == [[]]


STARTS = [
    "a",
    "ab",
    "a%",
    "a_",
    "a%b",
    "a\\",
    "a\\%",
    'a"',
    "a\n",
    "%",
    "_",
    "\\",
    "é",
    "日",
    "\U0010ffff",
]


def test_a_prefix_is_taken_letter_by_letter(store: Store, photos: Collection) -> None:
    """`%`, `_` and a backslash stand for themselves."""
    words = [*STARTS, *(f"{start}{more}" for start in STARTS for more in ("x", "%", "\U0010ffff"))]
    for n, word in enumerate(dict.fromkeys(words)):
        metadata = {"genre": word, "free": word}
        store.upsert(photos, [a_record(word, n, label=word, metadata=metadata)])
    for start in ["", *STARTS, "b", "aa"]:
        expected = sorted(word for word in set(words) if word.startswith(start))
        for name in ("genre", "free", "label", "id"):
            assert matching_ids(store, photos, {name: {"$prefix": start}}) == expected, (
                name,
                start,
            )


METADATA = [
    {},
    {"genre": "rock", "year": 1999, "price": 9.5, "sold": True, "free": 1, "word": "a"},
    {"genre": "", "year": 0, "price": 0.0, "sold": False, "free": 0, "word": ""},
    {"genre": "a", "year": -5, "price": -1.5, "free": 3, "word": "zz"},
    {"genre": "zz", "year": 2**40, "price": 1e300, "sold": True, "free": 2.5},
    {"sold": False},
    {"genre": None, "free": None, "word": None},
    {"free": True, "word": False},
    {"free": False, "word": 1},
    {"free": 1.0, "word": "1"},
    {"free": -0.0, "word": ["a"]},
    {"free": "1", "word": {"word": True}},
    {"free": [1], "word": 0},
    {"free": {"free": 1}, "word": True},
    {"free": 1, "deep": {"free": True, "word": 1}},
    {"free": False, "word": 2.5, "deep": [{"free": 0, "word": "a"}]},
    {"word": '"free": true', "deep": {"word": False}},
    {"free": [1, "a"], "word": ["m", "zz"]},
    {"free": [], "word": ["", 0]},
    {"free": [True, 2.5], "word": [["a"], {"word": "a"}]},
    {"free": [0, 2.0], "word": [True]},
    {"free": [2, False, None], "word": '["a"]', "deep": {"word": ["a"]}},
    {"free": "[1]", "word": ' ["m"]', "deep": {"word": ["m"]}},
    {"deep": {"word": "m", "free": 2.5}},
    {"deep.word": "a", "deep": {"word": "m", "free": None}},
    {"deep": {"word": None}, "deep.free": 1},
    {"deep": {"word": {"word": "a"}, "free": [0, "x"]}},
    {"deep": "word", "word": {"free": 1}},
    {"words": ["a"], "codes": [1], "deep": {"er": {"word": "a"}}},
    {"words": ["a", "m", "a"], "codes": [0, 1, -5], "deep": {"er": {"word": ["a", 1]}}},
    {"words": [], "codes": [], "deep": {"er": "a"}},
    {"words": ['["a"]', "", "é"], "codes": [7], "deep": {"er": {"word": 1}}, "word": ["m"]},
    {"codes": [2**62], "deep.er.word": "m", "deep": {"er": {"word": "a"}}},
]
_VALUES: dict[str, list[Any]] = {
    "genre": ["rock", "", "a", "m"],
    "year": [1999, 0, -5, 7],
    "price": [9.5, 0.0, -1.5, 3],
    "sold": [True, False],
    "free": [1, 0, 2.5, 2, True, False, "1"],
    "word": ["a", "", "m", 1, 0, True, False],
    "label": ["l1", "none"],
    "deep.free": [1, 0, 2.5, True],
    "deep.word": ["a", "m", 1, False],
    "deep.er.word": ["a", "m", 1, True],
    "words": ["a", "m", "", "é"],
    "codes": [0, 1, 7, -5],
}
_LISTS = ("words", "codes")
_TEXTS = ("genre", "word", "label", "deep.word")
_ORDERED = ("$gt", "$gte", "$lt", "$lte")


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(_VALUES)))
    values = st.sampled_from(_VALUES[name])
    ordered = () if name in _LISTS else _ORDERED
    starts = ("$prefix",) if name in _TEXTS else ()
    lists = CONTAINS if name not in FIELDS or name in _LISTS else ()
    lists = () if name == "label" else lists
    op = draw(st.sampled_from(["$eq", "$ne", "$in", "$nin", "$exists", *ordered, *starts, *lists]))
    if op == "$exists":
        return {name: {op: draw(st.booleans())}}
    if op in ("$in", "$nin", "$contains_any", "$contains_all"):
        fewest = 1 if op == "$contains_all" else 0
        listed = {op: draw(st.lists(values, min_size=fewest, max_size=3))}
        return {name: {"$not": listed} if draw(st.booleans()) else listed}
    texts = st.sampled_from([value for value in _VALUES[name] if isinstance(value, str)] or [""])
    condition = {op: draw(texts if op == "$prefix" else values)}
    return {name: {"$not": condition} if draw(st.booleans()) else condition}


FILTERS = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


@pytest.fixture
def catalog(store: Store, photos: Collection) -> Collection:
    store.upsert(photos, SHELF)
    return photos


SHELF = [
    a_record(str(n), n, metadata=values, label=f"l{n}" if n % 2 else "")
    for n, values in enumerate(METADATA)
]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=FILTERS)
def test_a_filter_means_what_it_says(
    store: Store, catalog: Collection, raw: dict[str, Any]
) -> None:
    where = parse_filter(raw, FIELDS)
    assert where is not None
    expected = sorted(row.id for row in SHELF if matches(where, row.values()))
    assert matching_ids(store, catalog, raw) == expected
    scanned: list[str] = []
    after = ""
    while rows := store.scan(catalog, where=where, after=after, limit=3, only_ids=True):
        scanned, after = [*scanned, *(row.id for row in rows)], rows[-1].pk
    assert sorted(scanned) == expected
    assert store.count(catalog, "default", where) == len(expected)


KEYS = ["k", "a_b", "a%b", 'a"b', "a\\b", "é", "a: b", "_", "tab\t"]


@pytest.mark.parametrize("key", KEYS)
def test_a_truth_value_is_no_number_whatever_the_name_of_its_field(
    store: Store, photos: Collection, key: str
) -> None:
    values: dict[str, Any] = {"one": 1, "zero": 0, "true": True, "false": False, "float": 1.0}
    store.upsert(photos, [a_record(name, metadata={key: value}) for name, value in values.items()])
    for value, same in ((1, ["float", "one"]), (0, ["zero"]), (True, ["true"]), (False, ["false"])):
        others = sorted({*values} - {*same})
        assert matching_ids(store, photos, {key: value}) == same
        assert matching_ids(store, photos, {key: {"$ne": value}}) == others
        assert matching_ids(store, photos, {key: {"$in": [value, "x"]}}) == same
    assert matching_ids(store, photos, {key: {"$gte": 0}}) == ["float", "one", "zero"]
    assert matching_ids(store, photos, {key: {"$not": {"$gte": 0}}}) == ["false", "true"]
    assert matching_ids(store, photos, {key: {"$gte": False}}) == []


def test_a_match_is_found_behind_nearer_images_that_only_seem_to_match(
    store: Store, photos: Collection
) -> None:
    near = np.ones(DIM, np.float32)
    far = np.concatenate([near[:5], -near[5:]])
    rows = [a_record(f"{n}", embedding=near, metadata={"k": 1}) for n in range(30)]
    rows += [a_record("far", embedding=far, metadata={"k": True})]
    rows += [a_record("farther", embedding=-near, metadata={"k": True})]
    store.upsert(photos, rows)
    where = parse_filter({"k": True}, FIELDS)
    for offset, expected in enumerate((["far"], ["farther"], [])):
        (nearest,) = store.search(
            photos, near[None], namespace="default", top_k=1, offset=offset, where=where
        )
        assert [match.record.id for match in nearest] == expected


MIXED: list[Any] = [
    "",
    "w",
    "w00",
    "w07",
    "w7",
    "é",
    "\U0010ffff",
    7,
    7.0,
    2.5,
    0,
    ["w00"],
    {"a": 1},
    ["w", 7, "x"],
    [2.5],
    [7.0, True],
    [],
]
LISTS: list[list[Any]] = [
    ["w00"],
    ["w07", "w00", "w00"],
    ["", "\U0010ffff", "é"],
    [f"w{n:02d}" for n in range(1, 40)],
    [*(f"w{n:02d}" for n in range(9)), 7, 2.5],
    [7, 3],
    ["7"],
]


def test_a_list_may_have_values_of_several_types(store: Store, photos: Collection) -> None:
    metadata: list[dict[str, Any]] = [{}, *({"free": value} for value in MIXED)]
    rows = [a_record(f"{n:02d}", n, metadata=each) for n, each in enumerate(metadata)]
    store.upsert(photos, rows)
    for listed in LISTS:
        for raw in ({"free": {"$in": listed}}, {"free": {"$nin": listed}}):
            where = parse_filter(raw, FIELDS)
            assert where
            expected = [row.id for row in rows if matches(where, row.values())]
            assert matching_ids(store, photos, raw) == expected, raw


def test_a_comparison_with_a_list_is_one_with_its_elements(
    store: Store, photos: Collection
) -> None:
    tags: dict[str, Any] = {
        "both": ["red", "blue"],
        "one": ["red"],
        "none": [],
        "text": "red",
        "other": ["blue", 3],
        "json": '["red"]',
        "deep": [["red"]],
    }
    store.upsert(photos, [a_record(name, metadata={"tags": tags[name]}) for name in tags])
    store.upsert(photos, [a_record("absent")])
    for condition, expected in (
        ("red", ["both", "one", "text"]),
        ({"$ne": "red"}, ["absent", "deep", "json", "none", "other"]),
        ({"$in": ["blue", "x"]}, ["both", "other"]),
        ({"$nin": ["blue", "x"]}, ["absent", "deep", "json", "none", "one", "text"]),
        ({"$nin": ["red", 3]}, ["absent", "deep", "json", "none"]),
        ({"$gte": "red"}, ["both", "one", "text"]),
        ({"$gt": 2}, ["other"]),
        ({"$not": {"$gt": 2}}, sorted({*tags, "absent"} - {"other"})),
        ({"$prefix": "bl"}, ["both", "other"]),
        ({"$not": {"$prefix": "bl"}}, sorted({*tags, "absent"} - {"both", "other"})),
        ({"$exists": True}, sorted(tags)),
    ):
        raw = {"tags": condition}
        where = parse_filter(raw, FIELDS)
        assert matching_ids(store, photos, raw) == expected, raw
        assert store.count(photos, None, where) == len(expected), raw
        rows = store.scan(photos, where=where, limit=100, only_ids=True)
        assert sorted(row.id for row in rows) == expected, raw


def test_a_declared_list_is_compared_by_its_elements(store: Store, photos: Collection) -> None:
    lists: dict[str, Any] = {
        "none": {"words": [], "codes": []},
        "one": {"words": ["a"], "codes": [1]},
        "two": {"words": ["a", 'b"]'], "codes": [1, 2]},
        "many": {"words": [f"t{n}" for n in range(256)], "codes": [*range(100, 356)]},
    }
    store.upsert(photos, [a_record(name, metadata=lists[name]) for name in lists])
    store.upsert(photos, [a_record("absent")])
    everything = {*lists, "absent"}
    for raw, expected in (
        ({"words": {"$contains": "a"}}, {"one", "two"}),
        ({"words": {"$contains": 'b"]'}}, {"two"}),
        ({"words": {"$contains": "b"}}, set()),
        ({"words": {"$contains_any": ["a", "t255"]}}, {"one", "two", "many"}),
        ({"words": {"$contains_any": []}}, set()),
        ({"words": {"$contains_all": ["a", 'b"]']}}, {"two"}),
        ({"words": {"$not": {"$contains": "a"}}}, everything - {"one", "two"}),
        ({"words": {"$exists": True}}, {*lists}),
        ({"words": {"$exists": False}}, {"absent"}),
        ({"words": "a"}, {"one", "two"}),
        ({"words": {"$ne": "a"}}, everything - {"one", "two"}),
        ({"words": {"$nin": ["a", "t0"]}}, {"none", "absent"}),
        ({"codes": {"$contains": 1}}, {"one", "two"}),
        ({"codes": {"$contains": 1.0}}, {"one", "two"}),
        ({"codes": {"$contains_all": [1, 2]}}, {"two"}),
        ({"codes": {"$contains_any": [2, 355]}}, {"two", "many"}),
        ({"codes": {"$in": [2, 3]}}, {"two"}),
        ({"$or": [{"codes": 200}, {"words": {"$contains": "a"}}]}, {"one", "two", "many"}),
    ):
        assert matching_ids(store, photos, raw) == sorted(expected), raw
        assert store.count(photos, None, parse_filter(raw, FIELDS)) == len(expected), raw
    back = store.fetch(photos, [a_record(name).pk for name in lists])
    assert {row.id: row.metadata for row in back.values()} == lists


@pytest.mark.parametrize("op", _ORDERED)
@pytest.mark.parametrize("name", ["sold", "free"])
def test_truth_values_have_no_order(store: Store, photos: Collection, name: str, op: str) -> None:
    rows = [a_record(f"{value}", metadata={name: value}) for value in (True, False)]
    store.upsert(photos, [*rows, a_record("absent")])
    for value in (True, False):
        assert matching_ids(store, photos, {name: {op: value}}) == []
        assert len(matching_ids(store, photos, {name: {"$not": {op: value}}})) == 3


def test_a_nul_in_a_filter_is_refused(store: Store, photos: Collection) -> None:
    with pytest.raises(InvalidRequest):
        matching_ids(store, photos, {"free": "a\0b"})


def test_four_writers_at_once_lose_nothing(store: Store, photos: Collection) -> None:
    def write(writer: int) -> None:
        for batch in range(5):
            numbers = range(batch * 40, batch * 40 + 40)
            store.upsert(photos, [a_record(f"{writer}-{n}", n) for n in numbers])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count(photos) == 800
