"""From what a store finds to the page that was asked for.

A store is asked for a window of its nearest, and for a wider one only where the first was not
enough. What the wider one finds beside the first comes after it, so the order of all matches does
not depend on how far somebody looks, and each page continues the one before.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipfleet.common.collection import Metric
from clipfleet.common.store import Match, Vectors

GROWTH = 8  # a window to the one before it
ROUNDING = 1e-6  # of a cosine in 32 bits: copies are collapsed by a threshold of 1, too


@dataclass(frozen=True)
class PageSpec:
    """A page and what belongs on it. `looked_at`: the widest window."""

    top_k: int
    offset: int = 0
    min_score: float | None = None
    group_by: str | None = None
    group_size: int = 1
    collapse: float | None = None  # the least cosine of near-duplicates
    looked_at: int = 10_000

    @property
    def sifts(self) -> bool:
        return self.group_by is not None or self.collapse is not None

    @property
    def end(self) -> int:
        return self.offset + self.top_k

    def windows(self) -> Iterator[int]:
        """The same ones for every page of one size. Without sifting, the last holds the page."""
        size = self.top_k * (GROWTH if self.sifts else 1)
        last = self.looked_at if self.sifts else self.end
        while size < last:
            yield size
            size *= GROWTH
        yield min(size, self.looked_at)


@dataclass
class RankedMatch:
    match: Match
    duplicates: int = 0


@dataclass
class Ranking:
    """What one query keeps of the windows it is shown, narrow ones first.

    A match is left out when its score is under `min_score`, else when it is nearly the same as one
    that is kept already, which then stands for it, else when `group_size` of its group are kept.
    """

    wanted: PageSpec
    metric: Metric
    _kept: list[RankedMatch] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _groups: Counter[Hashable] = field(default_factory=Counter)
    _units: Vectors | None = None  # of those kept, [end, dim]; rows are filled as they come
    _ended: bool = False

    def add(self, window: Sequence[Match], size: int) -> None:
        """The nearest matches of a window of this size; fewer, when there are no more."""
        new = [match for match in window if match.record.pk not in self._seen]
        self._seen.update(match.record.pk for match in new)
        for match in sorted(new, key=self._place):
            self._take(match)
        self._ended |= len(window) < size

    @property
    def enough(self) -> bool:
        return self._ended or len(self._kept) >= self.wanted.end

    def page(self) -> list[RankedMatch]:
        return self._kept[self.wanted.offset : self.wanted.end]

    def _place(self, match: Match) -> tuple[float, str]:
        return (match.score if self.metric == "euclidean" else -match.score, match.record.id)

    def _take(self, match: Match) -> None:
        if self.wanted.min_score is not None and match.score < self.wanted.min_score:
            self._ended = True
        elif same := self._near_duplicate_of(match):
            same.duplicates += 1
        elif len(self._kept) < self.wanted.end and self._has_room(self._group(match)):
            self._keep(match)

    def _keep(self, match: Match) -> None:
        if self.wanted.collapse is not None:
            unit = _unit(match.record.embedding)
            if self._units is None:
                self._units = np.zeros((self.wanted.end, unit.size), np.float32)
            self._units[len(self._kept)] = unit
        self._groups[self._group(match)] += 1
        self._kept.append(RankedMatch(match))

    def _near_duplicate_of(self, match: Match) -> RankedMatch | None:
        """The nearest of those kept, where it is near enough to collapse into."""
        if self.wanted.collapse is None or self._units is None:
            return None
        cosines = self._units[: len(self._kept)] @ _unit(match.record.embedding)
        nearest = int(cosines.argmax())
        return self._kept[nearest] if cosines[nearest] >= self.wanted.collapse - ROUNDING else None

    def _has_room(self, group: Hashable) -> bool:
        return self.wanted.group_by is None or self._groups[group] < self.wanted.group_size

    def _group(self, match: Match) -> Hashable:
        """Images without the field are a group, too."""
        if self.wanted.group_by is None:
            return None
        return _hashable(match.record.values().get(self.wanted.group_by))


def _hashable(value: Any) -> Hashable:
    """1 and 1.0 are one group, 1 and true are two."""
    if isinstance(value, bool):
        return (value, bool)
    if value is None or isinstance(value, str | int | float):
        return value
    return (json.dumps(value, sort_keys=True), json)


def _unit(embedding: Vectors) -> Vectors:
    """A vector of zeros stays one, and is near to nothing."""
    length = float(np.linalg.norm(embedding))
    return embedding / length if length else embedding
