"""How sure a match is, apart from any store."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clipfleet.common.http.search import SearchIn
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.workers.query.confidence import (
    image_logits,
    label_confidences,
    probability,
    words_logits,
)
from clipfleet.workers.query.nouns import NounBank, nouns

numbers = st.lists(st.floats(-30, 30), min_size=2, max_size=10)


@given(numbers, st.floats(0, 20), st.data())
def test_confidence_never_rises_when_a_score_falls(
    scores: list[float], fall: float, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(scores) - 1))
    before = np.array(scores)
    after = before.copy()
    after[place] -= fall
    assert (
        probability(words_logits(after, after)) <= probability(words_logits(before, before))
    ).all()
    cosines, lower, alike = before / 30, after / 50, np.zeros(len(scores))
    lower = np.minimum(lower, cosines)
    sure = probability(image_logits((cosines, alike), (cosines, alike)))
    assert (probability(image_logits((lower, alike), (lower, alike))) <= sure).all()


def test_a_copy_of_the_query_image_is_sure_even_alone() -> None:
    cosine, alike = np.array([1.0]), np.zeros(1)
    assert probability(image_logits((cosine, alike), (cosine, alike)))[0] > 0.95


def test_the_bank_has_a_thousand_different_nouns() -> None:
    assert len(set(nouns())) == len(nouns()) == 1_000


def test_labels_get_a_number_between_0_and_1_for_each_image() -> None:
    embedder = HashEmbedder(64)
    images, labels = embedder.embed_texts(["a", "b", "c"]), embedder.embed_texts(["d", "e"])
    values = label_confidences(images, labels, NounBank.of(embedder))
    assert values.shape == (3, 2)
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, "0.5"])
def test_min_confidence_is_a_number_from_0_to_1(value: object) -> None:
    with pytest.raises(ValidationError):
        SearchIn.model_validate({"text": "a dog", "min_confidence": value})
