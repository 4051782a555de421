"""The gateway: gives the routes its parts, runs their blocking calls, and waits for workers."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.image_urls import RemoteImageLoader
from clipfleet.api.dispatch.parts import GatewayParts
from clipfleet.api.dispatch.reconciler import Reconciler
from clipfleet.api.dispatch.replies import dispatch_reply
from clipfleet.api.dispatch.slots import SharedSlots
from clipfleet.api.http.bodies import MemoryBudget
from clipfleet.api.originals.finder import Originals
from clipfleet.common.auth.source_access import access_of
from clipfleet.common.blobs import BlobWriter
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.ledger import FINAL, Failure, Job
from clipfleet.common.ledger.catalogue import require
from clipfleet.common.process.checks import Finding, check_milvus
from clipfleet.common.process.logs import OutageLog, in_context
from clipfleet.common.queue.fleet import NoWorker, WorkerCard, serving
from clipfleet.common.queue.messages import QueryBatch
from clipfleet.common.queue.pixels import pack
from clipfleet.common.redis.client import RedisUnavailable
from clipfleet.common.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 1.0  # of the list of workers; also the age of a cached collection at most
THREADS = {"redis": 32, "store": 32, "blobs": 32, "limiter": 8, "publish": 8}
THREADS |= {"failures": 2, "decode": 4, "export": 2, "parse": 1, "reconciler": 2}
THREADS |= {"originals": 16, "previews": 2}
DECODES_OF_ONE_CALLER = 2  # at once; with API keys there are twice as many slots
RECONCILE_INTERVAL_S = 60.0
DECODE_WAIT_S, DECODE_TIMEOUT_S, EXPORT_TIMEOUT_S, PARSE_TIMEOUT_S = 30.0, 10.0, 60.0, 30.0
ORIGINAL_TIMEOUT_S, PREVIEW_TIMEOUT_S = 30.0, 20.0


class Gateway:
    """What the routes of one process share.

    Args:
        settings: the settings of the service.
        parts: what the gateway talks to.

    Attributes:
        memory: the bytes that all requests together may hold.
        sources: the sources that jobs may read.
        urls: downloads images that requests name by URL.
        queries: sends ordinary queries to the workers.
        exact: sends exact searches.
        large: sends searches for many matches.
        decodes: the slots for decoding query images.
        event_streams: the slots for streams of jobs' events.
        exports: the slots for exports.
        originals: opens the original files of images.
        original_slots: the slots for answers with an original.
        uploads: the slots for uploads.
        readiness: monotonic seconds of the last readiness check, and the check.
    """

    def __init__(self, settings: Settings, parts: GatewayParts) -> None:
        self.settings = settings
        self.memory = MemoryBudget(settings.limits.in_hand_bytes)
        self.ledger = parts.ledger
        self.catalogue = parts.catalogue
        self.registry = parts.registry
        self.event_stream = parts.event_stream
        self.fleet = parts.fleet
        self.overviews = parts.overviews
        self.limiter = parts.limiter
        self.store = parts.store
        self.blobs = parts.blobs
        self.unfinished, self.unreadable = parts.unfinished, parts.unreadable
        self.probe = parts.probe
        self._close_parts = parts.close
        self.sources = access_of(settings, parts.blobs)
        self._publisher, self._inbox = parts.publisher, parts.inbox
        self.reconciler = Reconciler(parts.catalogue, parts.store, parts.blobs)
        self.urls = RemoteImageLoader(settings)
        # Each part has its own threads: a part that hangs blocks no other part.
        self._pools = {name: ThreadPoolExecutor(threads, name) for name, threads in THREADS.items()}
        self._cards: list[WorkerCard] = []
        self._redis_error = ""  # why Redis accepts no writes; "" while it does
        self._clock_skew_s = 0.0  # seconds by which Redis' clock is ahead of ours
        self._collections: dict[str, tuple[float, asyncio.Task[Collection]]] = {}
        # Small replies have a list and a connection of their own: a large one takes 20 ms to read.
        self._reply_to = f"clipfleet:replies:{secrets.token_hex(8)}"
        self._slow_reply_to = f"{self._reply_to}:slow"
        self.queries = self._coalescer(
            self._workers, self._reply_to, settings.limits.query_batch, settings.query_timeout_s
        )
        # Slow queries wait only for slow queries, and one worker always remains for others. One
        # pass over a collection answers many exact searches. A large search is sent alone, because
        # the store answers other queries in between.
        slow_s = settings.exact_timeout_s + 1.0
        sample = settings.limits.recall_sample
        self.exact = self._coalescer(self._all_but_one, self._slow_reply_to, sample, slow_s, 10)
        self.large = self._coalescer(self._all_but_one, self._slow_reply_to, 1, slow_s)
        limits, setting = settings.limits, "CLIPFLEET_LIMITS__"
        decodes = DECODES_OF_ONE_CALLER * (2 if settings.keys_file else 1)
        self.decodes = SharedSlots(decodes, "decoding query images")
        self.event_streams = SharedSlots(
            limits.event_streams, "event streams", setting + "EVENT_STREAMS", 10,
            "poll GET /v1/jobs/{id} instead",
        )  # fmt: skip
        self.exports = SharedSlots(limits.exports, "exports", setting + "EXPORTS", 10)
        self.originals = Originals(parts.blobs)
        self.original_slots = SharedSlots(
            limits.originals, "original images", setting + "ORIGINALS"
        )
        self._previews = SharedSlots(THREADS["previews"], "making previews")
        self.uploads = SharedSlots(limits.uploads, "uploads", setting + "UPLOADS", 5)
        self.readiness: tuple[float, asyncio.Task[dict[str, str]] | None] = (0.0, None)
        self._loops: list[asyncio.Task[None]] = []

    def _coalescer(
        self,
        workers: Callable[[str], int],
        reply_to: str,
        batch: int,
        timeout_s: float,
        rows: int = 1,
    ) -> Coalescer:
        limits = self.settings.limits
        return Coalescer(
            self._publish,
            workers,
            reply_to=reply_to,
            batch=batch,
            rows=rows * limits.query_rows,
            queue=limits.query_queue,
            timeout_s=timeout_s,
            reply_bytes=limits.answer_bytes,
            clock=self._clock,
        )

    def start(self, *more: Coroutine[Any, Any, None]) -> None:
        """Start the background loops. Call it on the event loop.

        Args:
            more: loops of the features.
        """
        listeners = (self._listen(name) for name in (self._reply_to, self._slow_reply_to))
        loops = (*listeners, self._refresh_loop(), self._reconcile(), *more)
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Stop the background loops and close the parts."""
        for task in self._loops:
            task.cancel()
        for task in self._loops:
            with suppress(asyncio.CancelledError):
                await task
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self.urls.close()
        await self._close_parts()

    async def call(
        self, method: Callable[..., T], *args: Any, timeout_s: float = 0, **kwargs: Any
    ) -> T:
        """Call a blocking method of a part on a thread of that part.

        Args:
            method: a bound method of the part.
            args: its arguments.
            timeout_s: seconds to wait; 0 for the default of a call.
            kwargs: its keyword arguments.

        Raises:
            Unavailable: the part has not answered in time. The call itself goes on.
        """
        pool = self._pool(getattr(method, "__self__", None))
        return await self._run(pool, partial(method, *args, **kwargs), timeout_s)

    def _pool(self, part: object) -> ThreadPoolExecutor:
        if isinstance(part, BlobWriter):
            return self._pools["blobs"]
        for name in ("store", "blobs", "limiter", "reconciler"):
            if part is getattr(self, name):
                return self._pools[name]
        return self._pools["redis"]

    async def decode(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that decodes an image. Few run at once, as each may need much memory."""
        async with self.decodes.turn(DECODE_WAIT_S) as slot:
            call = slot.call(self._pools["decode"], function, *args)
            return await _in_time(call, DECODE_TIMEOUT_S)

    async def read_original(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that opens or reads an original."""
        return await self._run(
            self._pools["originals"], partial(function, *args), ORIGINAL_TIMEOUT_S
        )

    async def make_preview(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that reads and decodes an original. Few run at once, as for `decode`,
        and not in their place: searching by an image does not wait for previews.
        """
        async with self._previews.turn(DECODE_WAIT_S) as slot:
            call = slot.call(self._pools["previews"], function, *args)
            return await _in_time(call, PREVIEW_TIMEOUT_S)

    async def failures(self, job_id: str, limit: int, offset: int) -> list[Failure]:
        """Return failures of a job.

        Failures in the blob store are read as whole parts of up to 16 MB each, with all the
        metadata that a retry needs. Therefore at most two requests read failures at once.
        """
        read = partial(self.ledger.failures, job_id, limit, offset)
        return await self._run(self._pools["failures"], read, 0)

    async def parse(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that parses a large body. One runs at a time."""
        return await self._run(self._pools["parse"], partial(function, *args), PARSE_TIMEOUT_S)

    async def export(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function that holds many embeddings.

        It runs on few threads of its own. Otherwise the heap of every thread would grow so large.
        """
        run = partial(function, *args, **kwargs)
        return await self._run(self._pools["export"], run, EXPORT_TIMEOUT_S)

    async def collection(self, name: str) -> Collection:
        """Return the collection of a name, as it was at most REFRESH_INTERVAL_S ago.

        It is read again once within this time, however many requests ask for it.

        Raises:
            NotFound: there is no such collection.
        """
        read_at, reading = self._collections.get(name, (0.0, None))
        if reading is None or (reading.done() and time.monotonic() - read_at > REFRESH_INTERVAL_S):
            reading = asyncio.create_task(self.call(require, self.catalogue, name))
            self._collections[name] = (time.monotonic(), reading)
            reading.add_done_callback(partial(self._keep_found, name))
        return await asyncio.shield(reading)

    def _keep_found(self, name: str, reading: "asyncio.Task[Collection]") -> None:
        failed = reading.cancelled() or reading.exception() is not None
        if failed and self._collections.get(name, (0.0, None))[1] is reading:
            del self._collections[name]

    def forget(self, name: str) -> None:
        """Read the collection of this name again at its next use."""
        self._collections.pop(name, None)

    async def worker(self, lane: Lane, model: str, *, any_model: bool = False) -> WorkerCard:
        """Return a worker that is alive and serves a lane of a model.

        Args:
            lane: the lane.
            model: the model.
            any_model: accept a worker of another model when there is none of this model.

        Raises:
            RedisUnavailable: no worker is known, and workers cannot announce themselves.
            NoWorker: there is no such worker.
        """
        cards = serving(self._cards, lane, model)
        if not cards:
            self._cards = await self.call(self.fleet.alive)
            cards = serving(self._cards, lane, model)
        if not cards and any_model:
            cards = [card for card in self._cards if lane in card.lanes]
        if not cards and self._redis_error:  # workers cannot announce themselves
            raise RedisUnavailable(self._redis_error)
        if not cards:
            raise NoWorker(lane, model)
        return cards[0]

    async def query_workers(self) -> list[WorkerCard]:
        """Return the workers that answer queries, as they were at most REFRESH_INTERVAL_S ago."""
        if not self._cards:
            self._cards = await self.call(self.fleet.alive)
        return [card for card in self._cards if "query" in card.lanes]

    async def stash_query_image(self, pixels: Pixels) -> str:
        """Store a query image for the workers until it expires, and return its key."""
        key = secrets.token_hex(12)
        limit = self.settings.limits.query_image_bytes
        expiry_s = 2 * self.settings.query_timeout_s
        await self.call(lambda: self._inbox.stash(key, pack(pixels, limit), expiry_s))
        return key

    async def job(self, job_id: str) -> Job:
        """Return a job from the ledger.

        While Redis accepts no writes, `waiting` is filled in here, since no part can write it.

        Raises:
            NotFound: there is no such job.
        """
        job = await self.call(self.ledger.job, job_id)
        if job.state in FINAL or not self._redis_error:
            return job
        return replace(job, waiting=self._redis_error)

    async def milvus_findings(self) -> list[Finding]:
        """Return what is wrong with the configuration of Milvus.

        Raises:
            Unavailable: Milvus does not answer.
        """
        return await self._run(self._pools["store"], partial(check_milvus, self.store), 0)

    def _workers(self, model: str) -> int:
        return len(serving(self._cards, "query", model))

    def _all_but_one(self, model: str) -> int:
        return self._workers(model) - 1

    def _clock(self) -> float:
        """Redis' time in unix seconds."""
        return time.time() + self._clock_skew_s

    async def _publish(self, batch: QueryBatch) -> None:
        await self._run(self._pools["publish"], partial(self._publisher.publish, batch), 0)

    async def _run(self, pool: ThreadPoolExecutor, run: Callable[[], T], timeout_s: float) -> T:
        call = asyncio.get_running_loop().run_in_executor(pool, in_context(run))
        return await _in_time(call, timeout_s or self.settings.call_timeout_s + 1.0)

    async def _listen(self, reply_to: str) -> None:
        """Read the replies on one of this gateway's lists, for ever."""
        outage = OutageLog(log, "cannot read replies")
        while True:
            try:
                reply = await self._inbox.receive(reply_to)
                if reply:
                    dispatch_reply(reply, (self.queries, self.exact, self.large))
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("a reply could not be handled")

    async def _check_redis_writes(self) -> None:
        try:
            await self.call(self.probe.write)
            self._redis_error = ""
        except Unavailable as error:
            self._redis_error = error.detail

    async def _reconcile(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_INTERVAL_S)
            try:
                await self.call(self.reconciler.round, timeout_s=10 * RECONCILE_INTERVAL_S)
            except Unavailable as error:
                log.warning("the catalogue is compared with the store later: %s", error.detail)
            except Exception:
                log.exception("the catalogue cannot be compared with the store")

    async def _refresh_loop(self) -> None:
        """Refresh what the gateway knows of the workers and of Redis, for ever."""
        outage = OutageLog(log, "cannot read which workers are alive")
        while True:
            try:
                self._cards = await self.call(self.fleet.alive)
                await self._check_redis_writes()
                self._clock_skew_s = await self.call(self.probe.now) - time.time()
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
            except Exception:
                log.exception("cannot read which workers are alive")
            await asyncio.sleep(REFRESH_INTERVAL_S)


async def _in_time(call: Awaitable[T], timeout_s: float) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError as error:
        raise Unavailable(f"a part did not answer within {timeout_s:g} s; try again") from error
