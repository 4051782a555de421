"""The planner: `python -m clipfleet.workers.planner`. Any number may run; a lease per job decides.

It streams each job's source into chunks, keeps a bounded window of them in flight, sends again
what nobody holds, and takes apart chunks that keep ending their workers.
"""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.broker import PRIORITIES, CeleryPublisher, Publisher, make_celery
from clipfleet.common.connection import make_redis
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.fleet import CARD_S, Fleet, RedisFleet, WorkerCard, serving
from clipfleet.common.ledger import Failure, Job, Ledger, OpenChunk, PlanLease
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.logs import configure_logs
from clipfleet.common.messages import IngestChunk, queue_name
from clipfleet.common.settings import Settings
from clipfleet.workers.housekeeper import Housekeeper
from clipfleet.workers.places import BucketAway, Places
from clipfleet.workers.retry_source import Retry
from clipfleet.workers.sources import Listed, Source, SourceError, open_source

log = logging.getLogger(__name__)

LEASE_S = 10.0
LISTING_S = 1.0  # of one source at a time
IDLE_S = 0.2
LOST_S = 300.0  # one that nobody claimed for so long, however full the queue
TURN_S = 10.0  # one that was sent when its job had more under way, and now has none: send it first
RESEND_S = 3.0  # a message on an empty queue that nobody claimed for so long is lost
FIRST_CHUNK, SMALLEST_CHUNK, LARGEST_CHUNK = 32, 8, 512


@dataclass
class Stream:
    """A source being read, and how far; `cursor` is checked against the ledger's."""

    source: Source
    listed: Iterator[Listed]
    cursor: str


class Planner:
    def __init__(
        self,
        name: str,
        ledger: Ledger,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        places: Places,
    ) -> None:
        self._name, self._ledger, self._fleet = name, ledger, fleet
        self._publisher, self._settings, self._places = publisher, settings, places
        self._streams: dict[str, Stream] = {}
        self._first: dict[str, set[int]] = {}  # by job, chunks sent before everybody else's
        self._announced_at = float("-inf")

    def tick(self) -> bool:
        """One round over all jobs, a chunk planned for each at most. Whether there was any."""
        self._announce()
        active = self._ledger.active()
        for known in (self._streams, self._first):
            for job_id in known.keys() - set(active):
                del known[job_id]
        cards = self._fleet.alive() if active else []
        planned = [self._tend_alone(job_id, cards) for job_id in active]
        return any(planned)

    def _announce(self) -> None:
        if time.monotonic() - self._announced_at > CARD_S / 5:
            self._fleet.announce_planner(self._name)
            self._announced_at = time.monotonic()

    def release(self) -> None:
        """Give the jobs to whoever comes next, now."""
        for job_id in self._ledger.active():
            self._ledger.lease(job_id, self._name, 0)

    def _tend_alone(self, job_id: str, cards: list[WorkerCard]) -> bool:
        """A job that cannot be tended must not keep the others waiting."""
        try:
            return self._tend(job_id, cards)
        except Unavailable:
            raise
        except NotFound:  # it was removed just now
            return False
        except Exception:
            log.exception("job %s cannot be planned; going on with the others", job_id)
            return False

    def _tend(self, job_id: str, cards: list[WorkerCard]) -> bool:
        lease = self._ledger.lease(job_id, self._name, LEASE_S)
        if lease is None:
            self._streams.pop(job_id, None)
            return False
        job = self._ledger.job(job_id)
        workers = serving(cards, "ingest", job.new.model)
        if not workers:
            waiting = f"no live worker serves the ingest lane of model {job.new.model!r}"
            self._ledger.note(job_id, waiting)
        chunks = self._ledger.open_chunks(job_id)
        self._supervise(job, chunks)
        window = max(4, 2 * len(workers) + 2)
        if lease.planned or len(chunks) >= window:
            return False
        size = _chunk_size(workers, self._settings.chunk_s)
        return self._plan(job, lease, size, len(chunks))

    def _plan(self, job: Job, lease: PlanLease, size: int, ahead: int) -> bool:
        """What was taken from a stream is planned, or the stream is opened anew at the cursor."""
        try:
            stream = self._stream(job, lease)
            listed = _taken(stream, size)
        except SourceError as error:
            return self._ledger.end_plan(job.id, lease.token, str(error))
        except (BucketAway, BlobsUnavailable) as error:  # what was taken is listed again
            self._ledger.note(job.id, error.detail)
            return False
        except Unavailable:
            raise
        except Exception as error:
            log.exception("job %s: the source cannot be read", job.id)
            said = f"the source cannot be read: {error!r}"
            return self._ledger.end_plan(job.id, lease.token, said)
        if not listed:
            nothing = "" if job.total else stream.source.nothing_found()
            return self._ledger.end_plan(job.id, lease.token, nothing)
        again = self._ledger.lease(job.id, self._name, LEASE_S)  # listing may have taken long
        if again is None or again.cursor != stream.cursor:
            return True
        items = [one.item for one in listed]
        no = self._ledger.plan(job.id, again.token, items, again.cursor, listed[-1].cursor)
        if no is not None:
            stream.cursor = listed[-1].cursor
            self._streams[job.id] = stream
            self._send(job, no, ahead)
        return True

    def _stream(self, job: Job, lease: PlanLease) -> Stream:
        stream = self._streams.pop(job.id, None)
        if stream is None or stream.cursor != lease.cursor:
            source = self._open(job)
            stream = Stream(source, source.stream(lease.cursor), lease.cursor)
            threading.Thread(target=self._estimate, args=(job.id, source), daemon=True).start()
        return stream

    def _open(self, job: Job) -> Source:
        if job.new.retry_of:
            return Retry(job.new.source, self._ledger, self._settings.source_roots)
        return open_source(job.new.source, self._places, job.id)

    def _estimate(self, job_id: str, source: Source) -> None:
        try:
            self._ledger.estimate(job_id, source.count())
        except Exception as error:
            log.debug("no estimate for job %s: %s", job_id, error)

    def _supervise(self, job: Job, chunks: list[OpenChunk]) -> None:
        idle = [chunk for chunk in chunks if not chunk.leased or chunk.expired]
        if not idle:
            return
        empty = not self._publisher.waiting(queue_name("ingest", job.new.model))
        first = self._first.setdefault(job.id, set())
        first &= {chunk.no for chunk in chunks}
        in_work = len(chunks) - len(idle)
        for ahead, chunk in enumerate(idle, in_work):
            comes_late = not ahead and chunk.no not in first
            patience_s = RESEND_S if empty else TURN_S if comes_late else LOST_S
            if chunk.attempt >= self._settings.max_attempts:
                self._take_apart(job, chunk)
            elif chunk.expired or chunk.waited_s > patience_s:
                self._send(job, chunk.no, ahead)

    def _take_apart(self, job: Job, chunk: OpenChunk) -> None:
        """Until the item that ends its workers is alone; then that one fails."""
        if chunk.size > 1:
            log.warning("job %s: chunk %d failed too often, taking it apart", job.id, chunk.no)
            self._ledger.split(job.id, chunk)
            return
        for item in self._ledger.items(job.id, chunk.no):
            reason = f"quarantined: its worker ended or failed {chunk.attempt} times on it"
            failure = Failure.of(item, "worker", reason, chunk.attempt)
            self._ledger.bury(job.id, chunk, failure)

    def _send(self, job: Job, no: int, ahead: int) -> None:
        """A chunk comes before those of jobs that have more of theirs under way: `ahead`."""
        message = IngestChunk(model=job.new.model, job_id=job.id, no=no)
        self._publisher.publish(message, PRIORITIES[min(ahead, len(PRIORITIES) - 1)])
        self._ledger.sent(job.id, no)
        if not ahead:
            self._first.setdefault(job.id, set()).add(no)


