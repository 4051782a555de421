"""The composition root of a worker process, and the heartbeat that announces the worker."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unavailable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.ledger import Claim
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.process.interpreter import prepare_interpreter
from clipfleet.common.process.logs import OutageLog, in_context, log_context
from clipfleet.common.queue.broker import CeleryPublisher, Publisher
from clipfleet.common.queue.fleet import CARD_S, Fleet, RedisFleet, WorkerCard, WorkerInfo
from clipfleet.common.queue.messages import QueryBatch, queue_name
from clipfleet.common.queue.replies import RedisReplies
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.common.store.milvus import make_store
from clipfleet.workers.embedding.cached import CachedEmbedder
from clipfleet.workers.embedding.guarded import BrokenDevice, GuardedEmbedder
from clipfleet.workers.embedding.layout import weights_id
from clipfleet.workers.embedding.proxy import TimedEmbedder
from clipfleet.workers.ingest.background import Background, Waits
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import Worked, claim_next, pass_on, work_on
from clipfleet.workers.ingest.device import TURNS
from clipfleet.workers.ingest.feeders import ProcessFeeders, feeder_count
from clipfleet.workers.ingest.fetch_pool import fetch_pool
from clipfleet.workers.ingest.prepare import Kit
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.query.batch import QueryParts, answer_batch
from clipfleet.workers.query.exact import Bounds
from clipfleet.workers.query.nouns import NounBanks
from clipfleet.workers.queue.decode import decode_query_batch
from clipfleet.workers.queue.machine import worker_info
from clipfleet.workers.storage.locations import Storage

log = logging.getLogger(__name__)

STUCK_AFTER_S = 30.0  # an idle worker without messages is checked after this long
RETRY_AFTER_S = 1.0  # from an announcement that failed to the next one
HAND_BACK_TIMEOUT_S = 8.0  # for chunks in the background, at shutdown
BROKEN_DEVICE = 72  # exit code; 70 and 71: stuck
IO_THREADS = 8  # read blobs and write thumbnails
# While one chunk is claimed, begun or written, the other one is embedded.
CHUNKS_IN_HAND = 2
RATE_WEIGHT = 0.3  # weight of the last measurement in the moving average
RATE_WINDOW_S = 1.0  # shortest measurement while tasks are under way


class Runtime:
    """Everything that a worker process holds, created once the model is loaded and warm.

    Args:
        celery_app: the Celery application, which sends nudges to other workers.
        embedder: the loaded model.

    Attributes:
        worker: the worker's unique name.
        stopping: set when the worker is asked to stop.
    """

    def __init__(
        self, settings: Settings, celery_app: Any, embedder: Embedder, metrics: WorkerMetrics
    ) -> None:
        client = make_redis(settings)
        self._metrics = metrics
        embedder = self._embedder = GuardedEmbedder(embedder)
        weights = weights_id(settings.model)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stopping = threading.Event()
        store = make_store(settings)
        catalogue = RedisCatalogue(client)
        blobs = Blobs(settings.blobs)
        storage = Storage(settings, blobs, Fetcher(settings.fetch))
        kit = Kit.of(settings, storage.access, embedder.preprocess)
        self._feeders = ProcessFeeders(feeder_count(settings), kit, metrics.feeder_restarted)
        self._ingest = IngestParts(
            worker=self.worker,
            ledger=RedisLedger(client, blobs=blobs),
            store=store,
            catalogue=catalogue,
            embedder=TimedEmbedder(embedder, "ingest", metrics),
            blobs=blobs,
            settings=settings,
            threads=ThreadPoolExecutor(IO_THREADS, "io"),
            feeders=self._feeders,
            stopping=self.stopping,
            storage=storage,
            metrics=metrics,
            fetches=fetch_pool(settings.fetch),
            weights_id=weights,
        )
        self._background = Background()
        timed = TimedEmbedder(embedder, "query", metrics)
        self.texts = texts = CachedEmbedder(timed, settings.text_memory)
        metrics.watch_cache("text", lambda: texts.hits, lambda: texts.misses)
        self._query = QueryParts(
            self.texts,
            store,
            catalogue,
            RedisReplies(client),
            Bounds(settings.exact_timeout_s, self.stopping),
            metrics,
            weights,
            nouns=NounBanks(embedder, settings.model, weights, blobs),
        )
        self._aside = {name: ThreadPoolExecutor(1, name) for name in ("exact", "large")}
        publisher = CeleryPublisher(celery_app, client)
        self._nudge_next = pass_on(publisher, settings.model)
        self._heartbeat = Heartbeat(
            RedisFleet(client),
            publisher,
            settings.model,
            embedder,
            self.worker,
            settings.stall_s,
            partial(worker_info, metrics),
            weights,
        )

    def trouble(self) -> str:
        """The reason why the worker makes no progress; "" while it does."""
        return self._heartbeat.trouble()

    def serve(self, lanes: tuple[Lane, ...]) -> None:
        """Start what these lanes need, and announce the worker for them.

        Raises:
            StartupError: there is no room for the feeders' shared memory.
        """
        prepare_interpreter()
        if "ingest" in lanes:
            self._feeders.start()
            self._metrics.set_concurrency(
                {
                    "fetch": self._ingest.settings.fetch.concurrency,
                    "blob": IO_THREADS,
                    "read": self._feeders.count,
                    "decode": self._feeders.count,
                    "model": TURNS,
                    "store": CHUNKS_IN_HAND,
                }
            )
        if "query" in lanes and self._query.nouns:
            self._query.nouns.bank()  # before the first query
        self._heartbeat.begin(lanes)

    def ingest(self) -> str:
        """Work on the next chunk, and begin a chunk of remote images in the background.

        Returns:
            What was done, in words, as the result of the Celery task.
        """
        try:
            begun = self._begin_remote()
            with self._heartbeat.busy() as busy:
                claim = claim_next(self._ingest, self._nudge_next, remote=False)
                worked = self._work_on(claim) if claim else Worked()
                busy.images = worked.images
        except Unavailable as error:  # the planner sends another nudge
            log.warning("the worker could not claim a chunk: %s", error.detail)
            return error.detail
        return "; ".join(str(result) for result in (begun, worked) if result.claim) or str(worked)

    def _begin_remote(self) -> Worked:
        if not self._background.has_room:
            return Worked()
        claim = claim_next(self._ingest, self._nudge_next, remote=True)
        if claim:
            more = replace(claim, more=True)
            self._background.start(
                partial(self._work_in_background, claim), lambda: self._nudge_next(more)
            )
        return Worked(claim)

    def _work_in_background(self, claim: Claim, waits: Waits) -> None:
        self._work_on(claim, waits)
        self._nudge_next(replace(claim, more=True))  # this worker has room for another chunk

    def _work_on(self, claim: Claim, waits: Waits = lambda _: None) -> Worked:
        began, worked = time.monotonic(), Worked(claim)
        with suppress(BrokenDevice), self._metrics.in_flight("ingest"):
            worked = work_on(claim, replace(self._ingest, waits=waits))
            took = time.monotonic() - began
            self._metrics.chunk(took)
            with log_context(**worked.context):
                log.info("%s in %.2f s", worked, took)
        self._require_device()
        return worked

    def query(self, raw: str) -> None:
        """Answer a batch of queries, given as the JSON of a QueryBatch."""
        batch = decode_query_batch(raw, self._query.replies)
        if batch is None:
            return
        with log_context(batch_id=batch.batch_id):
            if batch.aside:  # slow: on a thread of its own, so that other queries do not wait
                self._aside[batch.aside].submit(in_context(self._answer), batch)
            else:
                self._answer(batch)

    def _answer(self, batch: QueryBatch) -> None:
        with self._metrics.in_flight("query"), self._heartbeat.busy(answers=True):
            try:
                answer_batch(batch, self._query)
            except Unavailable as error:  # the gateway answers 503 at their deadlines
                log.warning("%d queries were not answered: %s", len(batch.queries), error.detail)
        self._require_device()

    def _require_device(self) -> None:
        """End the process if the device is broken: only a new process can use it again.

        The process exits at once, since Celery takes further messages during a regular shutdown.
        """
        if reason := self._embedder.broken:
            log.critical("%s: this worker exits", reason)
            self._heartbeat.end(reason)
            os._exit(BROKEN_DEVICE)

    def shutdown(self) -> None:
        """Wait until background chunks are handed back, then deregister the worker."""
        if not self._background.wait(HAND_BACK_TIMEOUT_S):
            log.warning("chunks in the background were not handed back; their leases will expire")
        self._feeders.close()
        self._heartbeat.end()


class Heartbeat:
    """Announces the worker as long as it makes progress.

    A worker can look alive and yet not consume after a reconnect (celery #10302). An idle worker
    whose queue is not empty therefore ends its process, and its supervisor starts a new one.

    Args:
        worker: the worker's unique name.
        stall_s: seconds without an answered query after which the process ends itself.
        about: returns details about the machine and the worker for its card.
        weights: the `weights_id` of the card.
    """

    def __init__(
        self,
        fleet: Fleet,
        publisher: Publisher,
        model: str,
        embedder: Embedder,
        worker: str,
        stall_s: float,
        about: Callable[[], WorkerInfo] = WorkerInfo,
        weights: str = "",
    ) -> None:
        self._fleet, self._publisher, self._model = fleet, publisher, model
        self._embedder, self._worker, self._stall_s = embedder, worker, stall_s
        self._worker_info, self._weights_id = about, weights
        self._lanes: tuple[Lane, ...] = ()
        self._over = threading.Event()
        self._counting = threading.Lock()
        self._busy = self._answering = 0
        self._progress_at = self._started_at = self._seen_at = time.time()
        self._unconsumed = 0  # messages in the queue that do not reach this worker
        self._rate: float | None = None
        self._images, self._measured_since = 0, 0.0

    def begin(self, lanes: tuple[Lane, ...]) -> None:
        """Announce the worker for these lanes, on a thread of its own."""
        self._lanes = lanes
        threading.Thread(target=self._announce, name="heartbeat", daemon=True).start()

    def end(self, reason: str = "") -> None:
        """Deregister the worker and record the reason for its exit, if there is one."""
        self._over.set()
        try:
            self._fleet.deregister(self._worker)
            if reason:
                self._fleet.record_exit_reason(self._model, reason)
        except Unavailable:
            log.warning("the worker could not be deregistered; its announcement will expire")

    def busy(self, *, answers: bool = False) -> "Busy":
        """Mark the worker as busy during a `with` block.

        Args:
            answers: the task answers queries. Only the heartbeat watches them for stalls; a chunk
                has its lease.
        """
        return Busy(self, answers)

    def task_started(self, answers: bool) -> None:
        """Count a running task; arguments as in `busy`."""
        with self._counting:
            if not self._busy:
                self._images, self._measured_since = 0, time.monotonic()
            self._busy += 1
            self._answering += answers
            self._progress_at, self._unconsumed = time.time(), 0

    def task_finished(self, answers: bool, images: int) -> None:
        """Count a finished task and update the worker's rate.

        The rate is that of all tasks together, since chunks overlap.

        Args:
            answers: as in `busy`.
            images: the number of images that the task worked on; 0 leaves the rate as it is.
        """
        with self._counting:
            self._busy -= 1
            self._answering -= answers
            self._progress_at, now = time.time(), time.monotonic()
            self._images += images
            seconds = now - self._measured_since
            if images and (seconds >= RATE_WINDOW_S or not self._busy):
                rate = self._images / max(seconds, 1e-3)
                past = rate if self._rate is None else self._rate
                self._rate = past + RATE_WEIGHT * (rate - past)
                self._images, self._measured_since = 0, now

    def trouble(self) -> str:
        """The reason why the worker seems stuck, before it ends itself; "" for none."""
        now = time.time()
        if not self._lanes:
            return "the worker does not serve its queues yet"
        if now - self._seen_at > 2 * CARD_S:
            return f"the worker has not announced itself for {now - self._seen_at:.0f} s"
        if self._answering and now - self._progress_at > self._stall_s / 2:
            return f"queries unanswered for {now - self._progress_at:.0f} s"
        if self._unconsumed:
            return f"{self._unconsumed} messages wait and none reaches the worker"
        return ""

    def _announce(self) -> None:
        outage = OutageLog(log, "cannot announce this worker")
        while True:
            self._seen_at, pause = time.time(), CARD_S / 5
            try:
                self._fleet.announce(self._card())
                outage.back()
                self._end_if_stuck()
            except Unavailable as error:
                outage.away(error.detail)
                self._progress_at, pause = time.time(), RETRY_AFTER_S
            except Exception:  # without this thread the worker would run unannounced
                log.exception("cannot announce this worker")
                self._progress_at = time.time()
            if self._over.wait(pause):
                return

    def _end_if_stuck(self) -> None:
        if self._answering and time.time() - self._progress_at > self._stall_s:
            log.critical("queries unanswered for %.0f s: this worker exits", self._stall_s)
            os._exit(70)
        if self._busy or time.time() - self._progress_at < STUCK_AFTER_S:
            return
        waiting = sum(
            self._publisher.waiting(queue_name(lane, self._model)) for lane in self._lanes
        )
        self._unconsumed = 0 if self._busy else waiting
        if not waiting:
            self._progress_at = time.time()
        elif time.time() - self._progress_at > 2 * STUCK_AFTER_S:
            log.critical("%d messages wait and none reaches this worker: it exits", waiting)
            os._exit(71)

    def _card(self) -> WorkerCard:
        return WorkerCard(
            id=self._worker,
            model=self._model,
            dim=self._embedder.dim,
            lanes=self._lanes,
            device=self._embedder.device,
            preprocess=self._embedder.preprocess,
            weights_id=self._weights_id,
            rate=self._rate,
            started_at=self._started_at,
            progress_at=self._progress_at,
            about=self._worker_info(),
        )


class Busy:
    """Measures one task for the heartbeat.

    Attributes:
        images: the number of images that the task worked on; set by the task.
    """

    def __init__(self, heartbeat: Heartbeat, answers: bool) -> None:
        self._heartbeat, self._answers = heartbeat, answers
        self.images = 0

    def __enter__(self) -> "Busy":
        self._heartbeat.task_started(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.task_finished(self._answers, self.images)
