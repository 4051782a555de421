"""The sum of weighted terms ranks images by the sum of the terms' scores."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.collection import Metric
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store import Vectors
from clipfleet.workers.query.combine import combine

METRICS: list[Metric] = ["cosine", "dot", "euclidean"]
WEIGHTS = st.floats(-3, 3).map(lambda weight: round(weight, 2))


def rows(seed: int, count: int) -> Vectors:
    """Random rows, each of another length."""
    directions = np.random.default_rng(seed).standard_normal((count, 6))
    return np.asarray(directions * np.arange(1, count + 1)[:, None], np.float32)


def units(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("metric", METRICS)
def test_a_single_term_stays_as_it_is_to_the_last_bit(metric: Metric) -> None:
    (row,) = rows(1, 1)
    assert combine([1.0], [row], metric).tobytes() == row.tobytes()


def test_by_cosine_the_sum_has_unit_length_and_long_terms_count_no_more() -> None:
    first, second = np.array([1, 0], np.float32), np.array([0, 9], np.float32)
    mixed = combine([1, 1], [first, second], "cosine")
    assert mixed.dtype == np.float32
    assert mixed == pytest.approx([0.5**0.5, 0.5**0.5])
    assert combine([1, 1], [first, second], "dot") == pytest.approx([1, 9])
    assert combine([1, 3], [first, second], "euclidean") == pytest.approx([0.25, 6.75])


@effort(max_examples=200, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=5), st.integers(0, 99), st.sampled_from(METRICS))
def test_images_come_in_the_order_of_the_weighted_scores_of_the_terms(
    weights: list[float], seed: int, metric: Any
) -> None:
    terms, images = rows(seed, len(weights)), rows(seed + 1_000, 9).astype(np.float64)
    assume(any(weights) and (metric != "euclidean" or sum(weights) > 0.01))
    mixed = combine(weights, list(terms), metric).astype(np.float64)
    scale: Any
    if metric == "euclidean":
        each = ((images[:, None] - terms[None]) ** 2).sum(axis=2)
        scored, expected = ((images - mixed) ** 2).sum(axis=1), each @ weights
        scale = sum(weights)
    else:
        compared = units(images) if metric == "cosine" else images
        scored = compared @ (units(mixed) if metric == "cosine" else mixed)
        expected = compared @ (units(terms) if metric == "cosine" else terms).T @ weights
        scale = np.linalg.norm(np.asarray(weights) @ units(terms)) if metric == "cosine" else 1
    # Equal but for a factor above 0, which says how the scores are to be read, and a constant.
    moved = scale * scored - expected
    assert np.allclose(moved, moved[0] if metric == "euclidean" else 0, atol=1e-3)


def test_a_negative_term_is_moved_away_from() -> None:
    church, night = np.array([1, 0], np.float32), np.array([0.6, 0.8], np.float32)
    mixed = combine([1, -0.5], [church, night], "cosine")
    assert mixed @ night < church @ night
    assert mixed @ church > 0.8


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.5, -0.5], [1e3, -1e3], [0.0, 0.0]])
def test_terms_that_cancel_each_other_out_are_refused(metric: Metric, weights: list[float]) -> None:
    (row,) = rows(3, 1)
    with pytest.raises(InvalidRequest, match=r"cancel|add up"):
        combine(weights, [row, row.copy()], metric)


def test_nothing_is_farthest_from_a_point() -> None:
    with pytest.raises(InvalidRequest, match="more than 0"):
        combine([-1.0], [rows(3, 1)[0]], "euclidean")
    assert combine([-1.0], [np.array([2, 0], np.float32)], "cosine") == pytest.approx([-1, 0])
    assert combine([-1.0], [np.array([2, 0], np.float32)], "dot") == pytest.approx([-2, 0])


def test_zeros_have_no_direction() -> None:
    zeros = np.zeros(4, np.float32)
    with pytest.raises(InvalidRequest, match="zeros"):
        combine([1, 1], [zeros, np.ones(4, np.float32)], "cosine")
    assert combine([1, 1], [zeros, np.ones(4, np.float32)], "dot") == pytest.approx([1] * 4)


def test_the_largest_weights_and_numbers_overflow_nothing() -> None:
    huge = [np.full(4, 1e15, np.float32), np.array([1e15, -1e15, 0, 1], np.float32)]
    for metric in METRICS:
        assert np.isfinite(combine([1_000, -999], huge, metric)).all()
