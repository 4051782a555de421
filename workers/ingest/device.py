"""Turns at the device of a worker, fair between jobs, with memory for the pixels of a batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.imaging.preprocess import Pixels

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
    """A few turns at a device. A turn goes next to the waiting job whose last one is longest ago.

    The number of threads that wait for a job does not matter.

    Args:
        turns: the number of turns at once.
    """

    def __init__(self, turns: int = TURNS) -> None:
        self._changed = Condition()
        self._free = [PixelBuffer() for _ in range(turns)]
        self._waiting: Counter[str] = Counter()
        self._last_turns: dict[str, int] = {}
        self._turns = 0

    @contextmanager
    def turn(self, job: str) -> Iterator[PixelBuffer]:
        """Wait for a turn and hold it during the `with` block; yields memory for the batch."""
        with self._changed:
            self._waiting[job] += 1
            self._changed.wait_for(lambda: self._free and self._next() == job)
            self._waiting[job] -= 1
            if not self._waiting[job]:
                del self._waiting[job]
            buffer = self._free.pop()
            self._turns += 1
            self._last_turns[job] = self._turns
            self._forget()
            self._changed.notify_all()  # another turn may be free
        try:
            yield buffer
        finally:
            with self._changed:
                self._free.append(buffer)
                self._changed.notify_all()

    def _next(self) -> str:
        return min(self._waiting, key=lambda job: self._last_turns.get(job, 0))

    def _forget(self) -> None:
        """Drop the turns of jobs without waiting threads, once there are many."""
        if len(self._last_turns) > 100:
            self._last_turns = {
                job: turn for job, turn in self._last_turns.items() if job in self._waiting
            }
