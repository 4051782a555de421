"""The gateway: how the routes reach its parts, and how it waits for them."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
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
from clipfleet.api.http.bodies import MemoryBudget
from clipfleet.api.http.upload_slots import UploadSlots
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

LOOK_S = 1.0  # how often the gateway looks who is alive, and how old a catalogue entry may be
THREADS = {"redis": 32, "store": 32, "blobs": 32, "limiter": 8, "publish": 8}
THREADS |= {"failures": 2, "decode": 2, "export": 2, "parse": 1, "reconciler": 2}
RECONCILE_S = 60.0
DECODE_S, EXPORT_S, PARSE_S = 30.0, 60.0, 30.0


class Gateway:
    """Everything the routes use."""

    def __init__(self, settings: Settings, parts: GatewayParts) -> None:
        self.settings = settings
        self.memory = MemoryBudget(settings.limits.in_hand_bytes)
        self.ledger = parts.ledger
        self.catalogue = parts.catalogue
        self.fleet = parts.fleet
        self.overviews = parts.overviews
        self.limiter = parts.limiter
        self.store = parts.store
        self.blobs = parts.blobs
        self.unfinished = parts.unfinished
        self.probe = parts.probe
        self._close_parts = parts.close
        self.sources = access_of(settings, parts.blobs)
        self._publisher, self._inbox = parts.publisher, parts.inbox
        self.reconciler = Reconciler(parts.catalogue, parts.store, parts.blobs)
        self.urls = RemoteImageLoader(settings)
        # Each part has threads of its own: one that hangs starves only itself.
        self._pools = {name: ThreadPoolExecutor(threads, name) for name, threads in THREADS.items()}
        self._cards: list[WorkerCard] = []
        self._refused = ""  # why Redis takes no writes, while it does not
        self._ahead = 0.0  # seconds that Redis' clock is ahead of ours
        self._known: dict[str, tuple[float, Collection]] = {}
        self._reply_to = f"clipfleet:replies:{secrets.token_hex(8)}"
        self.queries = self._coalescer(
            self._workers, settings.limits.query_batch, settings.query_timeout_s
        )
        # What takes long waits for its like alone, and never for so many that no worker is left.
        # One pass over a collection answers many exact searches; a large one goes alone, since the
        # store answers others in between.
        slow_s = settings.exact_timeout_s + 1.0
        self.exact = self._coalescer(
            lambda model: self._workers(model) - 1, settings.limits.recall_sample, slow_s, 10
        )
        self.large = self._coalescer(lambda model: self._workers(model) - 1, 1, slow_s)
        self.followers = 0  # of jobs' events, just now
        self.exports = 0  # likewise
        self.uploads = UploadSlots(settings.limits.uploads)
        self.readiness: tuple[float, asyncio.Task[dict[str, str]] | None] = (0.0, None)
        self._loops: list[asyncio.Task[None]] = []

    def _coalescer(
        self, workers: Callable[[str], int], batch: int, timeout_s: float, rows: int = 1
    ) -> Coalescer:
        limits = self.settings.limits
        return Coalescer(
            self._publish,
            workers,
            reply_to=self._reply_to,
            batch=batch,
            rows=rows * limits.query_rows,
            queue=limits.query_queue,
            timeout_s=timeout_s,
            clock=self._clock,
        )

    def start(self) -> None:
        loops = (self._listen(), self._look(), self._reconcile())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        for task in self._loops:
            task.cancel()
        for task in self._loops:
            with suppress(asyncio.CancelledError):
                await task
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self.urls.close()
        await self._close_parts()

    async def call(self, part: Callable[..., T], *args: Any, seconds: float = 0, **kw: Any) -> T:
        """A blocking call to a part, off the event loop; Unavailable when it takes too long."""
        pool = self._pool(getattr(part, "__self__", None))
        return await self._bounded(pool, partial(part, *args, **kw), seconds)

    def _pool(self, part: object) -> ThreadPoolExecutor:
        if isinstance(part, BlobWriter):
            return self._pools["blobs"]
        for name in ("store", "blobs", "limiter", "reconciler"):
            if part is getattr(self, name):
                return self._pools[name]
        return self._pools["redis"]

    async def decode(self, part: Callable[..., T], *args: Any) -> T:
        """A call that decodes an image: few at a time, since each may take much memory."""
        return await self._bounded(self._pools["decode"], partial(part, *args), DECODE_S)

    async def failures(self, job_id: str, limit: int, offset: int) -> list[Failure]:
        """Of a job. Those in the blob store are read as whole parts, of up to 16 MB each with all
        the metadata that a retry needs: two at a time."""
        read = partial(self.ledger.failures, job_id, limit, offset)
        return await self._bounded(self._pools["failures"], read, 0)

    async def parse(self, part: Callable[..., T], *args: Any) -> T:
        """A call that makes much of a large body: one at a time."""
        return await self._bounded(self._pools["parse"], partial(part, *args), PARSE_S)

    async def export(self, part: Callable[..., T], *args: Any, **kw: Any) -> T:
        """A call that holds many embeddings: always on the same few threads, or the heap of every
        thread would grow to that size."""
        return await self._bounded(self._pools["export"], partial(part, *args, **kw), EXPORT_S)

    async def collection(self, name: str) -> Collection:
        """What a name stands for, at most a second ago. NotFound when it stands for nothing."""
        seen_at, known = self._known.get(name, (0.0, None))
        if known is None or time.monotonic() - seen_at > LOOK_S:
            self._known.pop(name, None)
            known = await self.call(require, self.catalogue, name)
            self._known[name] = (time.monotonic(), known)
        return known

    def forget(self, name: str) -> None:
        self._known.pop(name, None)

    async def worker(self, lane: Lane, model: str, *, any_model: bool = False) -> WorkerCard:
        """One that is alive and serves this; NoWorker when nobody does.

        `any_model`: take another model's when nobody has this one (it is not needed).
        """
        found = serving(self._cards, lane, model)
        if not found:
            self._cards = await self.call(self.fleet.alive)
            found = serving(self._cards, lane, model)
        if not found and any_model:
            found = [card for card in self._cards if lane in card.lanes]
        if not found and self._refused:  # they cannot say that they are alive
            raise RedisUnavailable(self._refused)
        if not found:
            raise NoWorker(lane, model)
        return found[0]

    async def stash_query_image(self, pixels: Pixels) -> str:
        """Put a query image where the workers find it; it expires by itself. Its key."""
        key = secrets.token_hex(12)
        limit = self.settings.limits.query_image_bytes
        expiry_s = 2 * self.settings.query_timeout_s
        await self.call(lambda: self._inbox.stash(key, pack(pixels, limit), expiry_s))
        return key

    async def job(self, job_id: str) -> Job:
        """As the ledger has it. While Redis takes no writes nobody can note there why it waits."""
        job = await self.call(self.ledger.job, job_id)
        if job.state in FINAL or not self._refused:
            return job
        return replace(job, waiting=self._refused)

    async def look_at_milvus(self) -> list[Finding]:
        """Unavailable while it is away."""
        return await self._bounded(self._pools["store"], partial(check_milvus, self.store), 0)

    def _workers(self, model: str) -> int:
        return len(serving(self._cards, "query", model))

    def _clock(self) -> float:
        """Redis' time."""
        return time.time() + self._ahead

    async def _publish(self, batch: QueryBatch) -> None:
        await self._bounded(self._pools["publish"], partial(self._publisher.publish, batch), 0)

    async def _bounded(self, pool: ThreadPoolExecutor, run: Callable[[], T], seconds: float) -> T:
        limit = seconds or self.settings.call_timeout_s + 1.0
        try:
            async with asyncio.timeout(limit):
                return await asyncio.get_running_loop().run_in_executor(pool, in_context(run))
        except TimeoutError as error:
            raise Unavailable(f"a part did not answer within {limit:g} s; try again") from error

    async def _listen(self) -> None:
        """The one loop that reads this gateway's replies."""
        outage = OutageLog(log, "cannot read replies")
        while True:
            try:
                reply = await self._inbox.receive(self._reply_to)
                if reply:
                    dispatch_reply(reply, (self.queries, self.exact, self.large))
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("a reply could not be understood")

    async def _see_whether_redis_writes(self) -> None:
        try:
            await self.call(self.probe.write)
            self._refused = ""
        except Unavailable as error:
            self._refused = error.detail

    async def _reconcile(self) -> None:
        while True:
            await asyncio.sleep(RECONCILE_S)
            try:
                await self.call(self.reconciler.round, seconds=10 * RECONCILE_S)
            except Unavailable as error:
                log.warning("collections are compared later: %s", error.detail)
            except Exception:
                log.exception("collections cannot be compared")

    async def _look(self) -> None:
        outage = OutageLog(log, "cannot see who is alive")
        while True:
            try:
                self._cards = await self.call(self.fleet.alive)
                await self._see_whether_redis_writes()
                self._ahead = await self.call(self.probe.now) - time.time()
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
            except Exception:
                log.exception("cannot see who is alive")
            await asyncio.sleep(LOOK_S)
