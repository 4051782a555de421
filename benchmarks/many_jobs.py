"""Measures the cost of many jobs for the planner, for Redis and for lists of jobs.

    python benchmarks/many_jobs.py round|beside|two|failures|kept

- round: processor time of a planner's round over 1,000 jobs of which none is due.
- beside: images per second that are planned for one job, alone and while 999 others wait.
- two: how often two planners open the sources of 100 jobs.
- failures: bytes in Redis for a million failures.
- kept: time of lists and of /metrics with 200,000 jobs that have ended.

Valkey is real. The planners are real and run in this process. Sources take no time.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import redis
from parts import shown, valkey

from clipfleet.common.blobs import Blobs
from clipfleet.common.fetch import Fetcher
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.ledger import Claim, Failure, Item, NewJob, Outcome
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.broker import MemoryPublisher
from clipfleet.common.queue.fleet import MemoryFleet, WorkerCard
from clipfleet.common.queue.overview import RedisOverviews
from clipfleet.common.settings import Settings
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.sources import Listed, Source
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import Storage

MODEL = "benchmark"
WORKERS, RATE = 64, 128.0  # which claim so many images a second each: chunks of 512
JOBS, KEPT = 1_000, 200_000
MB = 1e6


class Endless:
    """A source that never ends."""

    def __init__(self) -> None:
        self.notes = Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        for number in count(int(after or 0)):
            path = f"/data/photos/2024/{number:09d}.jpg"
            yield Listed(Item(id=path, uri=path, read=f"file:{path}"), str(number + 1))

    def count(self) -> int:
        return 10_000_000

    def nothing_found(self) -> str:
        return ""


class Service:
    """The parts that planners need, with a real Valkey. Workers do nothing."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client, self.settings = redis.Redis.from_url(url), Settings(model=MODEL)
        self.blobs = Blobs(str(folder / "blobs"))
        self.ledger = self.new_ledger(url)
        self.fleet = MemoryFleet()
        self.opened = 0
        for n in range(WORKERS):
            self.fleet.announce(card(f"w{n}"))

    def new_ledger(self, url: str) -> RedisLedger:
        return RedisLedger(redis.Redis.from_url(url), blobs=self.blobs)

    def planner(self, name: str, ledger: RedisLedger | None = None) -> Planner:
        storage = Storage(self.settings, self.blobs, Fetcher(self.settings.fetch))
        service = self

        class Opening(Planner):
            def _open(self, _: NewJob) -> Source:
                service.opened += 1
                return Endless()

        return Opening(
            name, ledger or self.ledger, self.fleet, MemoryPublisher(), self.settings, storage
        )

    def jobs(self, number: int, model: str = MODEL, name: str = "job") -> None:
        for n in range(number):
            self.ledger.create(new_job(f"{name}{n:04}", model))

    def memory(self) -> int:
        info: dict[str, int] = self.client.info("memory")
        return info["used_memory"]


def new_job(job_id: str, model: str = MODEL, collection: str = "c") -> NewJob:
    source = {"type": "folder", "path": "/data/photos"}
    return NewJob(
        id=job_id, collection=collection, generation="g", model=model, namespace="n", source=source
    )


def card(name: str) -> WorkerCard:
    now = time.time()
    spec = Preprocess(shortest=8, height=8, width=8)
    return WorkerCard(
        id=name, model=MODEL, dim=4, lanes=("ingest",), device="none", preprocess=spec, rate=RATE,
        started_at=now, progress_at=now + 3_600,
    )  # fmt: skip


def settled(planner: Planner, jobs: int) -> None:
    """Run rounds until the planner owns all jobs and has looked at each."""
    while len(planner._owned) < jobs or planner.tick():
        planner.tick()


def round_(service: Service) -> None:
    service.jobs(JOBS, model="another model")
    planner = service.planner("one")
    settled(planner, JOBS)
    rounds: list[tuple[float, int]] = []
    until = time.monotonic() + 30
    while time.monotonic() < until:
        looks = len(planner_looks(planner))
        began = time.process_time()
        planner.tick()
        rounds.append((1_000 * (time.process_time() - began), looks))
        time.sleep(0.2)
    idle = [spent for spent, looks in rounds if not looks]
    due = [spent for spent, looks in rounds if looks]
    print(f"{JOBS} jobs, none due: {shown(idle, 2)} ms of processor time a round")
    if due:
        print(f"rounds with looks that come every 10 s: {shown(due, 1)} ms ({len(due)} of them)")


def planner_looks(planner: Planner) -> list[bytes]:
    """Jobs that are due now."""
    client = planner._ledger._redis  # type: ignore[attr-defined]
    due: list[bytes] = client.zrangebyscore(f"clipfleet:jobs:due:{planner._name}", 0, time.time())
    return due


def beside(service: Service) -> None:
    alone = rate_of(service, 0)
    with_others = rate_of(service, JOBS - 1)
    print(f"images planned a second of processor time, alone: {shown(alone, 0)}")
    print(f"beside {JOBS - 1} that wait: {shown(with_others, 0)}")
    print(f"ratio of the medians: {statistics.median(with_others) / statistics.median(alone):.2f}")


