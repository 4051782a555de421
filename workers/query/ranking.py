"""Builds a page of ranked matches from windows of a store's nearest matches.

The store is asked for a window of nearest matches, and for a wider window only if the first does
not fill the page. Matches that only the wider window has come after those of the first. So the
order of all matches does not depend on the page, and each page continues the one before.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipfleet.common.collection import Metric
from clipfleet.common.store import Match, Vectors
from clipfleet.common.store.filters import value_at

GROWTH = 8  # the size of a window relative to the window before
ROUNDING = 1e-6  # error of a cosine in 32 bits; lets a threshold of 1 collapse copies


@dataclass(frozen=True)
class PageSpec:
    """A page, and the conditions for matches on it.

    Attributes:
        top_k: the number of matches on the page.
        offset: the number of matches before the page.
        min_score: the lowest score; None for no limit.
        group_by: the metadata field that groups matches; None for no groups.
        group_size: the number of matches that a group may have.
        collapse: the lowest cosine of near-duplicates, of which one is shown; None shows all.
        max_window: the number of matches in the widest window.
        examined: the number of matches in the first window at least.
    """

    top_k: int
    offset: int = 0
    min_score: float | None = None
    group_by: str | None = None
    group_size: int = 1
    collapse: float | None = None
    max_window: int = 10_000
    examined: int = 1

    @property
    def sifts(self) -> bool:
        """Whether grouping or collapsing leaves matches out."""
        return self.group_by is not None or self.collapse is not None

    @property
    def end(self) -> int:
        """The number of matches up to the end of the page."""
        return self.offset + self.top_k

    def windows(self) -> Iterator[int]:
        """The sizes of the windows, which are the same for every page of one size.

        Without sifting, the last window contains the page.
        """
        size = max(self.top_k * (GROWTH if self.sifts else 1), self.examined)
        last = self.max_window if self.sifts else max(self.end, self.examined)
        while size < last:
            yield size
            size *= GROWTH
        yield min(size, self.max_window)


@dataclass
class RankedMatch:
    """A match on a page.

    Attributes:
        duplicates: the number of near-duplicates that were collapsed into it.
        confidence: how sure the match is; None: not known.
    """

    match: Match
    duplicates: int = 0
    confidence: float | None = None


@dataclass
class Ranking:
    """Ranks the matches of one query from windows that are added in order of their size.

    A match is left out if its score is below `min_score`. Otherwise it is collapsed into a kept
    match that it nearly duplicates. Otherwise it is left out if `group_size` matches of its group
    are kept.

    Attributes:
        nearest: the nearest matches, whether they are on the page or not: `examined` at most.
    """

    spec: PageSpec
    metric: Metric
    nearest: list[Match] = field(default_factory=list)
    _kept: list[RankedMatch] = field(default_factory=list)
    _seen_keys: set[str] = field(default_factory=set)
    _groups: Counter[Hashable] = field(default_factory=Counter)
    _units: Vectors | None = None  # of kept matches, [end, dim]; rows are filled in order
    _ended: bool = False

    def add(self, window: Sequence[Match], size: int) -> None:
        """Add the nearest matches of a window.

        Args:
            window: the matches; fewer than `size` if the store has no more.
            size: the size of the window.
        """
        new = [match for match in window if match.record.pk not in self._seen_keys]
        self._seen_keys.update(match.record.pk for match in new)
        ordered = sorted(new, key=self._sort_key)
        self.nearest += ordered[: self.spec.examined - len(self.nearest)]
        for match in ordered:
            self._take(match)
        self._ended |= len(window) < size

    @property
    def is_complete(self) -> bool:
        """Whether a wider window would not change the page."""
        return self._ended or len(self._kept) >= self.spec.end

    @property
    def truncated(self) -> str:
        """The limit that ended the windows before the page was full, as in `SearchOut`; "": none.

        The widest window may have all matches that there are: nobody has looked further.
        """
        if self.is_complete:
            return ""
        return "candidates" if self.spec.sifts else "window"

    def page(self) -> list[RankedMatch]:
        """The matches on the page, nearest first."""
        return self._kept[self.spec.offset : self.spec.end]

    def _sort_key(self, match: Match) -> tuple[float, str]:
        return (match.score if self.metric == "euclidean" else -match.score, match.record.id)

    def _take(self, match: Match) -> None:
        if self.spec.min_score is not None and match.score < self.spec.min_score:
            self._ended = True
        elif same := self._near_duplicate_of(match):
            same.duplicates += 1
        elif len(self._kept) < self.spec.end and self._has_room(self._group(match)):
            self._keep(match)

    def _keep(self, match: Match) -> None:
        if self.spec.collapse is not None:
            unit = _unit(match.record.embedding)
            if self._units is None:
                self._units = np.zeros((self.spec.end, unit.size), np.float32)
            self._units[len(self._kept)] = unit
        self._groups[self._group(match)] += 1
        self._kept.append(RankedMatch(match))

    def _near_duplicate_of(self, match: Match) -> RankedMatch | None:
        """The nearest kept match, if it is near enough to collapse into."""
        if self.spec.collapse is None or self._units is None:
            return None
        cosines = self._units[: len(self._kept)] @ _unit(match.record.embedding)
        nearest = int(cosines.argmax())
        return self._kept[nearest] if cosines[nearest] >= self.spec.collapse - ROUNDING else None

    def _has_room(self, group: Hashable) -> bool:
        return self.spec.group_by is None or self._groups[group] < self.spec.group_size

    def _group(self, match: Match) -> Hashable:
        """The match's group. Images without the field form a group as well."""
        if self.spec.group_by is None:
            return None
        return _hashable(value_at(match.record.values(), self.spec.group_by))


def _hashable(value: Any) -> Hashable:
    """1 and 1.0 are one group, 1 and true are two."""
    if isinstance(value, bool):
        return (value, bool)
    if value is None or isinstance(value, str | int | float):
        return value
    return (json.dumps(value, sort_keys=True), json)


def _unit(embedding: Vectors) -> Vectors:
    """The unit vector; a vector of zeros stays as it is and is near to nothing."""
    length = float(np.linalg.norm(embedding))
    return embedding / length if length else embedding
