"""Pages, groups and near-duplicates, built from the matches of a store."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.collection import Metric
from clipfleet.common.store import Match, Record
from clipfleet.workers.query.ranking import PageSpec, RankedMatch, Ranking


def match(name: str, score: float, *numbers: float, **more: Any) -> Match:
    embedding = np.asarray(numbers or (1.0, 0.0), np.float32)
    return Match(Record(name, name, "n", f"/{name}", embedding, **more), score)


def shown(matches: Sequence[Match], spec: PageSpec, metric: Metric = "cosine") -> list[RankedMatch]:
    """The page after window after window, until the ranking is complete, as in a search."""
    ranking = Ranking(spec, metric)
    for size in spec.windows():
        if not ranking.is_complete:
            ranking.add(matches[:size], size)
    return ranking.page()


def names(page: Sequence[RankedMatch]) -> str:
    return "".join(kept.match.record.id for kept in page)


def labelled(labels: str) -> list[Match]:
    """Matches a, b, c… with these labels, each with a lower score than the one before."""
    return [match(chr(97 + n), 1 - n / 100, label=label.strip()) for n, label in enumerate(labels)]


def test_equal_scores_come_in_the_order_of_their_ids() -> None:
    matches = [match("c", 0.5), match("b", 0.5), match("a", 0.4), match("d", 0.6)]
    assert names(shown(matches, PageSpec(top_k=4))) == "dbca"


def test_of_distances_the_least_comes_first() -> None:
    matches = [match("c", 2.0), match("b", 1.0), match("a", 1.0)]
    assert names(shown(matches, PageSpec(top_k=3), "euclidean")) == "abc"


def test_what_scores_less_does_not_count_as_a_match() -> None:
    matches = labelled("xxyyzz")
    assert names(shown(matches, PageSpec(top_k=9, min_score=0.97))) == "abcd"
    assert names(shown(matches, PageSpec(top_k=9, offset=3, min_score=0.97))) == "d"
    assert names(shown(matches, PageSpec(top_k=9, min_score=0.97, group_by="label"))) == "ac"


@pytest.mark.parametrize(("size", "expected"), [(1, "ace"), (2, "abcef"), (9, "abcdefg")])
def test_of_each_group_so_many_are_shown(size: int, expected: str) -> None:
    matches = labelled("xxyxzzz")
    assert names(shown(matches, PageSpec(top_k=9, group_by="label", group_size=size))) == expected


def test_images_without_a_label_are_a_group_of_their_own() -> None:
    assert names(shown(labelled("x y  "), PageSpec(top_k=9, group_by="label"))) == "abc"


def test_groups_may_be_of_any_value_that_metadata_holds() -> None:
    values: list[Any] = [1, 1.0, True, "1", [1], [1], {"a": 1}, {"a": 1}, None, False, 0]
    matches = [match(chr(97 + n), -n, metadata={"x": value}) for n, value in enumerate(values)]
    assert names(shown(matches, PageSpec(top_k=20, group_by="x"))) == "acdegijk"


def test_a_name_with_dots_groups_by_a_path_as_in_a_filter() -> None:
    values: list[dict[str, Any]] = [
        {"cam": {"make": "A"}},
        {"cam": {"make": "B"}},
        {"cam.make": "A", "cam": {"make": "B"}},
        {"cam": "A"},
        {},
    ]
    matches = [match(chr(97 + n), -n, metadata=value) for n, value in enumerate(values)]
    assert names(shown(matches, PageSpec(top_k=9, group_by="cam.make"))) == "abd"


def test_builtin_and_declared_fields_group_as_free_ones_do() -> None:
    matches = [match("a", 3, width=5), match("b", 2, width=5), match("c", 1, width=6)]
    assert names(shown(matches, PageSpec(top_k=9, group_by="width"))) == "ac"


def turned(name: str, score: float, degrees: float) -> Match:
    angle = np.deg2rad(degrees)
    return match(name, score, float(np.cos(angle)), float(np.sin(angle)))


def test_near_duplicates_are_counted_by_the_one_they_are_nearest_to() -> None:
    matches = [turned("a", 9, 0), turned("b", 8, 5), turned("c", 7, 40), turned("d", 6, 33)]
    page = shown(matches, PageSpec(top_k=9, collapse=0.98))  # 11.5 degrees
    assert [(kept.match.record.id, kept.duplicates) for kept in page] == [("a", 1), ("c", 1)]


def test_a_threshold_of_one_collapses_copies_only() -> None:
    third = [1 / 3, 0.1, 0.7]
    matches = [match("a", 3, *third), match("b", 2, *third), match("c", 1, 0.34, 0.1, 0.7)]
    assert names(shown(matches, PageSpec(top_k=9, collapse=1.0))) == "ac"


def test_the_length_of_an_embedding_makes_no_difference_and_zeros_are_near_to_nothing() -> None:
    matches = [match("a", 4, 1, 1), match("b", 3, 5, 5), match("c", 2, 0, 0), match("d", 1, 0, 0)]
    assert names(shown(matches, PageSpec(top_k=9, collapse=0.9), "dot")) == "acd"


def test_what_is_left_out_is_always_stood_for_by_something_shown() -> None:
    """The group of b is full, so c, which is near b alone, is shown."""
    matches = [
        replace(turned("a", 9, 0), score=9),
        turned("b", 8, 30),
        turned("c", 7, 35),
    ]
    labels = ("x", "x", "y")
    matches = [
        replace(candidate, record=replace(candidate.record, label=label))
        for candidate, label in zip(matches, labels, strict=True)
    ]
    spec = PageSpec(top_k=9, group_by="label", collapse=0.98)
    assert names(shown(matches, spec)) == "ac"


def test_one_window_is_asked_for_the_first_page_and_wider_ones_for_later_pages() -> None:
    assert list(PageSpec(top_k=10).windows()) == [10]
    for offset in (1, 10, 70):
        assert list(PageSpec(top_k=10, offset=offset).windows()) == [10, 80]
    assert list(PageSpec(top_k=10, offset=71).windows()) == [10, 80, 640]
    assert list(PageSpec(top_k=1_000, offset=9_000).windows()) == [1_000, 8_000, 10_000]


def test_groups_are_looked_for_in_wider_windows_up_to_the_limit() -> None:
    assert list(PageSpec(top_k=10, group_by="x", max_window=2_000).windows()) == [80, 640, 2_000]
    assert list(PageSpec(top_k=10, collapse=0.9, max_window=50).windows()) == [50]


def test_at_the_limit_there_are_fewer_matches_and_those_are_right() -> None:
    matches = labelled("xxxxxxxxxxxxy")
    assert names(shown(matches, PageSpec(top_k=2, group_by="label", max_window=12))) == "a"
    assert names(shown(matches, PageSpec(top_k=2, group_by="label", max_window=13))) == "am"


RANDOM = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from("xyz "), st.sampled_from([0, 4, 30, 90])),
    max_size=120,
)
RULES = st.fixed_dictionaries(
    {
        "group_by": st.sampled_from([None, "label"]),
        "group_size": st.integers(1, 3),
        "collapse": st.sampled_from([None, 0.99, 0.9]),
        "min_score": st.sampled_from([None, 3.0]),
    }
)


def laid_out(rows: Sequence[tuple[int, str, int]]) -> list[Match]:
    """Matches in descending order of score, as a store returns them. The order of ties is
    arbitrary."""
    matches = []
    for n, (score, label, degrees) in enumerate(rows):
        candidate = turned(f"{n:03}", float(score), degrees)
        matches.append(replace(candidate, record=replace(candidate.record, label=label.strip())))
    return sorted(matches, key=lambda candidate: -candidate.score)


@effort(max_examples=300, deadline=None)
@given(rows=RANDOM, rules=RULES, top_k=st.integers(1, 7))
def test_every_page_continues_the_one_before(
    rows: list[tuple[int, str, int]], rules: dict[str, Any], top_k: int
) -> None:
    matches = laid_out(rows)
    pages: list[str] = []
    for offset in range(0, 126, top_k):
        page = shown(matches, PageSpec(top_k=top_k, offset=offset, **rules))
        pages += [kept.match.record.id for kept in page]
        if len(page) < top_k:
            break
    assert len(set(pages)) == len(pages)
    if rules["group_by"] is None and rules["collapse"] is None:
        least = rules["min_score"] or 0
        assert set(pages) == {
            candidate.record.id for candidate in matches if candidate.score >= least
        }


@effort(max_examples=300, deadline=None)
@given(rows=RANDOM, rules=RULES, top_k=st.integers(1, 20))
def test_what_is_shown_keeps_every_rule_and_what_is_not_has_a_reason(
    rows: list[tuple[int, str, int]], rules: dict[str, Any], top_k: int
) -> None:
    matches, spec = laid_out(rows), PageSpec(top_k=top_k, **rules)
    page = shown(matches, spec)
    kept = {ranked.match.record.id for ranked in page}
    groups = Counter(ranked.match.record.label for ranked in page)
    assert len(page) <= top_k
    if spec.group_by:
        assert not groups or max(groups.values()) <= spec.group_size
    if spec.min_score is not None:
        assert all(ranked.match.score >= spec.min_score for ranked in page)
    if len(page) == top_k:
        return
    for candidate in matches:
        under = spec.min_score is not None and candidate.score < spec.min_score
        full = bool(spec.group_by) and groups[candidate.record.label] == spec.group_size
        near = any(_cosine(candidate, other.match) >= (spec.collapse or 2) - 1e-5 for other in page)
        assert candidate.record.id in kept or under or full or near


def _cosine(first: Match, second: Match) -> float:
    return float(first.record.embedding @ second.record.embedding)


@effort(max_examples=200, deadline=None)
@given(rows=RANDOM, collapse=st.sampled_from([0.99, 0.9]))
def test_every_match_looked_at_is_shown_or_counted(
    rows: list[tuple[int, str, int]], collapse: float
) -> None:
    page = shown(laid_out(rows), PageSpec(top_k=200, collapse=collapse))
    assert sum(1 + kept.duplicates for kept in page) == len(rows)


def test_a_wider_window_that_finds_something_better_repeats_and_drops_nothing() -> None:
    """With an approximate index the first window may miss a match, here z."""
    narrow = [match("b", 0.8), match("c", 0.7)]
    wide = [match("z", 0.9), *narrow, match("d", 0.6)]

    def page(offset: int) -> str:
        ranking = Ranking(PageSpec(top_k=2, offset=offset), "cosine")
        ranking.add(narrow, 2)
        if not ranking.is_complete:
            ranking.add(wide, 16)
        return names(ranking.page())

    assert page(0) + page(2) + page(4) == "bczd"