def _taken(stream: Stream, size: int) -> list[Listed]:
    """What came before a source broke off is planned first; then the error comes out. Of a slow
    source a small chunk has to do, or the other jobs would wait for it."""
    taken: list[Listed] = []
    until = time.monotonic() + LISTING_S
    try:
        for one in islice(stream.listed, size):
            taken.append(one)
            if time.monotonic() > until:
                break
    except SourceError as error:
        if not taken:
            raise
        stream.listed = _raising(error)
    return taken


def _raising(error: SourceError) -> Iterator[Listed]:
    raise error
    yield


def _chunk_size(workers: list[WorkerCard], seconds: float) -> int:
    """As many images as a worker does in the time a chunk should take."""
    rates = [worker.rate for worker in workers if worker.rate]
    if not rates:
        return FIRST_CHUNK
    return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, int(min(rates) * seconds)))


def run(planner: Planner, stopping: threading.Event) -> None:
    """Until told to stop. A part that is away is waited for; a broken job ends alone."""
    pause = IDLE_S
    while not stopping.is_set():
        try:
            pause = 0.0 if planner.tick() else IDLE_S
        except Unavailable as error:
            log.warning("waiting: %s", error.detail)
            pause = min(2 * max(pause, IDLE_S), 5.0)
        except Exception:
            log.exception("planning failed; going on")
            pause = 1.0
        stopping.wait(pause)
    try:
        planner.release()
    except Unavailable:
        log.warning("Redis does not answer; the leases run out by themselves")


def main() -> None:
    configure_logs()
    settings = Settings()
    client = make_redis(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    publisher = CeleryPublisher(make_celery(settings), client)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    ledger, blobs = RedisLedger(client), Blobs(settings.blobs)
    places = Places(settings, blobs, Fetcher(settings.fetch))
    planner = Planner(name, ledger, RedisFleet(client), publisher, settings, places)
    keeper = Housekeeper(name, ledger, blobs, settings.retention_days)
    threading.Thread(target=keeper.run, args=(stopping,), name="housekeeper", daemon=True).start()
    log.info("planner %s is at work", name)
    run(planner, stopping)


if __name__ == "__main__":
    main()
