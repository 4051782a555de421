"""The text cache: a text is embedded once, however often it is queried."""

from collections.abc import Sequence

import numpy as np
import pytest

from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.workers.embedding.cached import CachedEmbedder


class Counting(HashEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        self.batches.append(list(texts))
        return super().embed_texts(texts)


@pytest.fixture
def model() -> Counting:
    return Counting()


def test_equal_texts_of_a_batch_are_embedded_once_and_each_gets_its_row(model: Counting) -> None:
    rows = CachedEmbedder(model, 10).embed_texts(["a", "b", "a", "c", "b"])
    assert model.batches == [["a", "b", "c"]]
    assert np.array_equal(rows, HashEmbedder().embed_texts(["a", "b", "a", "c", "b"]))


def test_a_text_seen_before_is_not_embedded_again(model: Counting) -> None:
    remembering = CachedEmbedder(model, 10)
    remembering.embed_texts(["a", "b"])
    rows = remembering.embed_texts(["b", "new", "a"])
    assert model.batches == [["a", "b"], ["new"]]
    assert np.array_equal(rows, HashEmbedder().embed_texts(["b", "new", "a"]))


def test_a_batch_of_known_texts_does_not_reach_the_model(model: Counting) -> None:
    remembering = CachedEmbedder(model, 10)
    remembering.embed_texts(["a"])
    assert remembering.embed_texts(["a"]).shape == (1, 16)
    assert len(model.batches) == 1


def test_the_least_recently_used_is_forgotten(model: Counting) -> None:
    remembering = CachedEmbedder(model, 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        remembering.embed_texts([text])
    assert model.batches == [["a"], ["b"], ["c"], ["b"]]


def test_a_batch_larger_than_the_memory_is_answered_whole(model: Counting) -> None:
    rows = CachedEmbedder(model, 2).embed_texts(list("abcde"))
    assert np.array_equal(rows, HashEmbedder().embed_texts(list("abcde")))


def test_with_no_room_nothing_is_remembered_but_a_batch_is_still_distinct(model: Counting) -> None:
    remembering = CachedEmbedder(model, 0)
    for _ in range(2):
        remembering.embed_texts(["a", "a"])
    assert model.batches == [["a"], ["a"]]


@pytest.mark.parametrize("other", ["a church ", "A church", "a  church", "a\u0301 church"])
def test_texts_that_differ_at_all_are_different(model: Counting, other: str) -> None:
    CachedEmbedder(model, 10).embed_texts(["a church", other])
    assert model.batches == [["a church", other]]


def test_a_caller_who_changes_a_row_changes_no_later_answer(model: Counting) -> None:
    remembering = CachedEmbedder(model, 10)
    for _ in range(2):
        rows = remembering.embed_texts(["a"])
        assert np.array_equal(rows, HashEmbedder().embed_texts(["a"]))
        rows[:] = 0


def test_hits_and_misses_are_counted(model: Counting) -> None:
    remembering = CachedEmbedder(model, 10)
    remembering.embed_texts(["a", "b", "a"])
    remembering.embed_texts(["b", "c"])
    assert (remembering.hits, remembering.misses) == (2, 3)


def test_no_texts_give_no_rows(model: Counting) -> None:
    assert CachedEmbedder(model, 10).embed_texts([]).shape == (0, 16)
    assert model.batches == []


def test_a_text_that_fails_is_tried_again(model: Counting) -> None:
    remembering = CachedEmbedder(model, 10)
    working = model.embed_texts
    model.embed_texts = _broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        remembering.embed_texts(["a"])
    model.embed_texts = working  # type: ignore[method-assign]
    assert remembering.embed_texts(["a"]).shape == (1, 16)


def _broken(_: Sequence[str]) -> Embeddings:
    raise RuntimeError("the device is gone")
