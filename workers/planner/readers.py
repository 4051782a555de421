"""Reading of sources on threads of their own, so that a source that hangs delays no other job.

A step lists the items of one chunk from one source. The planner begins a step in one round and
takes its result in the same round or a later one. Everything else stays on the planner's thread.
"""

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from clipfleet.common.fetch import Cancellation, FairSlots
from clipfleet.common.shares import Owner
from clipfleet.workers.ingest.fetch_pool import FetchPool
from clipfleet.workers.planner.tracking import Feed, Selection, Tracked
from clipfleet.workers.sources import Source

MAX_LISTING_S = 1.0  # a step ends after this long with the items listed so far
STEP_WAIT_S = 0.1  # how long a round waits for the steps that it began
HANG_AFTER_S = 5.0  # a step that takes longer counts as hanging and frees its slot
# Both limits count twice, for local and for remote sources: no server can hold up a local source.
MAX_STEPS = 32  # running at once: each holds a chunk in memory
MAX_HANGING = 256  # hanging steps of active jobs
MAX_GIVEN_UP = 1_024  # hanging threads of ended jobs: nothing ends a read of a hung mount or bucket
ESTIMATES = 8  # at once
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0  # for a job whose source is unavailable

TOO_MANY = "too many sources of other jobs are being read and do not answer"
TOO_MANY_OF_OWNER = (
    "too many sources of the job's key or collection are being read and do not answer"
)

Open = Callable[[], Source]


