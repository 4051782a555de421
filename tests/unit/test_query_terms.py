"""Mixed queries, pages, groups and near-duplicates through the worker."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.queue.messages import Query, Term
from clipfleet.common.store import Record
from support.query_harness import IMAGE, TEXT, World, by_id, ids


@pytest.fixture
def world() -> World:
    return World()


class Counting(HashEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        self.passes.append(len(texts))
        return super().embed_texts(texts)


def weighted(term: Term, weight: float) -> Term:
    return term.model_copy(update={"weight": weight})


def test_terms_of_all_queries_are_embedded_in_one_pass_and_added_up_by_query(world: World) -> None:
    world.embedder = Counting()
    dog = Term(kind="text", value="a dog")
    queries = [
        world.mixed(TEXT, weighted(dog, 2), top_k=3),
        world.mixed(weighted(TEXT, 3), dog, IMAGE, by_id("dog.jpg"), top_k=3),
        world.query(dog),
    ]
    mixed, other, plain = world.ask(*queries)
    assert world.embedder.passes == [5]
    church, dogs = world.embedder.embed_texts(["a church", "a dog"]).astype(np.float64)
    total = church + 2 * dogs
    scores = {match.id: match.score for match in mixed.matches}
    for name, row in (("church.jpg", church), ("dog.jpg", dogs)):
        assert scores[name] == pytest.approx(row @ total / np.linalg.norm(total), abs=1e-5)
    assert mixed.matches[0].id == "dog.jpg"
    assert other.matches[0].id == "church.jpg"
    assert plain.matches[0].id == "dog.jpg"


def test_one_term_alone_is_answered_as_it_always_was_to_the_last_bit(world: World) -> None:
    vector = world.embedder.embed_texts(["a dog"])[0] * 7
    (answer,) = world.ask(world.query(Term(kind="vector", value=tuple(vector.tolist())), top_k=3))
    (expected,) = world.store.search(
        world.collection, vector[None], namespace="n", top_k=3, fresh=True
    )
    got = [(match.id, match.score) for match in answer.matches]
    assert got == [(match.record.id, match.score) for match in expected]


def test_a_term_weighed_below_nothing_pushes_its_like_down(world: World) -> None:
    away = world.mixed(TEXT, weighted(by_id("dog.jpg"), -1), top_k=3)
    (answer,) = world.ask(away)
    assert ids([answer])[0][0] == "church.jpg"
    assert ids([answer])[0][-1] == "dog.jpg"


def test_a_query_fails_with_the_first_of_its_terms_that_does_and_others_do_not(
    world: World,
) -> None:
    gone = Term(kind="image", value="expired")
    twice = [by_id("dog.jpg"), weighted(by_id("dog.jpg"), -1)]
    short = Term(kind="vector", value=(1.0, 0.0))
    answers = world.ask(
        world.mixed(TEXT, gone),
        world.mixed(TEXT, by_id("unknown"), by_id("unknown too")),
        world.mixed(*twice),
        world.mixed(TEXT, short),
        world.mixed(TEXT, by_id("dog.jpg")),
    )
    errors = ["unavailable", "not-found", "invalid-request", "invalid-request", ""]
    assert [answer.error for answer in answers] == errors
    assert "cancel" in answers[2].detail
    assert "2 numbers" in answers[3].detail


def test_pages_continue_each_other_whatever_scores_are_equal(world: World) -> None:
    row = world.embedder.embed_texts(["a church"])[0]
    for n in range(40):
        world.put(f"copy-{n:02}", row)
    pages = [world.query(TEXT, top_k=7, offset=offset) for offset in range(0, 49, 7)]
    paged = [name for page in ids(world.ask(*pages)) for name in page]
    assert len(paged) == len(set(paged)) == 43
    (whole,) = ids(world.ask(world.query(TEXT, top_k=43)))
    assert set(whole) == set(paged)


def test_groups_and_duplicates_are_looked_for_until_the_page_is_full(world: World) -> None:
    row = world.embedder.embed_texts(["a church"])[0]
    for n in range(200):
        world.put(f"copy-{n:03}", row, label="church")
    grouped, collapsed, few, both = world.ask(
        world.query(TEXT, top_k=3, group_by="label"),
        world.query(TEXT, top_k=2, collapse=0.999),
        world.query(TEXT, top_k=3, group_by="label", candidates=50),
        world.query(TEXT, top_k=3, group_by="label", collapse=0.999),
    )
    assert {match.label for match in grouped.matches} == {"church", "dog", None}
    assert [match.duplicates for match in grouped.matches] == [None] * 3
    assert [match.duplicates for match in collapsed.matches] == [200, 0]
    assert len(few.matches) == 1
    assert [match.duplicates for match in both.matches] == [200, 0, 0]
    assert all(match.values is None for match in collapsed.matches)


def test_a_score_that_is_asked_for_bounds_the_groups_too(world: World) -> None:
    (answer,) = world.ask(world.query(TEXT, top_k=3, min_score=0.999, group_by="label"))
    assert ids([answer]) == [["church.jpg"]]


def test_metadata_is_left_out_on_request(world: World) -> None:
    record = Record(primary_key("n", "m"), "m", "n", "/m", np.ones(16, np.float32))
    world.store.upsert(world.collection, [replace(record, metadata={"year": 1900})])
    vector = Term(kind="vector", value=(1.0,) * 16)
    with_, without = world.ask(world.query(vector), world.query(vector, include_metadata=False))
    assert with_.matches[0].metadata == {"year": 1900}
    assert (without.matches[0].metadata, without.matches[0].uri) == ({}, "/m")


MIXES: list[tuple[tuple[Any, ...], str]] = [
    (("text", "image"), "image"),
    (("id", "text", "vector"), "text"),
    (("id", "vector"), "none"),
]


@pytest.mark.parametrize(("kinds", "speed"), MIXES)
def test_a_mix_is_as_slow_as_the_slowest_of_its_terms(kinds: tuple[Any, ...], speed: str) -> None:
    terms = tuple(Term(kind=kind, value="") for kind in kinds)
    assert Query(terms=terms).encoder == speed
