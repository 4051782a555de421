"""Groups of near images."""

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipfleet.workers.analysis import near
from clipfleet.workers.analysis.near import group_near, split_apart

Rows = NDArray[np.float32]


def unit(rows: Rows) -> Rows:
    normal: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def circle(*degrees: float) -> Rows:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def some_rows(seed: int, count: int) -> Rows:
    """Rows of which many are near others."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 4), 8))
    rows = centres[random.integers(len(centres), size=count)]
    return unit((rows + 0.3 * random.standard_normal((count, 8))).astype(np.float32))


def test_a_chain_gives_a_group_around_the_image_to_keep() -> None:
    limit = float(np.cos(np.deg2rad(10.5)))
    assert group_near(circle(10, 0, 20), limit).tolist() == [0, 0, 0]
    assert group_near(circle(0, 10, 20), limit).tolist() == [0, 0, 2]


def test_an_image_joins_the_nearest_leader() -> None:
    limit = float(np.cos(np.deg2rad(10.5)))
    assert group_near(circle(0, 18, 10), limit).tolist() == [0, 1, 1]


def test_five_thousand_equal_images_are_one_group() -> None:
    rows = np.repeat(circle(33), 5_000, axis=0)
    assert set(group_near(rows, 1.0).tolist()) == {0}


def test_no_images_and_one_image_give_no_group() -> None:
    assert group_near(np.empty((0, 4), np.float32), 0.9).tolist() == []
    assert group_near(circle(1), 0.9).tolist() == [0]


def test_rows_of_zeros_are_near_nothing() -> None:
    rows = np.zeros((3, 4), np.float32)
    assert group_near(rows, 0.5).tolist() == [0, 1, 2]


def test_images_of_different_namespaces_are_not_near() -> None:
    rows, spaces = circle(0, 0, 0, 0), np.array([0, 1, 0, 1])
    assert group_near(rows, 0.9, spaces).tolist() == [0, 1, 0, 1]


def test_images_kept_apart_never_share_a_group() -> None:
    rows = circle(0, 1, 2, 3)
    assert group_near(rows, 0.9, None, {1: [5], 2: [5]}).tolist() == [0, 0, 2, 2]
    assert group_near(rows, 0.9, None, {0: [5], 1: [5, 6], 3: [6]}).tolist() == [0, 1, 1, 0]
    assert split_apart([0, 1, 2], {0: [7], 1: [7]}) == [[0, 2], [1]]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.5, 1.0))
def test_every_group_is_as_documented(seed: int, count: int, threshold: float) -> None:
    rows = some_rows(seed, count)
    leaders = group_near(rows, threshold)
    scores = rows @ rows.T
    for row, leader in enumerate(leaders):
        before = [other for other in range(row) if leaders[other] == other]
        if leader == row:
            assert all(scores[row, other] < threshold + 1e-5 for other in before)
        else:
            assert leaders[leader] == leader < row
            assert scores[row, leader] >= threshold - 1e-5
            assert scores[row, leader] >= max(scores[row, other] for other in before) - 1e-5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.data())
def test_images_in_a_set_are_apart_whatever_the_sets(seed: int, data: st.DataObject) -> None:
    rows = some_rows(seed, 40)
    sets = data.draw(st.lists(st.sets(st.integers(0, 39), min_size=2, max_size=6), max_size=8))
    apart: Mapping[int, Sequence[int]] = {
        row: numbers
        for row in range(40)
        if (numbers := [number for number, members in enumerate(sets) if row in members])
    }
    leaders = group_near(rows, 0.8, None, apart)
    for members in sets:
        assert len({int(leaders[row]) for row in members}) == len(members)


def test_blocks_change_nothing() -> None:
    """More rows than a block, with leaders of more than one panel."""
    random = np.random.default_rng(3)
    count = 2 * near.BLOCK + 100
    rows = random.standard_normal((count, 64)).astype(np.float32)
    rows[near.BLOCK + 50 :: 3] = rows[0 : count - near.BLOCK - 50 : 3]
    leaders = group_near(unit(rows), 0.9)
    expected = np.arange(count)
    expected[near.BLOCK + 50 :: 3] = leaders[0 : count - near.BLOCK - 50 : 3]
    assert leaders.tolist() == expected.tolist()
