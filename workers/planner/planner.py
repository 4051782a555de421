"""The planner. Any number of planners may run; each has jobs of its own.

It streams each job's source into chunks, keeps a bounded window of them open, sends workers a nudge
while chunks are pending, and takes apart chunks that keep ending their workers. It looks at a job
when the ledger says that it is due.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.errors import NotFound, StartupError, Unavailable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.ledger import Failure, Ledger, Look, NewJob, OpenChunk, PlanLease, Round
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.logs import OutageLog, configure_logs, log_context
from clipfleet.common.process.metrics import make_registry, serve_metrics
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.queue.broker import CeleryPublisher, Publisher, make_celery
from clipfleet.common.queue.fleet import CARD_S, Fleet, RedisFleet, WorkerCard, serving
from clipfleet.common.queue.messages import IngestNudge, queue_name
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers.metrics import PlannerMetrics
from clipfleet.workers.planner.chunk_size import chunk_size, room_for
from clipfleet.workers.planner.housekeeper import Housekeeper
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.planner.retry_source import Retry
from clipfleet.workers.sources import ScratchUnavailable, Source, SourceError, open_source
from clipfleet.workers.storage.locations import BucketAway, Storage

T = TypeVar("T")
log = logging.getLogger(__name__)

IDLE_S = 0.2
LONGEST_WAIT_S = 2.0  # how long planning may stand still when a part is back
TOP_UP_S = 1.0  # between two looks for nudges that are missing
STUCK_S = 60.0  # without a look at any job
LOOKS = 100  # in one round
OFFERS = 32  # jobs taken in one round: a planner that starts at the same time gets its share
FILL_S = 1.0  # a round goes on with the windows that are not full for so long
NOBODY = "no live worker serves the ingest lane of model"


@dataclass
class PlannableJob:
    """A job that has room for chunks.

    Attributes:
        room: the number of chunks.
        size: the number of images of each.
        is_empty: whether no image was planned so far.
        waiting: what the job says it waits for.
    """

    new: NewJob
    lease: PlanLease
    room: int
    size: int
    is_empty: bool
    waiting: str


class Planner:
    def __init__(
        self,
        name: str,
        ledger: Ledger,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        places: Storage,
        readers: Readers | None = None,
        metrics: PlannerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._ledger, self._fleet = name, ledger, fleet
        self._publisher, self._settings, self._places = publisher, settings, places
        self._readers, self._metrics = readers or Readers(), metrics or PlannerMetrics()
        self._clock = clock
        self._owned: dict[str, NewJob] = {}
        self._hungry: dict[str, PlannableJob] = {}
        self._resting: set[str] = set()  # those whose source was away in this round
        self._again: set[str] = set()  # jobs to look at in the next round, whatever happened
        self._workers: dict[str, list[WorkerCard]] = {}  # of this round, by model
        self._words: dict[str, str] = {}  # of their last workers, likewise
        self._cards: list[WorkerCard] | None = None
        self._new = Counter[str]()  # chunks without a nudge, by model
        self._seen: dict[str, int] = {}  # how many workers the models had in the last round
        self._topped_up_at: dict[str, float] = {}  # by model
        self._announced_at = float("-inf")
        self._alive_at = time.monotonic()

    def tick(self) -> bool:
        """One round: a look at the jobs that are due, and chunks for those with room.

        Returns:
            Whether there is reason for another round at once.
        """
        self._alive_at = time.monotonic()
        self._announce()
        self._see_workers()
        looks, are_all = self._due()
        for look in looks:
            self._alone(look.job_id, partial(self._look_at, look))
            self._again.discard(look.job_id)
        self._metrics.leased.set(len(self._owned))
        self._readers.keep(self._owned)
        planned = self._fill()
        self._nudge_all()
        return planned or not are_all

    def _see_workers(self) -> None:
        """Jobs are due whose model has more or fewer workers than before."""
        self._workers, self._words = {}, {}
        self._cards = self._fleet.alive() if self._owned else None
        models = {new.model for new in self._owned.values()}
        now = {model: len(self._serving(model)) for model in models}
        changed = {model for model in models if now[model] != self._seen.get(model)}
        self._seen |= now
        self._again |= {job for job, new in self._owned.items() if new.model in changed}

    def _serving(self, model: str) -> list[WorkerCard]:
        if self._cards is None:
            self._cards = self._fleet.alive()
        if model not in self._workers:
            self._workers[model] = serving(self._cards, "ingest", model)
        return self._workers[model]

    def _due(self) -> tuple[list[Look], bool]:
        """What is due, and whether that was all."""
        due = set(islice(self._again, LOOKS))
        round_ = self._tend(OFFERS, due)
        looks, offered = list(round_.looks), round_.offered
        later = self._again - due
        self._again = later | {look.job_id for look in looks}  # until that is done
        if offered:
            for job_id in offered:
                self._alone(job_id, partial(self._take, job_id))
            round_ = self._tend(0)
            looks += round_.looks
            self._again |= {look.job_id for look in round_.looks}
        if round_.owned != len(self._owned):
            self._keep(self._ledger.owned(self._name))
        return looks, not later and len(offered) < OFFERS and len(looks) < LOOKS

    def _tend(self, offers: int, due: Collection[str] = ()) -> Round:
        settings = self._settings
        return self._ledger.tend(
            self._name,
            settings.plan_lease_s,
            limit=LOOKS,
            offers=offers,
            max_attempts=settings.max_attempts,
            due=due,
        )

    def _take(self, job_id: str) -> None:
        job = self._ledger.job(job_id)  # first: one of another version is another planner's
        if self._ledger.lease(job_id, self._name, self._settings.plan_lease_s):
            self._owned[job_id] = job.new

    def _keep(self, jobs: Collection[str]) -> None:
        """Drop the jobs that ended or are another planner's by now."""
        for job_id in self._owned.keys() - set(jobs):
            del self._owned[job_id]
            self._hungry.pop(job_id, None)

    def _fill(self) -> bool:
        """Plan chunks for the jobs with room, in turns. Whether there were any."""
        planned, until = False, time.monotonic() + FILL_S
        self._resting.clear()
        while hungry := [one for job, one in self._hungry.items() if job not in self._resting]:
            for one in hungry:
                self._alone(one.new.id, partial(self._ask, one))
            self._readers.wait()
            taken = [self._alone(one.new.id, partial(self._plan, one)) for one in hungry]
            if not planned:
                self._nudge_all()  # a small job does not wait for the windows of large ones
            planned |= any(taken)
            if not any(taken) or time.monotonic() > until:
                break
        return planned

    def _nudge_all(self) -> None:
        for model in {new.model for new in self._owned.values()}:
            self._nudge(model, len(self._serving(model)), self._new[model])
        self._new.clear()

    def _nudge(self, model: str, workers: int, new: int) -> None:
        """Fill the queue up to one nudge for each worker that has a chunk to claim.

        `new` chunks became pending since the last call. Those of before have their nudges, which a
        worker may have taken just now: they are looked at every TOP_UP_S only.
        """
        now = self._clock()
        is_due = now - self._topped_up_at.get(model, float("-inf")) >= TOP_UP_S
        if not workers or not (new or is_due):
            return
        missing = self._ledger.pending(model, workers)
        if missing:
            missing -= self._publisher.waiting(queue_name("ingest", model))
        for _ in range(missing if is_due else min(missing, new)):
            self._publisher.publish(IngestNudge(model=model))
            self._metrics.nudges.inc()
        if is_due:
            self._topped_up_at[model] = now

    def trouble(self) -> str:
        """Why it makes no progress; "" while it does, or waits for Redis."""
        silent = time.monotonic() - self._alive_at
        if silent > STUCK_S:
            return f"no job was looked at for {silent:.0f} s"
        return self._readers.trouble()

    def _announce(self) -> None:
        if time.monotonic() - self._announced_at > CARD_S / 5:
            self._fleet.announce_planner(self._name)
            self._announced_at = time.monotonic()

    def release(self) -> None:
        """Give the jobs to whoever comes next, now."""
        self._ledger.deregister_planner(self._name)

    def _alone(self, job_id: str, do: Callable[[], T]) -> T | None:
        """A job that cannot be tended must not keep the others waiting."""
        self._alive_at = time.monotonic()
        try:
            with log_context(job_id=job_id):
                return do()
        except OtherVersion as error:
            warn_once(f"not planned here: {error.detail}")
            return None
        except BlobsUnavailable as error:
            self._ledger.set_waiting_reason(job_id, error.detail)
            return None
        except Unavailable:
            raise
        except NotFound:  # it was removed just now
            self._keep(self._owned.keys() - {job_id})
            return None
        except Exception:
            log.exception("job %s cannot be planned; going on with the others", job_id)
            return None

    def _look_at(self, look: Look) -> None:
        job_id = look.job_id
        if job_id not in self._owned:  # Redis has forgotten that it was given away
            self._owned[job_id] = self._ledger.job(job_id).new
        new = self._owned[job_id]
        workers = self._serving(new.model)
        waiting = look.waiting
        if not workers:
            waiting = self._nobody(new.model)
        elif waiting.startswith(NOBODY):
            waiting = ""
        if waiting != look.waiting:
            self._ledger.set_waiting_reason(job_id, waiting)
        self._supervise(new, look.troubled)
        size = chunk_size(workers, self._settings.chunk_s, look.rate)
        room = room_for(look.open, look.open_images, len(workers), size)
        self._hungry.pop(job_id, None)
        if look.lease.planned:
            self._readers.drop(job_id)
        elif room > 0:
            is_empty = look.total == 0
            self._hungry[job_id] = PlannableJob(new, look.lease, room, size, is_empty, waiting)

    def _nobody(self, model: str) -> str:
        if model not in self._words:
            self._words[model] = self._fleet.last_exit_reason(model)
        word = self._words[model]
        why = f"; the last one ended itself: {word}" if word else ""
        return f"{NOBODY} {model!r}{why}"

    def _ask(self, hungry: PlannableJob) -> None:
        new, cursor = hungry.new, hungry.lease.cursor
        open_source = partial(self._opened, new)
        refusal = self._readers.ask(new.id, cursor, hungry.size, open_source, new.collection)
        if refusal:
            self._say(hungry, refusal)

    def _say(self, hungry: PlannableJob, waiting: str) -> None:
        if waiting != hungry.waiting:
            self._ledger.set_waiting_reason(hungry.new.id, waiting)
            hungry.waiting = waiting

    def _plan(self, hungry: PlannableJob) -> bool:
        """What was taken from a source is planned, or the source is opened anew at the cursor."""
        job_id, token = hungry.new.id, hungry.lease.token
        reader = self._readers.answered(job_id)
        if reader is None:
            if complaint := self._readers.complaint(job_id):
                self._say(hungry, complaint)
            return False
        try:
            listed = reader.taken()
        except SourceError as error:
            return self._end_plan(hungry, str(error))
        except (BucketAway, BlobsUnavailable, ScratchUnavailable) as error:
            self._say(hungry, error.detail)  # what was taken is listed again
            self._resting.add(job_id)
            self._readers.rest(job_id)
            return False
        except Unavailable:
            raise
        except Exception as error:
            log.exception("job %s: the source cannot be read", job_id)
            name = type(error).__name__  # its text may quote the source
            said = f"the source cannot be read ({name}; the planner's log says more)"
            return self._end_plan(hungry, said)
        if reader.complained_at:
            self._say(hungry, "")
        if not listed:
            return self._end_plan(hungry, reader.nothing_found() if hungry.is_empty else "")
        items, cursor = [one.item for one in listed], listed[-1].cursor
        chunk = self._ledger.plan(job_id, token, items, reader.cursor, cursor)
        if chunk is None:  # the job is over, another planner's, or Redis has forgotten a part
            self._look_again(job_id)
            return True
        self._new[hungry.new.model] += 1
        self._metrics.planned.inc(len(items))
        self._readers.put_back(job_id, reader, cursor)
        hungry.lease, hungry.is_empty = replace(hungry.lease, cursor=cursor), False
        hungry.room -= 1
        if hungry.room <= 0:
            self._hungry.pop(job_id, None)
        return True

    def _end_plan(self, hungry: PlannableJob, error: str) -> bool:
        lease = hungry.lease
        ended = self._ledger.finish_planning(hungry.new.id, lease.token, lease.cursor, error)
        self._look_again(hungry.new.id)
        return ended

    def _look_again(self, job_id: str) -> None:
        self._hungry.pop(job_id, None)
        self._again.add(job_id)

    def _opened(self, new: NewJob) -> Source:
        source = self._open(new)
        count = partial(self._estimate, new.id, source)
        self._readers.estimate(new.id, new.collection, count)
        return source

    def _open(self, new: NewJob) -> Source:
        places = self._places.within(new.grant)
        if new.retry_of:
            return Retry(new.source, self._ledger, places.access)
        return open_source(self._ledger.whole(new.id).source, places, new.id)

    def _estimate(self, job_id: str, source: Source) -> None:
        try:
            self._ledger.estimate(job_id, source.count())
        except Exception as error:
            log.debug("no estimate for job %s: %s", job_id, error)

    def _supervise(self, new: NewJob, troubled: Sequence[OpenChunk]) -> None:
        for chunk in troubled:
            if chunk.attempt >= self._settings.max_attempts:
                self._take_apart(new, chunk)
            elif self._ledger.requeue(new.id, chunk):
                self._new[new.model] += 1
                self._metrics.requeued.inc()

    def _take_apart(self, new: NewJob, chunk: OpenChunk) -> None:
        """Until the item that ends its workers is alone; then that one fails."""
        if chunk.size > 1:
            log.warning("job %s: chunk %s failed too often, taking it apart", new.id, chunk.name)
            if self._ledger.split(new.id, chunk):
                self._new[new.model] += 2
            return
        for item in self._ledger.items(new.id, chunk.name):
            reason = f"quarantined: its worker ended or failed {chunk.attempt} times on it"
            failure = Failure.of(item, "worker", reason, chunk.attempt)
            if self._ledger.quarantine(new.id, chunk, failure):
                self._metrics.failed(failure.stage)


