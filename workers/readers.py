"""Sources being read, each on threads of its own: one that hangs holds up no other.

A step takes a chunk's worth of items from one source. The planner asks for it in one round and
fetches the answer in the same or a later one, so that all else stays on its single thread.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import islice

from clipfleet.workers.sources import Listed, Source, SourceError

LISTING_S = 1.0  # after so long what there is will do
PATIENCE_S = 0.1  # for which a round waits for the steps it began
HANGS_S = 5.0  # a step that takes longer gives its place to another
MOST_STEPS = 32  # at once: each holds a chunk in memory
MOST_HANGING = 256  # threads cannot be killed; so many may be lost to sources that never answer

Open = Callable[[], Source]


@dataclass
class Step:
    """`took` is done when the source has answered."""

    size: int
    began: float = field(default_factory=time.monotonic)
    took: "Future[list[Listed]]" = field(default_factory=Future)

    def age_s(self) -> float:
        return time.monotonic() - self.began


class Reader:
    """One source from a cursor on, which is checked against the ledger's."""

    def __init__(self, open_source: Open, cursor: str, listing_s: float = LISTING_S) -> None:
        self.cursor = cursor
        self._listing_s = listing_s
        self.step: Step | None = None
        self.complained_at = 0.0  # seconds of hanging that were reported
        self._open = open_source
        self._source: Source | None = None
        self._listed: Iterator[Listed] = iter(())

    def begin(self, size: int) -> Step:
        """A daemon, which the end of the process does not wait for."""
        self.step = step = Step(size)
        threading.Thread(target=self._take, args=(step,), name="reader", daemon=True).start()
        return step

    def taken(self) -> list[Listed]:
        """Of the step that is over; or its error."""
        return self.step.took.result() if self.step else []

    def nothing_found(self) -> str:
        return self._source.nothing_found() if self._source else ""

    def _take(self, step: Step) -> None:
        try:
            if self._source is None:
                self._source = self._open()
                self._listed = self._source.stream(self.cursor)
            step.took.set_result(self._some(step.size))
        except BaseException as error:
            step.took.set_exception(error)

    def _some(self, size: int) -> list[Listed]:
        """What came before a source broke off is planned first; then the error comes out. Of a
        slow source a small chunk has to do, or its job's workers would wait for it."""
        taken: list[Listed] = []
        until = time.monotonic() + self._listing_s
        try:
            for one in islice(self._listed, size):
                taken.append(one)
                if time.monotonic() > until:
                    break
        except SourceError as error:
            if not taken:
                raise
            self._listed = _raising(error)
        return taken


class Readers:
    """By job. A reader that is dropped while it hangs is left to its thread.

    Args:
        patience_s: for so long a round waits for the steps it began.
        listing_s: after so long a step ends with what there is.
    """

    def __init__(self, patience_s: float = PATIENCE_S, listing_s: float = LISTING_S) -> None:
        self._patience_s, self._listing_s = patience_s, listing_s
        self._readers: dict[str, Reader] = {}
        self._under_way: list[Step] = []

    def keep(self, jobs: Collection[str]) -> None:
        for job_id in self._readers.keys() - set(jobs):
            self.drop(job_id)

    def drop(self, job_id: str) -> None:
        self._readers.pop(job_id, None)

    def ask(self, job_id: str, cursor: str, size: int, open_source: Open) -> bool:
        """Whether a step is under way; if not, too many others are."""
        reader = self._readers.get(job_id)
        if reader is None or reader.cursor != cursor:
            reader = self._readers[job_id] = Reader(open_source, cursor, self._listing_s)
        if reader.step is None and self._has_room():
            self._under_way.append(reader.begin(size))
        return reader.step is not None

    def wait(self) -> None:
        """A moment, for the steps that have just begun."""
        until = time.monotonic() + self._patience_s
        young = {one.took for one in self._under_way if one.age_s() < self._patience_s}
        wait(young, max(0.0, until - time.monotonic()))

    def answered(self, job_id: str) -> Reader | None:
        """Its reader, when its step is over; the caller puts it back to go on with it."""
        reader = self._readers.get(job_id)
        if reader is None or reader.step is None or not reader.step.took.done():
            return None
        return self._readers.pop(job_id)

    def put_back(self, job_id: str, reader: Reader, cursor: str) -> None:
        reader.cursor, reader.step = cursor, None
        self._readers[job_id] = reader

    def complaint(self, job_id: str) -> str:
        """What is to be said of a source that hangs, every few seconds; else nothing."""
        reader = self._readers.get(job_id)
        age_s = reader.step.age_s() if reader and reader.step else 0.0
        if reader is None or age_s < reader.complained_at + HANGS_S:
            return ""
        reader.complained_at = age_s
        return f"its source has not answered for {age_s:.0f} s"

    def _has_room(self) -> bool:
        self._under_way = [step for step in self._under_way if not step.took.done()]
        hanging = sum(step.age_s() > HANGS_S for step in self._under_way)
        return hanging < MOST_HANGING and len(self._under_way) - hanging < MOST_STEPS


def _raising(error: SourceError) -> Iterator[Listed]:
    raise error
    yield
