"""Groups images that are near each other, in a way that does not depend on their order.

The images are ranked, the one to keep first. In this order, each image joins the nearest leader
that it is near to; an image that is near to none becomes a leader. So every image of a group is
near to the group's leader, and to delete all others of a group deletes no image without a near one
that stays. A chain (B is near to A, and C to B, but not to A) gives one group around B when B is
ranked first, and otherwise A with B, and C alone.

Only leaders are compared with, so the memory does not grow with the number of pairs: 5,000 equal
images have one leader. The comparison is exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]

BLOCK = 2_048  # images that are compared at once
PANEL = 8_192  # leaders that they are compared with at once
ROUNDING = 2e-6  # two equal embeddings may have a cosine of a little less than 1
NOT_NEAR = -1


@dataclass
class _Leaders:
    """The leaders so far, in their order.

    Attributes:
        rows: their rows; `count` of them are used.
        sets: by leader, the sets of images kept apart that its group has members of.
    """

    rows: Numbers
    count: int = 0
    sets: dict[int, set[int]] = field(default_factory=dict)

    def panels(self) -> Iterator[Numbers]:
        for start in range(0, self.count, PANEL):
            yield self.rows[start : min(start + PANEL, self.count)]

    def add(self, row: int) -> None:
        self.rows[self.count] = row
        self.count += 1


def group_near(
    vectors: Rows,
    threshold: float,
    spaces: Numbers | None = None,
    apart: Mapping[int, Sequence[int]] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Numbers:
    """Group rows by their cosine similarity.

    Args:
        vectors: [n, dim], each of unit length, or of zeros; the row to keep first.
        threshold: the cosine similarity from which two rows are near, 0 to 1.
        spaces: a number for each row; rows with different numbers are never near. None: all equal.
        apart: for some rows, the numbers of the sets that they are in. Two rows of one set never
            come into one group.
        progress: called with the number of rows that are done.

    Returns:
        For each row the leader of its group; a leader is its own.

    Example:
        group_near(np.array([[1, 0], [1, 0], [0, 1]], np.float32), 0.9)  # array([0, 0, 2])
    """
    grouping = _Grouping(vectors, threshold - ROUNDING, spaces, apart or {})
    for start in range(0, len(vectors), BLOCK):
        grouping.add_block(start)
        progress(min(start + BLOCK, len(vectors)))
    return grouping.leader_of


class _Grouping:
    def __init__(
        self,
        vectors: Rows,
        limit: float,
        spaces: Numbers | None,
        apart: Mapping[int, Sequence[int]],
    ) -> None:
        self._vectors, self._limit = vectors, limit
        several = spaces is not None and len(spaces) > 0 and bool((spaces != spaces[0]).any())
        self._spaces = spaces if several else None
        self._apart = apart
        self._leaders = _Leaders(np.zeros(len(vectors), np.int64))
        self.leader_of: Numbers = np.full(len(vectors), NOT_NEAR, np.int64)

    def add_block(self, start: int) -> None:
        """Give each row of a block its leader."""
        rows = np.arange(start, min(start + BLOCK, len(self._vectors)))
        block = np.asarray(self._vectors[rows])
        best, scores, choices = self._nearest_before(rows, block)
        within = self._scores(rows, block, rows, block)
        own: list[int] = []  # leaders of this block, as positions in it
        for at, row in enumerate(rows.tolist()):
            near = within[at, own] if own else np.empty(0, np.float32)
            if row in self._apart:
                candidates = choices[at] + [
                    (float(near[n]), int(rows[own[n]])) for n in np.nonzero(near >= self._limit)[0]
                ]
                leader = self._choose_apart(row, candidates)
            else:
                leader = int(best[at])
                if len(near) and near.max() > max(float(scores[at]), self._limit - 1e-12):
                    leader = int(rows[own[int(near.argmax())]])
            if leader == NOT_NEAR:
                leader = row
                own.append(at)
                self._leaders.add(row)
            self.leader_of[row] = leader
            if row in self._apart:
                self._leaders.sets.setdefault(leader, set()).update(self._apart[row])

    def _nearest_before(
        self, rows: Numbers, block: Rows
    ) -> tuple[Numbers, Rows, dict[int, list[tuple[float, int]]]]:
        """The nearest leader of the blocks before; of rows kept apart all near leaders."""
        best = np.full(len(rows), NOT_NEAR, np.int64)
        scores = np.full(len(rows), -2.0, np.float32)
        special = [at for at, row in enumerate(rows.tolist()) if row in self._apart]
        choices: dict[int, list[tuple[float, int]]] = {at: [] for at in special}
        for panel in self._leaders.panels():
            near_scores = self._scores(rows, block, panel, np.asarray(self._vectors[panel]))
            top = near_scores.argmax(axis=1)
            top_scores = near_scores[np.arange(len(rows)), top]
            better = (top_scores >= self._limit) & (top_scores > scores)
            best[better], scores[better] = panel[top[better]], top_scores[better]
            for at in special:
                near = np.nonzero(near_scores[at] >= self._limit)[0]
                choices[at] += [(float(near_scores[at, n]), int(panel[n])) for n in near]
        return best, scores, choices

    def _scores(self, rows: Numbers, block: Rows, others: Numbers, panel: Rows) -> Rows:
        scores: Rows = block @ panel.T
        if self._spaces is not None:
            scores[self._spaces[rows][:, None] != self._spaces[others][None, :]] = -2.0
        return scores

    def _choose_apart(self, row: int, candidates: list[tuple[float, int]]) -> int:
        """The nearest leader whose group has no image that this one is kept apart from."""
        own = set(self._apart[row])
        for _, leader in sorted(candidates, key=lambda pair: (-pair[0], pair[1])):
            if not own & self._leaders.sets.get(leader, set()):
                return leader
        return NOT_NEAR


def split_apart(members: Sequence[int], apart: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Split rows that are all alike so that no two rows of one set come together.

    Args:
        members: rows, the one to keep first.
        apart: for some rows, the numbers of the sets that they are in.

    Returns:
        The groups, each in the order of `members`.

    Example:
        split_apart([0, 1, 2], {0: [7], 1: [7]})  # [[0, 2], [1]]
    """
    groups: list[tuple[list[int], set[int]]] = []
    for row in members:
        own = set(apart.get(row, ()))
        for group, sets in groups:
            if not own & sets:
                group.append(row)
                sets |= own
                break
        else:
            groups.append(([row], own))
    return [group for group, _ in groups]