def run(planner: Planner, stopping: threading.Event) -> None:
    """Until told to stop. A part that is away is waited for; a broken job ends alone."""
    pause, outage = IDLE_S, OutageLog(log, "waiting")
    while not stopping.is_set():
        try:
            pause = 0.0 if planner.tick() else IDLE_S
            outage.back()
        except Unavailable as error:
            outage.away(error.detail)
            pause = min(2 * max(pause, IDLE_S), LONGEST_WAIT_S)
        except Exception:
            log.exception("planning failed; going on")
            pause = 1.0
        stopping.wait(pause)
    try:
        planner.release()
    except Unavailable:
        log.warning("Redis does not answer; the leases run out by themselves")


def main() -> None:
    settings = Settings()
    configure_logs(settings.log, "planner")
    begin_checks("planner", [*service_checks(settings), *blob_checks(settings)])
    client = make_redis(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    publisher = CeleryPublisher(make_celery(settings), client)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    blobs, fleet = Blobs(settings.blobs), RedisFleet(client)
    ledger = RedisLedger(client, blobs=blobs)
    places = Storage(settings, blobs, Fetcher(settings.fetch))
    metrics = PlannerMetrics(make_registry())
    planner = Planner(name, ledger, fleet, publisher, settings, places, metrics=metrics)
    try:
        serve_metrics(settings, metrics.registry, planner.trouble)
    except StartupError as error:
        sys.stderr.write(f"clipfleet planner: {error.detail}\n")
        raise SystemExit(os.EX_CONFIG) from error
    unfinished = RedisUnfinished(client)
    keeper = Housekeeper(name, ledger, unfinished, blobs, settings.retention_days)
    threading.Thread(target=keeper.run, args=(stopping,), name="housekeeper", daemon=True).start()
    log.info("planner %s is at work", name)
    run(planner, stopping)
