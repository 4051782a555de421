"""The planner: it turns each job's source into chunks for the workers.

Any number of planners may run; each job is leased by one of them. A planner streams a job's source
into chunks, keeps a bounded window of chunks open, sends workers a nudge while chunks are pending,
and splits chunks whose workers keep failing. It checks a job when the ledger reports that the job
is due.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.errors import NotFound, StartupError, Unavailable
from clipfleet.common.fetch import Fetcher, LookUpsBusy
from clipfleet.common.fetch.post import Poster
from clipfleet.common.ledger import Failure, Job, Ledger, Look, NewJob, OpenChunk, PlanLease, Round
from clipfleet.common.ledger.catalogue import RedisCatalogue, collection_names
from clipfleet.common.ledger.migrations import is_migration
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.stored_images import is_over_stored, shape_of
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.common.ledger.unreadable import RedisUnreadable
from clipfleet.common.ledger.webhooks import RedisWebhooks
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.logs import OutageLog, configure_logs, log_context
from clipfleet.common.process.metrics import make_registry, serve_metrics
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.queue.broker import CeleryPublisher, Publisher, make_celery
from clipfleet.common.queue.fleet import CARD_S, Fleet, RedisFleet, WorkerCard, serving
from clipfleet.common.queue.messages import IngestNudge, queue_name
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.common.shares import Owner
from clipfleet.common.store import StoreUnavailable
from clipfleet.common.store.milvus import make_store
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers.metrics import PlannerMetrics
from clipfleet.workers.planner.chunk_size import chunk_size, room_for
from clipfleet.workers.planner.generation_source import CopySource, Generations
from clipfleet.workers.planner.housekeeper import Housekeeper
from clipfleet.workers.planner.migrations import Migrator
from clipfleet.workers.planner.mirror import Closings
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.planner.retry_source import Retry
from clipfleet.workers.planner.stored_source import StoredImages, without_last
from clipfleet.workers.planner.tracking import Selection, TrackingParts, tracked
from clipfleet.workers.planner.webhooks import STOP_S, WebhookSender
from clipfleet.workers.sources import (
    ScratchUnavailable,
    Source,
    SourceError,
    is_local,
    open_source,
)
from clipfleet.workers.storage.locations import BucketAway, Storage

T = TypeVar("T")
log = logging.getLogger(__name__)

IDLE_S = 0.2
READING_S = 0.02  # between two rounds while a source is being listed
MAX_WAIT_S = 2.0  # longest pause between two tries while a service is unavailable
TOP_UP_INTERVAL_S = 1.0  # between two checks for missing nudges
STUCK_AFTER_S = 60.0  # without work on any job
MAX_LOOKS = 100  # jobs checked in one round
MAX_OFFERS = 32  # jobs leased in one round: a planner that starts at the same time gets its share
FILL_TIME_S = 1.0  # a round keeps filling windows that are not full for this long
NO_WORKER = "no live worker serves the ingest lane of model"


@dataclass
class PlannableJob:
    """A job whose window of open chunks is not full.

    Attributes:
        new: what the caller asked for.
        owner: whom the place of its source is for.
        lease: the planner's lease of the job, with the source's cursor.
        room: the number of chunks that may be planned.
        size: the number of images in each chunk.
        is_empty: whether no image has been planned so far.
        waiting: the reason for waiting that the ledger shows for the job; "" for none.
    """

    new: NewJob
    owner: Owner
    lease: PlanLease
    room: int
    size: int
    is_empty: bool
    waiting: str


class Planner:
    """Plans the jobs that it leases, one round (`tick`) at a time, on the caller's thread.

    Args:
        name: the name that the planner's leases carry; unique among running planners.
        storage: opens sources.
        readers: read sources on threads of their own.
        clock: monotonic seconds.
        tracking: keeps snapshots of sources, for mirrors. Without it, mirrors wait for a planner
            that has it.
        closings: end mirrors.
        generations: reads the images of migrations; None: this planner has no store.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        storage: Storage,
        readers: Readers | None = None,
        metrics: PlannerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        tracking: TrackingParts | None = None,
        closings: Closings | None = None,
        generations: Generations | None = None,
    ) -> None:
        self._name, self._ledger, self._fleet = name, ledger, fleet
        self._tracking, self._closings = tracking, closings or Closings(tracking)
        self._generations = generations
        self._publisher, self._settings, self._storage = publisher, settings, storage
        self._readers, self._metrics = readers or Readers(), metrics or PlannerMetrics()
        self._clock = clock
        self._owned: dict[str, Job] = {}
        self._plannable: dict[str, PlannableJob] = {}
        self._paused: set[str] = set()  # jobs whose source was unavailable in this round
        self._closing: set[str] = set()  # mirrors in their last step, checked in each round
        self._recheck: set[str] = set()  # jobs to check in the next round, whatever happens
        self._workers: dict[str, list[WorkerCard]] = {}  # in this round, by model
        self._exit_reasons: dict[str, str] = {}  # of the last workers in this round, by model
        self._cards: list[WorkerCard] | None = None
        self._new_chunks = Counter[str]()  # chunks without a nudge, by model
        self._worker_counts: dict[str, int] = {}  # in the last round, by model
        self._topped_up_at: dict[str, float] = {}  # by model
        self._announced_at = float("-inf")
        self._alive_at = time.monotonic()

    def tick(self) -> bool:
        """Run one round: check the jobs that are due and plan chunks for jobs with room.

        Returns:
            Whether another round should follow at once.

        Raises:
            Unavailable: the ledger, the fleet or the broker does not answer.
        """
        self._alive_at = time.monotonic()
        self._announce()
        self._refresh_workers()
        self._closing &= self._owned.keys()
        self._recheck |= {id_ for id_ in self._closing if not self._closings.is_under_way(id_)}
        looks, are_all = self._due_jobs()
        for look in looks:
            self._guarded(look.job_id, partial(self._check_job, look))
            self._recheck.discard(look.job_id)
        self._metrics.leased.set(len(self._owned))
        self._readers.keep(self._owned)
        planned = self._fill()
        self._nudge_all()
        return planned or not are_all

    def pause_s(self) -> float:
        """Seconds until the next round, when it need not follow at once."""
        return READING_S if self._readers.are_reading() else IDLE_S

    def _refresh_workers(self) -> None:
        """Mark jobs as due whose model has more or fewer workers than in the last round."""
        self._workers, self._exit_reasons = {}, {}
        self._cards = self._fleet.alive() if self._owned else None
        models = {job.new.model for job in self._owned.values()}
        counts = {model: len(self._serving(model)) for model in models}
        changed = {model for model in models if counts[model] != self._worker_counts.get(model)}
        self._worker_counts |= counts
        self._recheck |= {job_id for job_id, job in self._owned.items() if job.new.model in changed}

    def _serving(self, model: str) -> list[WorkerCard]:
        if self._cards is None:
            self._cards = self._fleet.alive()
        if model not in self._workers:
            self._workers[model] = serving(self._cards, "ingest", model)
        return self._workers[model]

    def _due_jobs(self) -> tuple[list[Look], bool]:
        """Take the jobs that are due, and return whether those were all of them."""
        due = set(islice(self._recheck, MAX_LOOKS))
        round_ = self._advance(MAX_OFFERS, due)
        looks, offered = list(round_.looks), round_.offered
        later = self._recheck - due
        self._recheck = later | {look.job_id for look in looks}  # until they are checked
        if offered:
            for job_id in offered:
                self._guarded(job_id, partial(self._take_over, job_id))
            round_ = self._advance(0)
            looks += round_.looks
            self._recheck |= {look.job_id for look in round_.looks}
        if round_.owned != len(self._owned):
            self._keep_only(self._ledger.owned(self._name))
        return looks, not later and len(offered) < MAX_OFFERS and len(looks) < MAX_LOOKS

    def _advance(self, offers: int, due: Collection[str] = ()) -> Round:
        settings = self._settings
        return self._ledger.tend(
            self._name,
            settings.plan_lease_s,
            limit=MAX_LOOKS,
            offers=offers,
            max_attempts=settings.max_attempts,
            due=due,
        )

    def _take_over(self, job_id: str) -> None:
        job = self._ledger.job(job_id)  # before the lease: OtherVersion leaves it to other planners
        if self._ledger.lease(job_id, self._name, self._settings.plan_lease_s):
            self._owned[job_id] = job

    def _keep_only(self, jobs: Collection[str]) -> None:
        """Drop all other jobs: they ended, or another planner leases them now."""
        for job_id in self._owned.keys() - set(jobs):
            del self._owned[job_id]
            self._plannable.pop(job_id, None)

    def _fill(self) -> bool:
        """Plan chunks for the jobs with room, in turns, and return whether any was planned."""
        planned, until = False, time.monotonic() + FILL_TIME_S
        self._paused.clear()
        while jobs := [job for key, job in self._plannable.items() if key not in self._paused]:
            for job in jobs:
                self._guarded(job.new.id, partial(self._begin_step, job))
            self._readers.wait()
            results = [self._guarded(job.new.id, partial(self._plan, job)) for job in jobs]
            if not planned:
                self._nudge_all()  # a small job does not wait for the windows of large ones
            planned |= any(results)
            if not any(results) or time.monotonic() > until:
                break
        return planned

    def _nudge_all(self) -> None:
        for model in {job.new.model for job in self._owned.values()}:
            self._nudge(model, len(self._serving(model)), self._new_chunks[model])
        self._new_chunks.clear()

    def _nudge(self, model: str, workers: int, new: int) -> None:
        """Fill the queue up to one nudge for each worker that has a chunk to claim.

        Chunks that were pending before the last call have nudges already, which a worker may have
        taken just now. They are checked every TOP_UP_INTERVAL_S only.

        Args:
            new: the number of chunks that became pending since the last call.
        """
        now = self._clock()
        is_due = now - self._topped_up_at.get(model, float("-inf")) >= TOP_UP_INTERVAL_S
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
        """The reason why this planner makes no progress.

        "" while it makes progress or waits for Redis.
        """
        silent = time.monotonic() - self._alive_at
        if silent > STUCK_AFTER_S:
            return f"no job was checked for {silent:.0f} s"
        return self._readers.trouble()

    def _announce(self) -> None:
        if time.monotonic() - self._announced_at > CARD_S / 5:
            self._fleet.announce_planner(self._name)
            self._announced_at = time.monotonic()

    def release(self) -> None:
        """Give up the leases at once, so that other planners can take the jobs."""
        self._ledger.deregister_planner(self._name)

    def _guarded(self, job_id: str, do: Callable[[], T]) -> T | None:
        """Run `do` for one job; an error that concerns this job alone does not stop the others.

        Raises:
            Unavailable: the ledger, the fleet or the broker does not answer.
        """
        self._alive_at = time.monotonic()
        try:
            with log_context(job_id=job_id):
                return do()
        except OtherVersion as error:
            warn_once(f"this planner does not plan the job: {error.detail}")
            return None
        except BlobsUnavailable as error:
            self._ledger.set_waiting_reason(job_id, error.detail)
            return None
        except Unavailable:
            raise
        except NotFound:  # the job was removed just now
            self._keep_only(self._owned.keys() - {job_id})
            return None
        except Exception:
            log.exception("job %s cannot be planned; the planner continues with other jobs", job_id)
            return None

    def _check_job(self, look: Look) -> None:
        job_id = look.job_id
        if job_id not in self._owned:  # Redis lost the record that it was released
            self._owned[job_id] = self._ledger.job(job_id)
        job = self._owned[job_id]
        new, owner = job.new, Owner(job.key, job.new.collection)
        workers = self._serving(new.model)
        waiting = look.waiting
        if not workers:
            waiting = self._no_worker_reason(new.model)
        elif waiting.startswith(NO_WORKER):
            waiting = ""
        if waiting != look.waiting:
            self._ledger.set_waiting_reason(job_id, waiting)
        self._retry_or_split(new, look.troubled)
        size = self._chunk_size(new, workers, look)
        room = room_for(look.open, look.open_images, len(workers), size)
        self._plannable.pop(job_id, None)
        if look.lease.planned:
            self._readers.drop(job_id)
            if new.mirror and not look.open:
                self._closings.begin(self._ledger.job(job_id), look.lease.token)
                self._closing.add(job_id)
        elif room > 0:
            is_empty = look.total == 0
            self._plannable[job_id] = PlannableJob(
                new, owner, look.lease, room, size, is_empty, waiting
            )

    def _chunk_size(self, new: NewJob, workers: Sequence[WorkerCard], look: Look) -> int:
        if is_over_stored(new.source):
            return shape_of(new.source).rows
        return chunk_size(workers, self._settings.chunk_s, look.rate, look.total)

    def _no_worker_reason(self, model: str) -> str:
        if model not in self._exit_reasons:
            self._exit_reasons[model] = self._fleet.last_exit_reason(model)
        exit_reason = self._exit_reasons[model]
        suffix = f"; the last worker exited: {exit_reason}" if exit_reason else ""
        return f"{NO_WORKER} {model!r}{suffix}"

    def _begin_step(self, job: PlannableJob) -> None:
        new, cursor = job.new, job.lease.cursor
        open_source = partial(self._open_and_estimate, new, job.owner)
        refusal = self._readers.begin_step(
            new.id, cursor, job.size, open_source, job.owner, is_local=is_local(new.source)
        )
        if refusal:
            self._set_waiting_reason(job, refusal)

    def _set_waiting_reason(self, job: PlannableJob, waiting: str) -> None:
        if waiting != job.waiting:
            self._ledger.set_waiting_reason(job.new.id, waiting)
            job.waiting = waiting

    def _plan(self, job: PlannableJob) -> bool:
        """Plan a chunk from the entries that the source's reader has listed.

        Without a chunk the source is reopened at the ledger's cursor in a later round.

        Returns:
            Whether the job made progress.
        """
        job_id, token = job.new.id, job.lease.token
        reader = self._readers.take_finished(job_id)
        if reader is None:
            if hang_warning := self._readers.hang_warning(job_id):
                self._set_waiting_reason(job, hang_warning)
            return False
        try:
            selection = reader.result()
        except SourceError as error:
            return self._end_plan(job, str(error), reader.notes)
        except (
            BucketAway, BlobsUnavailable, LookUpsBusy, ScratchUnavailable, StoreUnavailable,
        ) as error:  # fmt: skip
            self._set_waiting_reason(job, error.detail)  # the entries are listed again later
            self._paused.add(job_id)
            self._readers.pause(job_id)
            return False
        except Unavailable:
            raise
        except Exception as error:
            log.exception("job %s: the source cannot be read", job_id)
            name = type(error).__name__  # the error's text may quote the source
            reason = f"the source cannot be read ({name}; see the planner's log)"
            return self._end_plan(job, reason)
        if reader.warned_at_s:
            self._set_waiting_reason(job, "")
        if selection.is_end:
            nothing_found = reader.nothing_found() if job.is_empty else ""
            return self._end_plan(job, nothing_found, reader.notes)
        is_cut = False
        if is_over_stored(job.new.source):
            allowed = self._before_last(job, selection)
            if allowed is None:
                return False
            selection, is_cut = allowed, allowed is not selection
        items, cursor = [entry.item for entry in selection.planned], selection.cursor
        notes = {**reader.notes, **selection.notes}
        chunk = self._ledger.plan(
            job_id, token, items, reader.cursor, cursor, notes, selection.skipped
        )
        if chunk is None:  # the job ended, has another planner, or Redis lost a part of it
            self._recheck_next_round(job_id)
            return True
        self._new_chunks[job.new.model] += bool(items)
        self._metrics.planned.inc(len(items))
        if not is_cut:
            self._readers.put_back(job_id, reader, cursor)
        job.lease, job.is_empty = replace(job.lease, cursor=cursor), False
        job.room -= bool(items)
        if job.room <= 0:
            self._plannable.pop(job_id, None)
        return True

    def _before_last(self, job: PlannableJob, selection: Selection) -> Selection | None:
        """What may be planned now: the last image of a job only while no other chunk is open.

        Returns:
            None to wait for the other chunks; the ledger says when one of them is marked.
        """
        allowed = without_last(selection)
        if allowed is None and not self._ledger.open_chunks(job.new.id):
            return selection
        if allowed is None:
            self._plannable.pop(job.new.id, None)
        return allowed

    def _end_plan(
        self, job: PlannableJob, error: str, notes: Mapping[str, int] | None = None
    ) -> bool:
        lease = job.lease
        if error and job.new.mirror:
            error = f"{error}; nothing was deleted"
        ended = self._ledger.finish_planning(job.new.id, lease.token, lease.cursor, error, notes)
        self._recheck_next_round(job.new.id)
        return ended

    def _recheck_next_round(self, job_id: str) -> None:
        self._plannable.pop(job_id, None)
        self._recheck.add(job_id)

    def _open_and_estimate(self, new: NewJob, owner: Owner) -> Source:
        source = self._open(new)
        count = partial(self._estimate, new.id, source)
        self._readers.estimate(new.id, owner, count)
        return source

    def _open(self, new: NewJob) -> Source:
        storage = self._storage.within(new.grant)
        tracking = self._tracking if new.origin else None
        source: Source
        if new.retry_of:
            source = Retry(new.source, self._ledger, storage.access)
        elif is_migration(new.source) and self._generations:
            source = CopySource(new, self._generations, storage)
        elif is_over_stored(new.source) and self._generations:
            source = StoredImages(new, self._generations)
        else:
            whole = self._ledger.whole(new.id).source
            source = open_source(whole, storage, new.id, signed=tracking is not None)
        return tracked(source, new, tracking) if tracking else source

    def _estimate(self, job_id: str, source: Source) -> None:
        try:
            self._ledger.estimate(job_id, source.count())
        except Exception as error:
            log.debug("no estimate for job %s: %s", job_id, error)

    def _retry_or_split(self, new: NewJob, troubled: Sequence[OpenChunk]) -> None:
        for chunk in troubled:
            if chunk.attempt >= self._settings.max_attempts:
                self._split_or_quarantine(new, chunk)
            elif self._ledger.requeue(new.id, chunk):
                self._new_chunks[new.model] += 1
                self._metrics.requeued.inc()

    def _split_or_quarantine(self, new: NewJob, chunk: OpenChunk) -> None:
        """Split the chunk until the item that its workers fail on is alone; then fail that item."""
        if chunk.size > 1:
            log.warning("job %s: chunk %s failed too often; it is split", new.id, chunk.name)
            if self._ledger.split(new.id, chunk):
                self._new_chunks[new.model] += 2
            return
        for item in self._ledger.items(new.id, chunk.name):
            reason = f"quarantined: the worker ended or failed on it {chunk.attempt} times"
            failure = Failure.of(item, "worker", reason, chunk.attempt)
            if self._ledger.quarantine(new.id, chunk, failure):
                self._metrics.failed(failure.stage)


