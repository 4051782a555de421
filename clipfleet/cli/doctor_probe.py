"""The probe of `clipfleet doctor`: indexes and searches images, and finds the slowest stage."""

import secrets
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from clipfleet.client import Client
from clipfleet.common.http.fleet import FleetOut, WorkerOut
from clipfleet.errors import Error
from clipfleet.results import ENDED, Job

SEARCHES = 20
GRACE_S = 60.0  # extra time if no image is done by then: the machine is very busy
POLL_S = 0.5
SETTLE_S = 8.0  # workers report their counts every few seconds
# The stages of indexing, and what workers time of each: feeders read and decode.
STAGES = {
    "fetch": ("fetch",),
    "blobs": ("blob",),
    "feeders": ("read", "decode"),
    "device": ("model",),
    "store": ("store",),
}


@dataclass(frozen=True)
class StageRate:
    """One stage of indexing.

    Attributes:
        name: one of STAGES.
        ms: milliseconds of a worker's thread or feeder per image.
        alone: images/s of all workers if there were no other stage.
        parts: milliseconds per image of what is timed in the stage, by STAGES.
    """

    name: str
    ms: float
    alone: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """Results of the probe.

    Attributes:
        images: images that were indexed.
        seconds: time from the end of the upload to the end of the job.
        rate: images/s in this time.
        search_ms: median time of a search.
        search_p95_ms: 95th percentile of the time of a search.
        stages: stages of indexing, slowest first.
        advice: what to change first.
    """

    images: int
    seconds: float
    rate: float
    search_ms: float
    search_p95_ms: float
    stages: list[StageRate] = field(default_factory=list)
    advice: str = ""


def probe(
    client: Client, images: Sequence[Path], seconds: float, report: Callable[[str], None]
) -> Probe:
    """Index images, search them and delete them.

    Other work of the service makes the numbers worse.

    Args:
        client: a client with scope admin.
        images: the image files.
        seconds: time after which the job is cancelled.
        report: called with the current step.

    Raises:
        ValueError: none of the images can be indexed.
    """
    with _collection(client) as name:
        report("sending images")
        before = client.fleet()
        job = client.upload(name, list(images))
        report("indexing images")
        began = time.monotonic()
        job = _run_job(client, job, seconds, _images(before))
        took = time.monotonic() - began
        report("searching")
        times = [_timed_search(client, name, number) for number in range(SEARCHES)]
        report("reading the workers' counts")
        after = _fleet_after(client, before, job.done)
    # A cancelled job counts whole chunks only. The workers' counts include other jobs.
    indexed = job.done if before.work_left else max(job.done, _images(after) - _images(before))
    if job.failed and not indexed:
        raise ValueError(f"all {job.failed} images failed: {_first_reason(client, job)}")
    rates = stages(before, after)
    return Probe(
        images=indexed,
        seconds=took,
        rate=indexed / took,
        search_ms=statistics.median(times),
        search_p95_ms=sorted(times)[int(0.95 * len(times))],
        stages=rates,
        advice=advice(
            rates,
            indexed / took,
            on_gpu=any(worker.device != "cpu" for worker in before.workers),
            spare_cores=has_spare_cores(before.workers),
        ),
    )


@contextmanager
def _collection(client: Client) -> Iterator[str]:
    """A collection that is gone afterwards, with its jobs, however the block ends."""
    name = f"doctor-{secrets.token_hex(4)}"
    try:
        client.create_collection(name)
        yield name
    finally:
        with suppress(Error):
            for job in client.jobs(collection=name):
                client.delete_job(job)
        with suppress(Error):
            client.delete_collection(name)


def _run_job(client: Client, job: Job, seconds: float, before: int) -> Job:
    """Wait for a job, and cancel it when its time is over.

    It gets GRACE_S more if no image has gone through the model by then.
    """
    until = time.monotonic() + seconds
    latest = until + GRACE_S
    while job.state not in ENDED:
        now = time.monotonic()
        if now > latest or (now > until and _images(client.fleet()) > before):
            job = client.cancel(job.id)
            until = latest = float("inf")
        time.sleep(POLL_S if now > until else 0.05)
        job = client.job(job.id)
    return job


def _first_reason(client: Client, job: Job) -> str:
    return client.failures(job).failures[0].reason


def _timed_search(client: Client, name: str, number: int) -> float:
    began = time.perf_counter()
    client.search(name, text=f"a drawing of {number} things", top_k=10)
    return 1e3 * (time.perf_counter() - began)


def _fleet_after(client: Client, before: FleetOut, images: int) -> FleetOut:
    """The fleet once its workers have counted the images, or after SETTLE_S."""
    until = time.monotonic() + SETTLE_S
    while True:
        now = client.fleet()
        if _images(now) - _images(before) >= images or time.monotonic() > until:
            return now
        time.sleep(0.5)


