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

from clipfleet.common.fetch import Cancellation
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.sources import Listed, Source, SourceError

LISTING_S = 1.0  # after so long what there is will do
PATIENCE_S = 0.1  # for which a round waits for the steps it began
HANGS_S = 5.0  # a step that takes longer gives its place to another
MAX_STEPS = 32  # at once: each holds a chunk in memory
MAX_HANGING = 256  # sources that do not answer, of jobs that go on
OWN_STEPS, OWN_HANGING = 2, 4  # the part of them that one owner may have: half, a quarter
MAX_GIVEN_UP = 1_024  # threads of jobs that are over: of a hung mount or bucket nothing ends them
ESTIMATES = 8  # at once
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0  # of a job whose bucket is away

MANY = "many other jobs' sources are being read, and do not answer"
MANY_OF_OWNER = "many sources of its collection are being read, and do not answer"

Open = Callable[[], Source]


@dataclass
class Step:
    """`took` is done when the source has answered."""

    size: int
    owner: str
    began: float = field(default_factory=time.monotonic)
    took: "Future[list[Listed]]" = field(default_factory=Future)

    def age_s(self) -> float:
        return time.monotonic() - self.began

    def hangs(self) -> bool:
        return self.age_s() > HANGS_S


class Reader:
    """One source from a cursor on, which is checked against the ledger's. `owner`: whose it is."""

    def __init__(
        self, open_source: Open, cursor: str, owner: str, listing_s: float = LISTING_S
    ) -> None:
        self.cursor, self.owner, self._listing_s = cursor, owner, listing_s
        self.step: Step | None = None
        self.complained_at = 0.0  # seconds of hanging that were reported
        self._open, self._cancellation = open_source, Cancellation()
        self._source: Source | None = None
        self._listed: Iterator[Listed] = iter(())

    def begin(self, size: int) -> Step:
        """A daemon, which the end of the process does not wait for."""
        self.step = step = Step(size, self.owner)
        threading.Thread(target=self._take, args=(step,), name="reader", daemon=True).start()
        return step

    def taken(self) -> list[Listed]:
        """Of the step that is over; or its error."""
        return self.step.took.result() if self.step else []

    def nothing_found(self) -> str:
        return self._source.nothing_found() if self._source else ""

    def cancel(self) -> None:
        """Its connections are closed, which ends a thread that waits for the web."""
        self._cancellation.cancel()

    def _take(self, step: Step) -> None:
        try:
            with self._cancellation.scope():
                if self._source is None:
                    self._source = self._open()
                    self._listed = self._source.stream(self.cursor)
                taken = self._some(step.size)
            step.took.set_result(taken)
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


@dataclass
class Rest:
    """A pause in the reading of one job. `until`: by the readers' clock."""

    seconds: float
    until: float


class Readers:
    """By job. A reader that is dropped while it hangs gives its place up at once.

    Args:
        patience_s: for so long a round waits for the steps it began.
        listing_s: after so long a step ends with what there is.
    """

    def __init__(
        self,
        patience_s: float = PATIENCE_S,
        listing_s: float = LISTING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s, self._listing_s, self._clock = patience_s, listing_s, clock
        self._readers: dict[str, Reader] = {}
        self._under_way: list[Step] = []
        self._given_up: list[Step] = []
        self._rests: dict[str, Rest] = {}
        self._lock = threading.Lock()  # of the estimates, which the readers' threads begin
        self._estimates: dict[str, Cancellation] = {}
        self._estimators = FetchPool(ESTIMATES, per_server=1)

    def keep(self, jobs: Collection[str]) -> None:
        """All other jobs are over."""
        for job_id in self._readers.keys() - set(jobs):
            self.drop(job_id)
        with self._lock:
            over = self._estimates.keys() - set(jobs)
            cancelled = [self._estimates.pop(job_id) for job_id in over]
        for estimate in cancelled:
            estimate.cancel()
        for job_id in self._rests.keys() - set(jobs):
            del self._rests[job_id]

    def drop(self, job_id: str) -> None:
        reader = self._readers.pop(job_id, None)
        if reader is None:
            return
        reader.cancel()
        if reader.step and not reader.step.took.done():
            self._given_up.append(reader.step)
            self._under_way = [step for step in self._under_way if step is not reader.step]

    def ask(self, job_id: str, cursor: str, size: int, open_source: Open, owner: str) -> str:
        """Begin a step, if none is under way; or why that cannot be.

        Args:
            owner: has only a part of the places.
        """
        rest = self._rests.get(job_id)
        if rest and self._clock() < rest.until:
            return ""
        reader = self._readers.get(job_id)
        if reader is None or reader.cursor != cursor:
            self.drop(job_id)
            reader = Reader(open_source, cursor, owner, self._listing_s)
            self._readers[job_id] = reader
        if reader.step is None:
            if refusal := self._no_room(owner):
                return refusal
            self._under_way.append(reader.begin(size))
        return ""

    def rest(self, job_id: str) -> None:
        """Its bucket is away: a pause, which is doubled each time until it answers."""
        before = self._rests.get(job_id)
        seconds = min(2 * before.seconds, LONGEST_REST_S) if before else FIRST_REST_S
        self._rests[job_id] = Rest(seconds, self._clock() + seconds)

    def estimate(self, job_id: str, owner: str, count: Callable[[], None]) -> None:
        """Count in the background, once for each job."""
        with self._lock:
            if job_id in self._estimates:
                return
            cancellation = self._estimates[job_id] = Cancellation()

        def run() -> None:
            if not cancellation.is_cancelled:
                with cancellation.scope():
                    count()

        self._estimators.submit(owner, job_id, run)

    def trouble(self) -> str:
        """Why this planner has to be started anew; "" for no reason."""
        self._given_up = [step for step in self._given_up if not step.took.done()]
        hang = len(self._given_up)
        return f"{hang} sources that nobody wants any more hang" if hang >= MAX_GIVEN_UP else ""

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
        self._rests.pop(job_id, None)
        self._readers[job_id] = reader

    def complaint(self, job_id: str) -> str:
        """What is to be said of a source that hangs, every few seconds; else nothing."""
        reader = self._readers.get(job_id)
        age_s = reader.step.age_s() if reader and reader.step else 0.0
        if reader is None or age_s < reader.complained_at + HANGS_S:
            return ""
        reader.complained_at = age_s
        return f"its source has not answered for {age_s:.0f} s"

    def _no_room(self, owner: str) -> str:
        if trouble := self.trouble():
            return trouble
        self._under_way = [step for step in self._under_way if not step.took.done()]
        hanging = [step for step in self._under_way if step.hangs()]
        steps = [step for step in self._under_way if not step.hangs()]
        if len(hanging) >= MAX_HANGING or len(steps) >= MAX_STEPS:
            return MANY
        own_steps = sum(step.owner == owner for step in steps)
        own_hanging = sum(step.owner == owner for step in hanging)
        if own_steps * OWN_STEPS >= MAX_STEPS or own_hanging * OWN_HANGING >= MAX_HANGING:
            return MANY_OF_OWNER
        return ""


def _raising(error: SourceError) -> Iterator[Listed]:
    raise error
    yield
