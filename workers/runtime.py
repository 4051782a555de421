"""Composition root of the worker process: reads the settings, builds the parts, stays alive."""

import logging
import os
import secrets
import socket
import sys
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
from clipfleet.workers.embedding.timed import TimedEmbedder
from clipfleet.workers.ingest.background import Background
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import Worked, claim_next, pass_on, work_on
from clipfleet.workers.ingest.fetch_pool import fetch_pool
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.query.batch import QueryParts, answer_batch
from clipfleet.workers.query.exact import Bounds
from clipfleet.workers.queue.decode import batch_in
from clipfleet.workers.queue.machine import about_worker
from clipfleet.workers.storage.locations import Storage

log = logging.getLogger(__name__)

# Seconds, 0.005 by default. Beside a large answer, which is made on another thread, other searches
# wait for the interpreter so long at each of their calls. p99 of those: 131 ms instead of 179.
SWITCH_S = 0.001
STUCK_S = 30.0
RETRY_S = 1.0  # until the next announcement, after one that failed
HAND_BACK_S = 8.0  # for the chunks in the background, at the end
BROKEN_DEVICE = 72  # exit code; 70 and 71: stuck
RATE_WEIGHT = 0.3  # of the last chunk, in the moving average


class Runtime:
    """Everything a worker holds while it lives; made once the model is loaded and warm."""

    def __init__(
        self, settings: Settings, celery_app: Any, embedder: Embedder, metrics: WorkerMetrics
    ) -> None:
        sys.setswitchinterval(SWITCH_S)
        client = make_redis(settings)
        self._metrics = metrics
        embedder = self._embedder = GuardedEmbedder(embedder)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stopping = threading.Event()
        store = make_store(settings)
        catalogue = RedisCatalogue(client)
        blobs = Blobs(settings.blobs)
        self._ingest = IngestParts(
            worker=self.worker,
            ledger=RedisLedger(client, blobs=blobs),
            store=store,
            catalogue=catalogue,
            embedder=TimedEmbedder(embedder, "ingest", metrics),
            blobs=blobs,
            settings=settings,
            threads=ThreadPoolExecutor(settings.decode_threads, "decode"),
            stopping=self.stopping,
            places=Storage(settings, blobs, Fetcher(settings.fetch)),
            metrics=metrics,
            fetches=fetch_pool(settings.fetch),
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
        )
        self._aside = {name: ThreadPoolExecutor(1, name) for name in ("exact", "large")}
        publisher = CeleryPublisher(celery_app, client)
        self._pass_on = pass_on(publisher, settings.model)
        self._presence = Heartbeat(
            RedisFleet(client),
            publisher,
            settings.model,
            embedder,
            self.worker,
            settings.stall_s,
            partial(about_worker, settings.decode_threads, metrics),
        )

    def trouble(self) -> str:
        """Why it makes no progress; "" while it does."""
        return self._presence.trouble()

    def serve(self, lanes: tuple[Lane, ...]) -> None:
        self._presence.begin(lanes)

    def ingest(self) -> str:
        """Work on the next chunk, and begin one in the background whose images come from others'
        servers. What was done, for people who watch the tasks."""
        try:
            begun = self._begin_remote()
            with self._presence.busy() as busy:
                claim = claim_next(self._ingest, self._pass_on, remote=False)
                worked = self._work_on(claim) if claim else Worked()
                busy.images = worked.images
        except Unavailable as error:  # the planner nudges again
            log.warning("no chunk was claimed: %s", error.detail)
            return error.detail
        return "; ".join(str(each) for each in (begun, worked) if each.claim) or str(worked)

    def _begin_remote(self) -> Worked:
        if not self._background.has_room:
            return Worked()
        claim = claim_next(self._ingest, self._pass_on, remote=True)
        if claim:
            self._background.start(partial(self._work_in_background, claim))
        return Worked(claim)

    def _work_in_background(self, claim: Claim) -> None:
        self._work_on(claim)
        self._pass_on(replace(claim, more=True))  # there is room for another one

    def _work_on(self, claim: Claim) -> Worked:
        began, worked = time.monotonic(), Worked(claim)
        with suppress(BrokenDevice), self._metrics.in_flight("ingest"):
            worked = work_on(claim, self._ingest)
            took = time.monotonic() - began
            self._metrics.chunk(took)
            with log_context(**worked.context):
                log.info("%s in %.2f s", worked, took)
        self._require_device()
        return worked

    def query(self, raw: str) -> None:
        batch = batch_in(raw, self._query.replies)
        if batch is None:
            return
        with log_context(batch_id=batch.batch_id):
            if batch.aside:  # other queries do not wait for it
                self._aside[batch.aside].submit(in_context(self._answer), batch)
            else:
                self._answer(batch)

    def _answer(self, batch: QueryBatch) -> None:
        with self._metrics.in_flight("query"), self._presence.busy(answers=True):
            try:
                answer_batch(batch, self._query)
            except Unavailable as error:  # the gateway answers 503 when their time is up
                log.warning("%d queries stay unanswered: %s", len(batch.queries), error.detail)
        self._require_device()

    def _require_device(self) -> None:
        """Nothing but a new process helps; Celery would go on taking messages while it ends."""
        if why := self._embedder.broken:
            log.critical("%s: this worker ends itself", why)
            self._presence.end(why)
            os._exit(BROKEN_DEVICE)

    def shutdown(self) -> None:
        if not self._background.wait(HAND_BACK_S):
            log.warning("chunks are not handed back yet; their leases run out")
        self._presence.end()