def _images(fleet: FleetOut) -> int:
    return sum(worker.images for worker in fleet.workers)


def stages(before: FleetOut, after: FleetOut) -> list[StageRate]:
    """The rates of the stages between two looks at a fleet, slowest first.

    Args:
        before: the first look.
        after: the second look. Workers that were not alive at both times do not count.
    """
    old = {worker.id: worker for worker in before.workers}
    pairs = [(old[worker.id], worker) for worker in after.workers if worker.id in old]
    pairs = [(was, now) for was, now in pairs if now.images > was.images]
    images = sum(now.images - was.images for was, now in pairs)
    rates = []
    for name, timed in STAGES.items():
        parts = {
            part: sum(now.spent.get(part, 0.0) - was.spent.get(part, 0.0) for was, now in pairs)
            for part in timed
        }
        spent = sum(parts.values())
        if images and spent > 0:
            at_once = sum(_concurrency(now, timed[-1]) for _, now in pairs)
            each = {part: 1e3 * seconds / images for part, seconds in parts.items() if seconds}
            rates.append(StageRate(name, 1e3 * spent / images, images * at_once / spent, each))
    return sorted(rates, key=lambda stage: stage.alone)


def _concurrency(worker: WorkerOut, timed: str) -> int:
    """How much of a stage a worker does at once; older workers announce their feeders alone."""
    return worker.concurrency.get(timed, worker.feeders if timed == "decode" else 1)


def has_spare_cores(workers: Sequence[WorkerOut]) -> bool:
    """Whether a host with GPUs has cores without a feeder, beside one for each of its workers."""
    hosts: dict[str, list[WorkerOut]] = defaultdict(list)
    for worker in workers:
        if "ingest" in worker.lanes:
            hosts[worker.host].append(worker)
    return any(
        sum(worker.feeders + 1 for worker in there) < there[0].cores
        for there in hosts.values()
        if all(worker.device != "cpu" for worker in there)
    )


STARVED = "the device is starved"
SLOWEST_ADVICE = {
    "fetch": "servers of others are the slowest stage: raise CLIPFLEET_FETCH__PER_HOST, "
    "CLIPFLEET_FETCH__PER_BUCKET or CLIPFLEET_FETCH__CONCURRENCY if they permit it",
    "blobs": "reading uploads from the blob store is the slowest stage: move CLIPFLEET_BLOBS "
    "nearer to the workers, or add ingest workers",
    "read": "reading the files in the feeders is the slowest stage: move the images nearer, or "
    "raise CLIPFLEET_FEEDERS, also beyond the number of cores",
    "decode": "decoding in the feeders is the slowest stage: use smaller images, or add ingest "
    "workers on other hosts",
    "device": "the device is busy and the slowest stage, as it should be: add ingest workers, one "
    "per GPU",
    "store": "the store is behind: Milvus is the slowest stage: give it more memory, more cores or "
    "more data nodes",
}
MORE_FEEDERS_ADVICE = (
    "decoding in the feeders is the slowest stage, and cores have no feeder: raise "
    "CLIPFLEET_FEEDERS up to the number of cores"
)
MODEL_ON_CPU_ADVICE = (
    "the model is the slowest stage: use a GPU, which is many times faster, add ingest workers on "
    "other machines, or use a smaller model"
)
IDLE_ADVICE = (
    "the workers were idle most of the time: the machine is busy with something else, other jobs "
    "take turns, or the planner or Redis is slow"
)
NO_IMAGE_ADVICE = (
    "no image was indexed: the workers are busy or very slow; look at `clipfleet jobs list`, or "
    "give the probe more time (--seconds 60)"
)


def advice(
    rates: Sequence[StageRate], rate: float, *, on_gpu: bool, spare_cores: bool = False
) -> str:
    """What to change first.

    Args:
        rates: those of the stages of indexing, slowest first.
        rate: images/s that were measured.
        on_gpu: a worker has a GPU.
        spare_cores: what `has_spare_cores` returns.
    """
    if not rates:
        return NO_IMAGE_ADVICE
    slowest = rates[0]
    if rate < slowest.alone / 3:
        return IDLE_ADVICE
    if slowest.name == "device" and not on_gpu:
        return MODEL_ON_CPU_ADVICE
    if slowest.name in ("device", "store"):
        return SLOWEST_ADVICE[slowest.name]
    name = slowest.name
    if name == "feeders":
        name = max(slowest.parts, key=lambda part: slowest.parts[part])
    is_decode = name == "decode" and spare_cores
    return f"{STARVED}: {MORE_FEEDERS_ADVICE if is_decode else SLOWEST_ADVICE[name]}"
