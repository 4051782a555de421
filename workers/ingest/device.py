"""Turns at the device of a worker, fair between jobs, with memory for the pixels of a batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.shares import Owner

TURNS = 2  # at once: the device has the next batch before one ends, which is 10 % more on a CPU


class PixelBuffer:
    """Memory for the pixels of one batch, which is used again and again.

    Tens of megabytes that are allocated for each batch cost more than the copying, since the kernel
    clears them.
    """

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)

    def stacked(self, images: Sequence[Pixels]) -> NDArray[np.uint8]:
        """The images as one array [n, height, width, 3], which is valid until the next call."""
        if len(self._memory) < len(images) or self._memory.shape[1:] != images[0].shape:
            self._memory = np.empty((len(images), *images[0].shape), np.uint8)
        size = images[0].size
        target = self._memory.data.cast("B")
        # Not `np.stack`, which gives the interpreter's lock away and waits for it at each image.
        for number, image in enumerate(images):
            pixels = np.ascontiguousarray(image).data.cast("B")
            target[number * size : (number + 1) * size] = pixels
        return self._memory[: len(images)]


class Device:
    """A few turns at a device, for API keys in turn and for the jobs of each key in turn.

    A turn goes next to whoever waits and had the last one longest ago. The number of jobs of a key
    does not matter, nor does the number of threads that wait for a job.

    Args:
        turns: the number of turns at once.
    """

    def __init__(self, turns: int = TURNS) -> None:
        self._changed = Condition()
        self._free = [PixelBuffer() for _ in range(turns)]
        self._waiting: Counter[Owner] = Counter()
        self._last_turns: dict[Owner, int] = {}
        self._turns = 0

    @contextmanager
    def turn(self, owner: Owner) -> Iterator[PixelBuffer]:
        """Wait for a turn and hold it during the `with` block; yields memory for the batch."""
        with self._changed:
            self._waiting[owner] += 1
            self._changed.wait_for(lambda: self._free and self._next() == owner)
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]
            buffer = self._free.pop()
            self._turns += 1
            self._last_turns[owner.group] = self._last_turns[owner] = self._turns
            self._forget()
            self._changed.notify_all()  # another turn may be free
        try:
            yield buffer
        finally:
            with self._changed:
                self._free.append(buffer)
                self._changed.notify_all()

    def _next(self) -> Owner:
        last = self._last_turns
        return min(self._waiting, key=lambda owner: (last.get(owner.group, 0), last.get(owner, 0)))

    def _forget(self) -> None:
        """Drop the turns of keys and jobs without waiting threads, once there are many."""
        if len(self._last_turns) > 100:
            kept = self._waiting.keys() | {owner.group for owner in self._waiting}
            self._last_turns = {
                owner: turn for owner, turn in self._last_turns.items() if owner in kept
            }