def run(planner: Planner, stopping: threading.Event) -> None:
    """Run rounds until `stopping` is set, then release the planner's jobs.

    Waits while a service is unavailable. An unexpected error is logged, and planning continues.
    """
    pause, outage = IDLE_S, OutageLog(log, "waiting")
    while not stopping.is_set():
        try:
            pause = 0.0 if planner.tick() else planner.pause_s()
            outage.back()
        except Unavailable as error:
            outage.away(error.detail)
            pause = min(2 * max(pause, IDLE_S), MAX_WAIT_S)
        except Exception:
            log.exception("a planning round failed; the planner continues")
            pause = 1.0
        stopping.wait(pause)
    try:
        planner.release()
    except Unavailable:
        log.warning("Redis does not answer; the planner's leases will expire")


def main() -> None:
    """Run a planner process, configured by the environment, until SIGTERM or SIGINT."""
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
    storage = Storage(settings, blobs, Fetcher(settings.fetch))
    metrics = PlannerMetrics(make_registry())
    catalogue, store = RedisCatalogue(client), make_store(settings)
    generations = Generations(catalogue, store, RedisUnreadable(client))
    tracking = TrackingParts(ledger, store, catalogue, blobs)
    planner = Planner(
        name,
        ledger,
        fleet,
        publisher,
        settings,
        storage,
        metrics=metrics,
        tracking=tracking,
        generations=generations,
    )
    try:
        serve_metrics(settings, metrics.registry, planner.trouble)
    except StartupError as error:
        sys.stderr.write(f"clipfleet planner: {error.detail}\n")
        raise SystemExit(os.EX_CONFIG) from error
    unfinished = RedisUnfinished(client)
    names = partial(collection_names, catalogue) if settings.keep_uploads else None
    keeper = Housekeeper(name, ledger, unfinished, blobs, settings.retention_days, names)
    threading.Thread(target=keeper.run, args=(stopping,), name="housekeeper", daemon=True).start()
    migrator = Migrator(ledger, generations, storage, blobs)
    threading.Thread(target=migrator.run, args=(stopping,), name="migrator", daemon=True).start()
    poster = Poster(settings.fetch, settings.webhooks.timeout_s)
    sender = WebhookSender(RedisWebhooks(client), ledger, poster, settings.webhooks, metrics)
    sending = threading.Thread(target=sender.run, args=(stopping,), name="webhooks", daemon=True)
    sending.start()
    log.info("planner %s started", name)
    run(planner, stopping)
    sending.join(2 * STOP_S)  # webhooks under way are given back to other planners
