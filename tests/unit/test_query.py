"""A batch of queries through a worker: every query gets its own answer."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.queue.messages import BatchReply, Query, Term
from clipfleet.common.queue.packed import read_reply
from clipfleet.common.store import Record
from clipfleet.workers.query.batch import STALENESS_S
from support.query_harness import IMAGE, TEXT, World, by_id, ids


@pytest.fixture
def world() -> World:
    return World()


def test_every_kind_of_term_in_one_batch_finds_its_own(world: World) -> None:
    vector = world.embedder.embed_texts(["a dog"])[0].tolist()
    terms = [TEXT, by_id("dog.jpg"), IMAGE, Term(kind="vector", value=tuple(vector)), TEXT]
    answers = world.ask(*(world.query(term) for term in terms))
    assert ids(answers) == [["church.jpg"], ["dog.jpg"], ["nine.jpg"], ["dog.jpg"], ["church.jpg"]]
    assert all(answer.matches[0].score == pytest.approx(1, abs=1e-5) for answer in answers)


def test_equal_parameters_are_one_search_and_others_their_own(world: World) -> None:
    world.ask(
        world.query(TEXT),
        world.query(Term(kind="text", value="a dog")),
        world.query(by_id("dog.jpg")),
        world.query(TEXT, top_k=2),
        world.query(TEXT, filter={"label": "dog"}),
        world.query(TEXT, filter={"label": "dog"}),
        world.query(TEXT, namespace="other"),
    )
    assert sorted(n for n, _ in world.store.searches) == [1, 1, 2, 3]


def test_filters_offsets_and_namespaces_stay_with_their_query(world: World) -> None:
    answers = world.ask(
        world.query(TEXT, filter={"label": "dog"}),
        world.query(TEXT, top_k=5, offset=1),
        world.query(TEXT, namespace="other"),
        world.query(TEXT),
    )
    assert ids(answers)[0] == ["dog.jpg"]
    assert set(ids(answers)[1]) == {"dog.jpg", "nine.jpg"}
    assert ids(answers)[2:] == [[], ["church.jpg"]]


def test_values_come_only_when_they_are_asked_for(world: World) -> None:
    without, with_ = world.ask(world.query(TEXT), world.query(TEXT, include_values=True))
    assert without.matches[0].values is None
    assert len(with_.matches[0].values or ()) == 16


def test_an_unknown_id_fails_alone(world: World) -> None:
    answers = world.ask(
        world.query(by_id("gone")), world.query(by_id("dog.jpg")), world.query(TEXT)
    )
    assert [answer.error for answer in answers] == ["not-found", "", ""]
    assert "'gone'" in answers[0].detail


def test_an_id_is_looked_up_in_its_own_namespace(world: World) -> None:
    (answer,) = world.ask(world.query(by_id("dog.jpg"), namespace="other"))
    assert answer.error == "not-found"


def test_all_ids_of_a_batch_are_looked_up_at_once(world: World) -> None:
    other = world.new("other")
    names = ["dog.jpg", "church.jpg", "gone", "dog.jpg"]
    queries = [world.query(by_id(name)) for name in names]
    queries.append(world.mixed(by_id("nine.jpg"), by_id("dog.jpg")))
    answers = world.ask(*queries, world.query(by_id("dog.jpg"), collection=other))
    assert sorted(world.store.fetched) == [1, 4]
    errors = [answer.error for answer in answers]
    assert errors == ["", "", "not-found", "", "", "not-found"]
    assert ids(answers)[:2] == [["dog.jpg"], ["church.jpg"]]


def test_only_a_gateway_that_reads_packed_replies_gets_them(world: World) -> None:
    world.ask(world.query(TEXT, answer_bytes=10))
    plain = asyncio.run(world.replies.receive("r"))
    assert plain
    assert BatchReply.model_validate_json(plain).answers[0].matches
    world.packed = True
    world.ask(world.query(TEXT, answer_bytes=10), world.query(TEXT))
    packed = asyncio.run(world.replies.receive("r"))
    assert packed
    refused, answered = read_reply(packed).answers
    assert refused.error == "too-large"
    assert answered.matches[0].id == "church.jpg"


def test_a_query_image_that_expired_fails_alone(world: World) -> None:
    gone = world.query(Term(kind="image", value="expired"))
    answers = world.ask(gone, world.query(IMAGE), gone)
    assert [answer.error for answer in answers] == ["unavailable", "", "unavailable"]
    assert "expired" in answers[0].detail
    assert ids(answers)[1] == ["nine.jpg"]


def test_a_dropped_collection_fails_only_its_own_queries(world: World) -> None:
    dropped = world.new("dropped")
    world.store.drop(dropped)
    answers = world.ask(
        world.query(TEXT, collection=dropped),
        world.query(by_id("x"), collection=dropped),
        world.query(TEXT),
    )
    assert [answer.error for answer in answers] == ["not-found", "not-found", ""]


def test_a_filter_that_cannot_be_parsed_fails_alone(world: World) -> None:
    answers = world.ask(world.query(TEXT, filter={"$no": 1}), world.query(TEXT))
    assert [answer.error for answer in answers] == ["invalid-request", ""]


def test_a_vector_of_another_length_fails_alone(world: World) -> None:
    short = world.query(Term(kind="vector", value=(1.0, 0.0)))
    good = world.query(Term(kind="vector", value=tuple([1.0] * 16)))
    answers = world.ask(short, good)
    assert answers[0].error == "invalid-request"
    assert [answer.error for answer in answers[1:]] == [""]


def test_query_images_made_for_different_models_fail_no_neighbours(world: World) -> None:
    """Two gateways may have read different worker cards, so their pixels do not fit into one
    array."""
    world.replies.images["large"] = np.zeros((9, 9, 3), np.uint8)
    (good, _) = world.ask(world.query(IMAGE), world.query(Term(kind="image", value="large")))
    assert good.error == ""


def test_with_the_store_away_every_query_is_told(world: World) -> None:
    world.store.away = True
    answers = world.ask(world.query(TEXT), world.query(by_id("gone")), world.query(IMAGE, top_k=2))
    assert [answer.error for answer in answers] == ["unavailable", "not-found", "unavailable"]
    assert answers[0].detail == "the store is away"


class Broken(HashEmbedder):
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        raise RuntimeError(f"cuda died on {texts}")


def test_when_the_model_breaks_everybody_is_told_and_no_inside_leaks(world: World) -> None:
    world.embedder = Broken()
    answers = world.ask(world.query(TEXT), world.query(TEXT))
    assert [answer.error for answer in answers] == ["internal", "internal"]
    assert "cuda" not in answers[0].detail


def test_after_the_deadline_nothing_is_pushed(world: World) -> None:
    assert world.ask(world.query(TEXT), world.query(TEXT), patience_s=[-1, -2]) == ()
    assert world.store.searches == []


def test_of_a_batch_only_those_who_still_wait_are_searched_for(world: World) -> None:
    dog = world.query(by_id("dog.jpg"))
    late, timely, later = world.ask(
        world.query(by_id("gone")), dog, world.query(TEXT), patience_s=[-1, 60, -1]
    )
    assert [late.error, timely.error, later.error] == ["unavailable", "", "unavailable"]
    assert ids([timely]) == [["dog.jpg"]]
    assert world.store.searches == [(1, False)]


@pytest.mark.parametrize(
    ("age", "fresh"), [(0.0, True), (STALENESS_S / 2, True), (STALENESS_S + 1, False)]
)
def test_a_search_is_fresh_only_while_a_write_is_young(
    world: World, age: float, fresh: bool
) -> None:
    world.catalogue.age = age
    world.ask(world.query(TEXT))
    assert world.store.searches == [(1, fresh)]


def test_a_collection_nobody_ever_wrote_to_is_searched_without_waiting(world: World) -> None:
    world.ask(world.query(TEXT))
    assert world.store.searches == [(1, False)]


def test_a_score_beyond_all_numbers_does_not_spoil_the_reply_for_the_others(world: World) -> None:
    """JSON has no infinity, and the gateway must be able to read the reply."""
    loud = world.new("loud", "dot")
    vector = np.full(16, 3e38, np.float32)
    world.store.upsert(loud, [Record("k", "k", "n", "k", vector)])
    with np.errstate(over="ignore"):
        world.ask(
            world.query(TEXT),
            world.query(Term(kind="vector", value=tuple(vector.tolist())), collection=loud),
        )
    raw = world.replies.pushed[-1].model_dump_json()
    assert BatchReply.model_validate_json(raw).answers[0].matches[0].id == "church.jpg"


def test_a_query_without_a_search_is_answered_with_its_embedding(world: World) -> None:
    vector = world.embedder.embed_texts(["a church"])[0]
    answers = world.ask(Query.of(TEXT), world.query(TEXT), Query.of(IMAGE))
    assert answers[0].embedding == pytest.approx(vector.tolist())
    assert answers[0].matches == ()
    assert answers[1].matches[0].id == "church.jpg"
    assert len(answers[2].embedding) == 16
    assert len(world.store.searches) == 1


def test_an_id_means_nothing_without_a_collection(world: World) -> None:
    answers = world.ask(Query.of(by_id("dog.jpg")), Query.of(TEXT))
    assert answers[0].error == "internal"


def test_a_model_whose_numbers_are_not_finite_fails_the_query_of_them_alone(world: World) -> None:
    class Broken(HashEmbedder):
        def embed_texts(self, texts: Sequence[str]) -> Embeddings:
            rows = super().embed_texts(texts)
            rows[[text == "broken" for text in texts]] = np.inf
            return rows

    world.embedder = Broken()
    broken = Term(kind="text", value="broken")
    answers = world.ask(world.query(TEXT), world.query(broken), Query.of(broken), Query.of(TEXT))
    assert [answer.error for answer in answers] == ["", "internal", "internal", ""]
    assert ids(answers)[0] == ["church.jpg"]
    assert len(answers[3].embedding) == 16


def test_a_worker_with_other_weights_answers_only_what_needs_no_model(world: World) -> None:
    world.weights_id = "bb"
    vector = Term(kind="vector", value=tuple(world.embedder.embed_texts(["a dog"])[0].tolist()))
    terms = [TEXT, IMAGE, by_id("dog.jpg"), vector]
    assert all(answer.error == "" for answer in world.ask(*map(world.query, terms)))
    world.collection = world.collection.model_copy(update={"weights_id": "aa"})
    text, image, *others = world.ask(*map(world.query, terms))
    for answer in (text, image):
        assert (answer.error, answer.matches) == ("invalid-request", ())
        assert "a folder of another name" in answer.detail
    assert ids(others) == [["dog.jpg"], ["dog.jpg"]]
    world.weights_id = "aa"
    assert all(answer.error == "" for answer in world.ask(*map(world.query, terms)))
