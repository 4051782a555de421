"""The planner: `python -m clipfleet.workers.planner`. Any number may run; a lease per job decides.

It streams each job's source into chunks, keeps a bounded window of them open, sends workers a nudge
while chunks are pending, and takes apart chunks that keep ending their workers.
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.broker import CeleryPublisher, Publisher, make_celery
from clipfleet.common.checks import blob_checks, service_checks
from clipfleet.common.connection import make_redis
from clipfleet.common.errors import NotFound, StartupError, Unavailable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.fleet import CARD_S, Fleet, RedisFleet, WorkerCard, serving
from clipfleet.common.ledger import Failure, Job, Ledger, OpenChunk, PlanLease
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.logs import OutageLog, about, configure_logs
from clipfleet.common.messages import IngestNudge, queue_name
from clipfleet.common.metrics import make_registry, serve_metrics
from clipfleet.common.settings import Settings
from clipfleet.common.startup import begin_checks
from clipfleet.common.unfinished import RedisUnfinished
from clipfleet.common.versions import OtherVersion, say_once
from clipfleet.workers.chunk_size import chunk_size, has_room
from clipfleet.workers.housekeeper import Housekeeper
from clipfleet.workers.metrics import PlannerMetrics
from clipfleet.workers.places import BucketAway, Places
from clipfleet.workers.readers import Readers
from clipfleet.workers.retry_source import Retry
from clipfleet.workers.sources import Source, SourceError, open_source

T = TypeVar("T")
log = logging.getLogger(__name__)

IDLE_S = 0.2
LONGEST_WAIT_S = 2.0  # how long planning may stand still when a part is back
TOP_UP_S = 1.0  # between two looks for nudges that are missing
STUCK_S = 60.0  # without a look at any job
NOBODY = "no live worker serves the ingest lane of model"


@dataclass(frozen=True)
class Hungry:
    """A job that has room for a chunk."""

    job: Job
    lease: PlanLease


class Planner:
    def __init__(
        self,
        name: str,
        ledger: Ledger,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        places: Places,
        readers: Readers | None = None,
        metrics: PlannerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._ledger, self._fleet = name, ledger, fleet
        self._publisher, self._settings, self._places = publisher, settings, places
        self._readers, self._metrics = readers or Readers(), metrics or PlannerMetrics()
        self._clock = clock
        self._topped_up_at: dict[str, float] = {}  # by model
        self._announced_at = float("-inf")
        self._alive_at = time.monotonic()

    def tick(self) -> bool:
        """One round over all jobs, a chunk planned for each at most. Whether there was any."""
        self._alive_at = time.monotonic()
        self._announce()
        active = self._ledger.active()
        self._readers.keep(active)
        cards = self._fleet.alive() if active else []
        self._leased, self._new = 0, Counter[str]()
        tended = [self._alone(job_id, partial(self._tend, job_id, cards)) for job_id in active]
        self._metrics.leased.set(self._leased)
        self._readers.wait()
        hungry = [one for one in tended if one]
        planned = [self._alone(one.job.id, partial(self._plan, one)) for one in hungry]
        for model, new in self._new.items():
            self._nudge(model, len(serving(cards, "ingest", model)), new)
        return any(planned)

    def _nudge(self, model: str, workers: int, new: int) -> None:
        """Fill the queue up to one nudge for each worker that has a chunk to claim.

        `new` chunks became pending in this round. The chunks of earlier rounds have their nudges,
        which a worker may have taken just now: they are looked at every TOP_UP_S only.
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
        for job_id in self._ledger.active():
            self._ledger.lease(job_id, self._name, 0)

    def _alone(self, job_id: str, do: Callable[[], T]) -> T | None:
        """A job that cannot be tended must not keep the others waiting."""
        self._alive_at = time.monotonic()
        try:
            with about(job_id=job_id):
                return do()
        except OtherVersion as error:
            say_once(f"not planned here: {error.detail}")
            return None
        except Unavailable:
            raise
        except NotFound:  # it was removed just now
            return None
        except Exception:
            log.exception("job %s cannot be planned; going on with the others", job_id)
            return None

    def _tend(self, job_id: str, cards: list[WorkerCard]) -> Hungry | None:
        job = self._ledger.job(job_id)  # first: one of another version is another planner's
        lease = self._ledger.lease(job_id, self._name, self._settings.plan_lease_s)
        if lease is None:
            self._readers.drop(job_id)
            return None
        self._leased += 1
        self._new[job.new.model] += 0
        workers = serving(cards, "ingest", job.new.model)
        if not workers:
            self._ledger.note(job_id, self._nobody(job.new.model))
        elif job.waiting.startswith(NOBODY):
            self._ledger.note(job_id, "")
        chunks = self._ledger.open_chunks(job_id)
        self._supervise(job, chunks)
        size = chunk_size(workers, self._settings.chunk_s, job.rate)
        if lease.planned or not has_room(chunks, len(workers), size):
            return None
        owner = job.new.collection
        open_source = partial(self._opened, job)
        if refusal := self._readers.ask(job_id, lease.cursor, size, open_source, owner):
            self._ledger.note(job_id, refusal)
        return Hungry(job, lease)

    def _nobody(self, model: str) -> str:
        word = self._fleet.last_word(model)
        why = f"; the last one ended itself: {word}" if word else ""
        return f"{NOBODY} {model!r}{why}"

    def _plan(self, hungry: Hungry) -> bool:
        """What was taken from a source is planned, or the source is opened anew at the cursor."""
        job, lease = hungry.job, hungry.lease
        reader = self._readers.answered(job.id)
        if reader is None:
            if complaint := self._readers.complaint(job.id):
                self._ledger.note(job.id, complaint)
            return False
        try:
            listed = reader.taken()
        except SourceError as error:
            return self._ledger.end_plan(job.id, lease.token, reader.cursor, str(error))
        except (BucketAway, BlobsUnavailable) as error:  # what was taken is listed again
            self._ledger.note(job.id, error.detail)
            self._readers.rest(job.id)
            return False
        except Unavailable:
            raise
        except Exception as error:
            log.exception("job %s: the source cannot be read", job.id)
            name = type(error).__name__  # its text may quote the source
            said = f"the source cannot be read ({name}; the planner's log says more)"
            return self._ledger.end_plan(job.id, lease.token, reader.cursor, said)
        if reader.complained_at:
            self._ledger.note(job.id, "")
        if not listed:
            nothing = "" if job.total else reader.nothing_found()
            return self._ledger.end_plan(job.id, lease.token, reader.cursor, nothing)
        seconds = self._settings.plan_lease_s
        again = self._ledger.lease(job.id, self._name, seconds)  # a round may take long
        if again is None or again.cursor != reader.cursor:
            return True
        items = [one.item for one in listed]
        chunk = self._ledger.plan(job.id, again.token, items, reader.cursor, listed[-1].cursor)
        if chunk is not None:
            self._new[job.new.model] += 1
            self._metrics.planned.inc(len(items))
            self._readers.put_back(job.id, reader, listed[-1].cursor)
        return True

    def _opened(self, job: Job) -> Source:
        source = self._open(job)
        count = partial(self._estimate, job.id, source)
        self._readers.estimate(job.id, job.new.collection, count)
        return source

    def _open(self, job: Job) -> Source:
        places = self._places.within(job.new.grant)
        if job.new.retry_of:
            return Retry(job.new.source, self._ledger, places.access)
        return open_source(job.new.source, places, job.id)

    def _estimate(self, job_id: str, source: Source) -> None:
        try:
            self._ledger.estimate(job_id, source.count())
        except Exception as error:
            log.debug("no estimate for job %s: %s", job_id, error)

    def _supervise(self, job: Job, chunks: list[OpenChunk]) -> None:
        for chunk in chunks:
            if chunk.leased and not chunk.expired:
                continue
            if chunk.attempt >= self._settings.max_attempts:
                self._take_apart(job, chunk)
            elif chunk.expired and self._ledger.requeue(job.id, chunk):
                self._new[job.new.model] += 1
                self._metrics.requeued.inc()

    def _take_apart(self, job: Job, chunk: OpenChunk) -> None:
        """Until the item that ends its workers is alone; then that one fails."""
        if chunk.size > 1:
            log.warning("job %s: chunk %s failed too often, taking it apart", job.id, chunk.name)
            self._ledger.split(job.id, chunk)
            return
        for item in self._ledger.items(job.id, chunk.name):
            reason = f"quarantined: its worker ended or failed {chunk.attempt} times on it"
            failure = Failure.of(item, "worker", reason, chunk.attempt)
            if self._ledger.bury(job.id, chunk, failure):
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
    ledger, blobs, fleet = RedisLedger(client), Blobs(settings.blobs), RedisFleet(client)
    places = Places(settings, blobs, Fetcher(settings.fetch))
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


if __name__ == "__main__":
    main()
