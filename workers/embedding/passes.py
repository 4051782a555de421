"""Splits the items of a call into forward passes, on a CPU one per core at a time."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clipfleet.common.process.machine import cores

T = TypeVar("T")


def cpu_passes() -> int:
    """The number of passes at once on a CPU: its cores, or OMP_NUM_THREADS."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdecimal() and int(limit) else cores()


class Passes:
    """Forward passes of a few items each, several of them at once.

    On a CPU each pass has one thread. The threads of one pass would spin at every layer until all
    of them are done. On cores that other processes use as well, that costs several times the work
    (docs/decisions/0011).

    Args:
        size: the number of items in a pass at most.
        parallel: the number of passes at once.

    Attributes:
        batch: the number of items in one call that keeps all passes busy.
    """

    def __init__(self, size: int, parallel: int = 1) -> None:
        self.size, self._parallel = size, parallel
        self.batch = size * (2 * parallel if parallel > 1 else 1)
        if parallel > 1:
            self._threads = ThreadPoolExecutor(parallel, "model")

    def run(self, embed: Callable[[Any], T], items: Any, size: int = 0) -> list[T]:
        """Call `embed` with each pass, and return its results in the order of the items.

        Args:
            size: the number of items in a pass at most; 0: that of the constructor.
        """
        size = min(size or self.size, -(-len(items) // self._parallel)) or 1
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        if self._parallel == 1 or len(parts) < 2:
            return [embed(part) for part in parts]
        return list(self._threads.map(embed, parts))
