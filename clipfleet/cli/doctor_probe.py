"""Some seconds of real work, and where the time went: the probe of `clipfleet doctor`."""

import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from clipfleet.client import Client
from clipfleet.common.http.fleet import FleetOut
from clipfleet.errors import Error
from clipfleet.results import ENDED, Job

SEARCHES = 20
PATIENCE_S = 60.0  # with a machine that is so busy that no image is done in time
LOOK_S = 0.5
SETTLE_S = 8.0  # workers say what they did every few seconds
STAGES = ("read", "decode", "model", "store")


@dataclass(frozen=True)
class Stage:
    """`alone`: images/s that all workers could do if this were all there is to do."""

    name: str
    ms: float
    alone: float


@dataclass(frozen=True)
class Probe:
    """`rate`: images/s from the upload's end to the job's. `stages`: slowest first."""

    images: int
    seconds: float
    rate: float
    search_ms: float
    search_p95_ms: float
    stages: list[Stage] = field(default_factory=list)
    advice: str = ""


def probe(
    client: Client, images: Sequence[Path], seconds: float, said: Callable[[str], None]
) -> Probe:
    """Index `images` for at most so many seconds, search them, remove them. Needs the scope admin.

    Other work of the service slows it down. ValueError when none of the images can be indexed.
    """
    with _collection(client) as name:
        said("sending images")
        before = client.fleet()
        job = client.upload(name, list(images))
        said("indexing them")
        began = time.monotonic()
        job = _followed(client, job, seconds, _images(before))
        took = time.monotonic() - began
        said("searching them")
        times = [_timed_search(client, name, number) for number in range(SEARCHES)]
        said("asking the workers where the time went")
        after = _settled(client, before, job.done)
    # A job counts by the chunk, and may end within one; the model's count is everybody's.
    indexed = job.done if before.work_left else max(job.done, _images(after) - _images(before))
    if job.failed and not indexed:
        raise ValueError(f"{job.failed} images failed, none is in: {_why(client, job)}")
    stages = _stages(before, after)
    return Probe(
        images=indexed,
        seconds=took,
        rate=indexed / took,
        search_ms=statistics.median(times),
        search_p95_ms=sorted(times)[int(0.95 * len(times))],
        stages=stages,
        advice=advice(
            stages, indexed / took, on_gpu=any(w.device != "cpu" for w in before.workers)
        ),
    )


@contextmanager
def _collection(client: Client) -> Iterator[str]:
    name = f"doctor-{secrets.token_hex(4)}"
    client.create_collection(name)
    try:
        yield name
    finally:
        with suppress(Error):
            client.delete_collection(name)


def _followed(client: Client, job: Job, seconds: float, before: int) -> Job:
    """Until it has ended; cancelled when its time is over and some images went through the model,
    or after another PATIENCE_S without any."""
    until = time.monotonic() + seconds
    latest = until + PATIENCE_S
    while job.state not in ENDED:
        now = time.monotonic()
        if now > latest or (now > until and _images(client.fleet()) > before):
            job = client.cancel(job.id)
            until = latest = float("inf")
        time.sleep(LOOK_S if now > until else 0.05)
        job = client.job(job.id)
    return job


def _why(client: Client, job: Job) -> str:
    return client.failures(job).failures[0].reason


def _timed_search(client: Client, name: str, number: int) -> float:
    began = time.perf_counter()
    client.search(name, text=f"a drawing of {number} things", top_k=10)
    return 1e3 * (time.perf_counter() - began)


def _settled(client: Client, before: FleetOut, images: int) -> FleetOut:
    """The fleet once its workers have told of these images, or nearly."""
    until = time.monotonic() + SETTLE_S
    while True:
        now = client.fleet()
        if _images(now) - _images(before) >= images or time.monotonic() > until:
            return now
        time.sleep(0.5)


def _images(fleet: FleetOut) -> int:
    return sum(worker.images for worker in fleet.workers)


def _stages(before: FleetOut, after: FleetOut) -> list[Stage]:
    """What the workers that were there all along did between the two, slowest stage first."""
    old = {worker.id: worker for worker in before.workers}
    did = [(old[one.id], one) for one in after.workers if one.id in old]
    did = [(was, now) for was, now in did if now.images > was.images]
    images = sum(now.images - was.images for was, now in did)
    found = []
    for name in STAGES:
        spent = sum(now.spent.get(name, 0.0) - was.spent.get(name, 0.0) for was, now in did)
        hands = sum(now.decode_threads if name in ("read", "decode") else 1 for _, now in did)
        if images and spent > 0:
            found.append(Stage(name, 1e3 * spent / images, images * hands / spent))
    return sorted(found, key=lambda stage: stage.alone)


FIRST = {
    "read": "the sources are slow: bring the images nearer, or raise CLIPFLEET_DECODE_THREADS, "
    "whose threads wait for them",
    "decode": "decoding is the slowest: raise CLIPFLEET_DECODE_THREADS up to the machine's cores, "
    "or add workers on other machines; smaller images cost less",
    "model": "the model is the slowest, as it should be: add ingest workers, one per GPU",
    "store": "Milvus is the slowest: give it more memory and cores, or more data nodes",
}
ON_CPU = "the model is the slowest: a GPU does many times more; or add ingest workers on other "
ON_CPU += "machines, or take a smaller model"
WAITING = "the workers waited for work more than they worked: the machine is busy with something "
WAITING += "else, other jobs take turns, or the planner or Redis is slow"
NOTHING = "nothing came through: the workers are busy or very slow; look at `clipfleet jobs list`, "
NOTHING += "or give the probe more time (--seconds 60)"


def advice(stages: Sequence[Stage], rate: float, *, on_gpu: bool) -> str:
    """What to change first."""
    if not stages:
        return NOTHING
    slowest = stages[0]
    if rate < slowest.alone / 3:
        return WAITING
    if slowest.name == "model" and not on_gpu:
        return ON_CPU
    if slowest.name != "model" and on_gpu:
        return f"the GPU waits: {FIRST[slowest.name]}"
    return FIRST[slowest.name]