class Heartbeat:
    """Announces the worker as long as it makes progress.

    A worker can look alive and not consume after a reconnect (celery #10302): idle beside a queue
    that is not empty for STUCK_S seconds, it ends its process, for its supervisor to start anew.
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
    ) -> None:
        self._fleet, self._publisher, self._model = fleet, publisher, model
        self._embedder, self._worker, self._stall_s = embedder, worker, stall_s
        self._about = about
        self._lanes: tuple[Lane, ...] = ()
        self._over = threading.Event()
        self._counting = threading.Lock()
        self._busy = self._answering = 0
        self._progress_at = self._started_at = self._seen_at = time.time()
        self._unconsumed = 0  # messages that wait while nothing arrives
        self._rate: float | None = None

    def begin(self, lanes: tuple[Lane, ...]) -> None:
        self._lanes = lanes
        threading.Thread(target=self._announce, name="presence", daemon=True).start()

    def end(self, why: str = "") -> None:
        self._over.set()
        try:
            self._fleet.deregister(self._worker)
            if why:
                self._fleet.record_exit_reason(self._model, why)
        except Unavailable:
            log.warning("could not say goodbye; the announcement expires by itself")

    def busy(self, *, answers: bool = False) -> "Busy":
        """`answers`: queries, which nobody else watches over (a chunk has its lease)."""
        return Busy(self, answers)

    def task_started(self, answers: bool) -> None:
        with self._counting:
            self._busy += 1
            self._answering += answers
            self._progress_at, self._unconsumed = time.time(), 0

    def left(self, answers: bool, images: int, seconds: float) -> None:
        with self._counting:
            self._busy -= 1
            self._answering -= answers
            self._progress_at = time.time()
        if images:
            rate = images / max(seconds, 1e-3)
            past = rate if self._rate is None else self._rate
            self._rate = past + RATE_WEIGHT * (rate - past)

    def trouble(self) -> str:
        """What looks wrong, before this worker ends itself for it; "" when nothing does."""
        now = time.time()
        if not self._lanes:
            return "it does not serve its queues yet"
        if now - self._seen_at > 2 * CARD_S:
            return f"it has not announced itself for {now - self._seen_at:.0f} s"
        if self._answering and now - self._progress_at > self._stall_s / 2:
            return f"queries unanswered for {now - self._progress_at:.0f} s"
        return f"{self._unconsumed} messages wait and none arrives" if self._unconsumed else ""

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
                self._progress_at, pause = time.time(), RETRY_S
            except Exception:  # or it would work on unseen until somebody restarts it
                log.exception("cannot announce this worker just now")
                self._progress_at = time.time()
            if self._over.wait(pause):
                return

    def _end_if_stuck(self) -> None:
        if self._answering and time.time() - self._progress_at > self._stall_s:
            log.critical("queries unanswered for %.0f s: this worker ends itself", self._stall_s)
            os._exit(70)
        if self._busy or time.time() - self._progress_at < STUCK_S:
            return
        waiting = sum(
            self._publisher.waiting(queue_name(lane, self._model)) for lane in self._lanes
        )
        self._unconsumed = 0 if self._busy else waiting
        if not waiting:
            self._progress_at = time.time()
        elif time.time() - self._progress_at > 2 * STUCK_S:
            log.critical("%d messages wait and none arrives: this worker ends itself", waiting)
            os._exit(71)

    def _card(self) -> WorkerCard:
        return WorkerCard(
            id=self._worker,
            model=self._model,
            dim=self._embedder.dim,
            lanes=self._lanes,
            device=self._embedder.device,
            preprocess=self._embedder.preprocess,
            rate=self._rate,
            started_at=self._started_at,
            progress_at=self._progress_at,
            about=self._about(),
        )


class Busy:
    """The time of one task. `images`: how many it worked on, for the rate."""

    def __init__(self, presence: Heartbeat, answers: bool) -> None:
        self._presence, self._answers = presence, answers
        self.images = 0

    def __enter__(self) -> "Busy":
        self._began = time.monotonic()
        self._presence.task_started(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self._presence.left(self._answers, self.images, time.monotonic() - self._began)