def rate_of(service: Service, others: int) -> list[float]:
    """Images per processor second in five periods of 4 s. Chunks are done when they are pending."""
    service.client.flushall()
    planner = service.planner("one")
    service.jobs(others, model="another model", name="other")
    service.jobs(1, name="big")
    for _ in range(JOBS // 16):
        planner.tick()
        work(service)
    rates = []
    for _ in range(5):
        done, spent, until = 0, 0.0, time.monotonic() + 4
        while time.monotonic() < until:
            began = time.process_time()
            planner.tick()
            spent += time.process_time() - began
            done += work(service)
        rates.append(done / spent)
    planner.release()
    return rates


def work(service: Service, max_chunks: int = 2 * WORKERS) -> int:
    """Mark pending chunks as done and return the number of images."""
    done = 0
    for _ in range(max_chunks):
        claim = service.ledger.claim(MODEL, "w", 60, 2)
        if not isinstance(claim, Claim):
            break
        service.ledger.mark(claim, Outcome(done=len(claim.items)))
        done += len(claim.items)
    return done


def two(service: Service, url: str) -> None:
    service.jobs(100)
    stopping = threading.Event()
    planners = [service.planner(name, service.new_ledger(url)) for name in ("one", "two")]

    def run(planner: Planner) -> None:
        while not stopping.is_set():
            planner.tick()

    threads = [threading.Thread(target=run, args=(planner,)) for planner in planners]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        work(service)
    stopping.set()
    for thread in threads:
        thread.join()
    each = [len(planner._owned) for planner in planners]
    print(
        f"100 jobs, two planners, 10 s: sources opened {service.opened} times; jobs of each: {each}"
    )


def failures(service: Service) -> None:
    """Store a million failures of each kind."""
    kinds = {"a line that is no JSON": {}, "a caption of 300 bytes": {"caption": "x" * 300}}
    for number, (what, metadata) in enumerate(kinds.items()):
        job = f"job{number}"
        service.ledger.create(new_job(job))
        lease = service.ledger.lease(job, "p", 3_600)
        assert lease
        before, cursor = service.memory(), ""
        for chunk in range(2_000):
            items = [bad(n, metadata) for n in range(chunk * 512, chunk * 512 + 512)]
            service.ledger.plan(job, lease.token, items, cursor, str(chunk))
            cursor = str(chunk)
            claim = service.ledger.claim(MODEL, "w", 60, 2)
            assert isinstance(claim, Claim)
            failed = [Failure.of(item, "list", str(item.problem), 1) for item in claim.items]
            service.ledger.mark(claim, Outcome(failures=tuple(failed)))
            if chunk in (1, 999, 1_999):
                grown = (service.memory() - before) / MB
                print(f"{what}: {(chunk + 1) * 512:,} failures are {grown:.2f} MB in Redis")
        read = [len(service.ledger.failures(job, 1_000, n)) for n in range(0, 1_024_000, 128_000)]
        assert read == [1_000] * 8
        began = time.monotonic()
        service.ledger.failures(job, 1_000, 900_000)
        print(f"{what}: a page of 1,000 of them takes {1_000 * (time.monotonic() - began):.0f} ms")


def bad(number: int, metadata: dict[str, str]) -> Item:
    name = f"line {number} of /data/photos/manifest.jsonl"
    return Item(id=name, uri=name, read="", metadata=metadata, problem="it is not JSON")


def kept(service: Service) -> None:
    for jobs in (1_000, KEPT):
        service.client.flushall()
        before = service.memory()
        keep(service, jobs)
        service.jobs(20)
        print(f"{jobs:,} jobs kept, {(service.memory() - before) / jobs:,.0f} bytes each")
        overviews = RedisOverviews(service.client, MODEL)
        for what, call in {
            "GET /v1/jobs": lambda: service.ledger.jobs(50),
            "of a key that sees one collection": lambda: service.ledger.jobs(
                50, sees=lambda name: name == "mine"
            ),
            "?state=running, as /v1/fleet asks": lambda: service.ledger.jobs(
                50, states=["queued", "running"]
            ),
            "?state=failed, of which there are none": lambda: service.ledger.jobs(
                50, states=["failed"]
            ),
            "/metrics": overviews.read,
        }.items():
            print(f"  {what}: {timed(call)}")


def timed(call: Callable[[], object]) -> str:
    times = []
    for _ in range(21):
        began = time.perf_counter()
        call()
        times.append(1_000 * (time.perf_counter() - began))
    return f"first {times[0]:.1f} ms, then {shown(times[1:])} ms"


def keep(service: Service, jobs: int) -> None:
    """Store ended jobs as the previous release did, whose indices are made at the first list."""
    pipe = service.client.pipeline(transaction=False)
    for n in range(jobs):
        job, collection = f"{n:016x}", "theirs" if n else "mine"
        new = new_job(job, collection=collection)
        fields: dict[str | bytes | int | float | bytearray | memoryview[int], str | int] = {
            "new": new.model_dump_json(), "state": "succeeded", "created_at": n, "planned": 1,
            "total": 10, "estimated": 10, "done": 10, "failed": 0, "skipped": 0, "chunks": 1,
            "cursor": "", "error": "", "waiting": "", "planner": "", "planner_until": 0,
            "planner_token": 1, "collection": collection, "retry_of": "", "key": "",
            "started_at": n, "finished_at": n, "model": MODEL, "version": 1,
        }  # fmt: skip
        pipe.hset(f"clipfleet:job:{job}", mapping=fields)
        for index in ("jobs", "jobs:ended", f"jobs:in:{collection}"):
            pipe.zadd(f"clipfleet:{index}", {job: n})
        if n % 5_000 == 4_999:
            pipe.execute()
    pipe.execute()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        url = running.enter_context(valkey(Path(scratch)))
        service = Service(url, Path(scratch))
        match sys.argv[1:]:
            case ["round"]:
                round_(service)
            case ["beside"]:
                beside(service)
            case ["two"]:
                two(service, url)
            case ["failures"]:
                failures(service)
            case ["kept"]:
                kept(service)
            case _:
                raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