@dataclass
class Step:
    """One listing of items from a source.

    Attributes:
        size: the number of items to list.
        owner: the key and the collection that the job belongs to.
        is_local: whether no server of others is asked.
        notes: what the source left out or changed meanwhile, once the result is done.
        began: when the step began, in monotonic seconds.
        result: what was listed; done when the source has answered.
    """

    size: int
    owner: Owner
    is_local: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    result: "Future[Selection]" = field(default_factory=Future)

    def age_s(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.began

    def hangs(self) -> bool:
        """Whether the step takes longer than HANG_AFTER_S."""
        return self.age_s() > HANG_AFTER_S


class Reader:
    """Reads one source from a cursor, one step at a time, on daemon threads.

    Attributes:
        cursor: where the current step began; the planner compares it with the ledger's cursor.
        owner: the key and the collection that the job belongs to.
        is_local: whether no server of others is asked.
        step: the current step, if there is one.
        warned_at_s: the age of the step at the last `hang_warning`; 0 for none.
    """

    def __init__(
        self,
        open_source: Open,
        cursor: str,
        owner: Owner,
        is_local: bool,
        listing_s: float = MAX_LISTING_S,
    ) -> None:
        self.cursor, self.owner, self.is_local = cursor, owner, is_local
        self._listing_s = listing_s
        self.step: Step | None = None
        self.warned_at_s = 0.0
        self._open, self._cancellation = open_source, Cancellation(owner)
        self._source: Source | None = None
        self._feed = Feed()

    def begin(self, size: int) -> Step:
        """Begin a step on a daemon thread, which does not delay the end of the process."""
        self.step = step = Step(size, self.owner, self.is_local)
        self.warned_at_s = 0.0
        threading.Thread(target=self._run_step, args=(step,), name="reader", daemon=True).start()
        return step

    def result(self) -> Selection:
        """What the finished step has listed; raises the step's error."""
        return self.step.result.result() if self.step else Selection([])

    @property
    def notes(self) -> dict[str, int]:
        """What the source left out or changed in the finished step."""
        return self.step.notes if self.step else {}

    def nothing_found(self) -> str:
        """The reason to give when the source has no items."""
        return self._source.nothing_found() if self._source else ""

    def cancel(self) -> None:
        """Close the source's connections, which ends a thread that waits for the web."""
        self._cancellation.cancel()

    def _run_step(self, step: Step) -> None:
        try:
            with self._cancellation.scope():
                if self._source is None:
                    self._source = self._open()
                    self._feed = Feed(self._source.stream(self.cursor))
                try:
                    selection = self._select(self._source, step.size)
                finally:
                    step.notes = self._source.notes.take()
            step.result.set_result(selection)
        except BaseException as error:
            step.result.set_exception(error)

    def _select(self, source: Source, size: int) -> Selection:
        until = time.monotonic() + self._listing_s
        if isinstance(source, Tracked):
            return source.select(self._feed, size, until)
        entries = self._feed.take(size, until)
        return Selection(entries, entries[-1].cursor if entries else "")


@dataclass
class Pause:
    """A pause in the reading of one job.

    Attributes:
        seconds: the length of the pause.
        until: when the pause ends, by the readers' clock.
    """

    seconds: float
    until: float


class Readers:
    """The readers of a planner, by job.

    A reader that is dropped while it hangs frees its slot at once.

    Args:
        patience_s: how long `wait` waits for the steps of a round.
        listing_s: how long a step lists items before it ends with the items so far.
        clock: monotonic seconds, for pauses.
    """

    def __init__(
        self,
        patience_s: float = STEP_WAIT_S,
        listing_s: float = MAX_LISTING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s, self._listing_s, self._clock = patience_s, listing_s, clock
        self._readers: dict[str, Reader] = {}
        self._under_way: list[Step] = []
        self._given_up: list[Step] = []
        self._pauses: dict[str, Pause] = {}
        self._lock = threading.Lock()  # guards the estimates, which the readers' threads begin
        self._estimates: dict[str, Cancellation] = {}
        self._estimators = FetchPool(ESTIMATES, per_server=1)

    def keep(self, jobs: Collection[str]) -> None:
        """Drop the readers, estimates and pauses of all other jobs."""
        for job_id in self._readers.keys() - set(jobs):
            self.drop(job_id)
        with self._lock:
            over = self._estimates.keys() - set(jobs)
            cancelled = [self._estimates.pop(job_id) for job_id in over]
        for estimate in cancelled:
            estimate.cancel()
        for job_id in self._pauses.keys() - set(jobs):
            del self._pauses[job_id]

    def drop(self, job_id: str) -> None:
        """Drop the reader of a job and cancel its step."""
        reader = self._readers.pop(job_id, None)
        if reader is None:
            return
        reader.cancel()
        if reader.step and not reader.step.result.done():
            self._given_up.append(reader.step)
            self._under_way = [step for step in self._under_way if step is not reader.step]

    def begin_step(
        self,
        job_id: str,
        cursor: str,
        size: int,
        open_source: Open,
        owner: Owner,
        *,
        is_local: bool = False,
    ) -> str:
        """Begin a step for a job, unless one is under way or reading is paused.

        Args:
            cursor: where to begin; a reader at another cursor is replaced.
            size: the number of items to list.
            open_source: called on the reader's thread.
            owner: the job's key and collection, which share the slots with others (`FairSlots`).
            is_local: whether the source asks no server of others. Such sources have slots of their
                own.

        Returns:
            The reason why no step can begin now; "" otherwise.
        """
        pause = self._pauses.get(job_id)
        if pause and self._clock() < pause.until:
            return ""
        reader = self._readers.get(job_id)
        if reader is None or reader.cursor != cursor:
            self.drop(job_id)
            reader = Reader(open_source, cursor, owner, is_local, self._listing_s)
            self._readers[job_id] = reader
        if reader.step is None:
            if refusal := self._refusal(owner, is_local):
                return refusal
            self._under_way.append(reader.begin(size))
        return ""

    def pause(self, job_id: str) -> None:
        """Pause reading for a job whose source is unavailable.

        Each pause is twice as long as the one before, until the source answers.
        """
        previous = self._pauses.get(job_id)
        seconds = min(2 * previous.seconds, MAX_PAUSE_S) if previous else MIN_PAUSE_S
        self._pauses[job_id] = Pause(seconds, self._clock() + seconds)

    def estimate(self, job_id: str, owner: Owner, count: Callable[[], None]) -> None:
        """Run `count` in the background, once for each job."""
        with self._lock:
            if job_id in self._estimates:
                return
            cancellation = self._estimates[job_id] = Cancellation(owner)

        def run() -> None:
            if not cancellation.is_cancelled:
                with cancellation.scope():
                    count()

        self._estimators.submit(owner, job_id, run)

    def trouble(self) -> str:
        """The reason why this planner must be restarted; "" for none."""
        self._given_up = [step for step in self._given_up if not step.result.done()]
        count = len(self._given_up)
        return f"{count} sources of ended jobs hang" if count >= MAX_GIVEN_UP else ""

    def wait(self) -> None:
        """Wait up to `patience_s` for steps started in this round."""
        until = time.monotonic() + self._patience_s
        results = {step.result for step in self._under_way if step.age_s() < self._patience_s}
        wait(results, max(0.0, until - time.monotonic()))

    def are_reading(self) -> bool:
        """Whether a step is under way that may end at any moment."""
        return any(not step.result.done() and not step.hangs() for step in self._under_way)

    def take_finished(self, job_id: str) -> Reader | None:
        """Take the reader of a job whose step is finished; None when no step is finished.

        The caller returns the reader with `put_back` to continue.
        """
        reader = self._readers.get(job_id)
        if reader is None or reader.step is None or not reader.step.result.done():
            return None
        return self._readers.pop(job_id)

    def put_back(self, job_id: str, reader: Reader, cursor: str) -> None:
        """Return a reader whose result was planned; the next step begins at `cursor`."""
        reader.cursor, reader.step = cursor, None
        self._pauses.pop(job_id, None)
        self._readers[job_id] = reader

    def hang_warning(self, job_id: str) -> str:
        """A warning about a source that hangs, once every HANG_AFTER_S; "" otherwise."""
        reader = self._readers.get(job_id)
        age_s = reader.step.age_s() if reader and reader.step else 0.0
        if reader is None or age_s < reader.warned_at_s + HANG_AFTER_S:
            return ""
        reader.warned_at_s = age_s
        return f"the source has not answered for {age_s:.0f} s"

    def _refusal(self, owner: Owner, is_local: bool) -> str:
        if trouble := self.trouble():
            return trouble
        self._under_way = [step for step in self._under_way if not step.result.done()]
        alike = [step for step in self._under_way if step.is_local == is_local]
        for limit, hang in ((MAX_STEPS, False), (MAX_HANGING, True)):
            slots = FairSlots(limit, (step.owner for step in alike if step.hangs() == hang))
            if not slots.may_take(owner):
                return TOO_MANY_OF_OWNER if slots.free > 0 else TOO_MANY
        return ""
