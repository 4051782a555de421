"""Runs the parts of a service as separate processes, for other benchmarks."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
import redis

from clipfleet import Client
from clipfleet.common.collection import Collection
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.common.settings import CARRIED_MODEL
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands, processes

HERE = Path(__file__).parent
CELERY = [sys.executable, "-m", "celery", "-A", "sleeper", "worker", "-l", "WARNING"]
SLEEPER = [*CELERY, "-Q", "ingest.sleeper"]
QUERY = ["-Q", f"query.{CARRIED_MODEL}", "-n", "query@%h", "--without-mingle", "--without-gossip"]
QUERY_WORKER = [sys.executable, "-m", "celery", "-A", "clipfleet.workers.app", "worker", *QUERY]
PLANNER = [sys.executable, "-m", "clipfleet.workers.planner"]


@contextmanager
def process(command: Sequence[str], log: Path, **env: str) -> Iterator[psutil.Process]:
    """Run a process with its output in `log`. It gets SIGTERM at the end of the block."""
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(60)


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    port = commands.free_port()
    url = commands.valkey_url(port, "secret")
    with process(commands.valkey(folder / "valkey", port, "secret"), folder / "valkey.log"):
        until(lambda: redis.Redis.from_url(url).ping())
        yield url


@contextmanager
def milvus(folder: Path) -> Iterator[str]:
    port = commands.free_port()
    command = commands.milvus_lite(folder / "milvus", port)
    with process(command, folder / "milvus.log", **commands.MILVUS_LITE_ENVIRONMENT):
        yield commands.milvus_uri(port)


@contextmanager
def milvus_server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the server of the wheel `milvus`, and yield its address and its process."""
    port = commands.free_port()
    command = [commands.script("milvus-server"), "--data", str(folder), "--proxy-port", str(port)]
    uri, nodes = commands.milvus_uri(port), []
    try:
        with process(command, folder / "log") as launcher:
            try:
                until(partial(_answers, uri))
                yield uri, launcher.children()[0]
            finally:
                nodes = launcher.children()
    finally:  # after the launcher, which neither ends its child nor waits for it
        for node in nodes:
            with suppress(psutil.NoSuchProcess):
                node.terminate()
        for slow in psutil.wait_procs(nodes, timeout=30)[1]:
            slow.kill()
            slow.wait(30)


def _answers(uri: str) -> bool:
    MilvusStore(uri, timeout_s=5).ping()
    return True


@contextmanager
def up(
    data: Path, model: str = CARRIED_MODEL, more: Sequence[str] = ()
) -> Iterator[tuple[Client, int]]:
    """Run `clipfleet up`, with more options, and yield a client and the port."""
    port = commands.free_port()
    command = [commands.script("clipfleet"), "up", "--data", str(data), "--port", str(port)]
    child = subprocess.Popen([*command, "--model", model, *more])
    try:
        with Client(f"http://{commands.LOOPBACK}:{port}") as client:
            until(lambda: client.create_collection("ready"))
            yield client, port
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)


def environment(running: ExitStack, folder: Path, model: str) -> dict[str, str]:
    """Start Valkey and milvus-lite, and yield the environment for the other parts."""
    return {
        "CLIPFLEET_REDIS_URL": running.enter_context(valkey(folder)),
        "CLIPFLEET_MILVUS_URI": running.enter_context(milvus(folder)),
        "CLIPFLEET_SOURCE_ROOTS": '["/"]',
        "CLIPFLEET_BLOBS": str(folder / "blobs"),
        "CLIPFLEET_MODEL": model,
    }


@contextmanager
def sink(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """A proxy in front of the Milvus of an environment that stores nothing."""
    port = commands.free_port()
    address = env["CLIPFLEET_MILVUS_URI"].rpartition("/")[2]
    command = [sys.executable, str(HERE / "upsert_sink.py"), address, str(port)]
    with process(command, folder / "sink.log"):
        yield commands.milvus_uri(port)


@contextmanager
def sleepers(
    folder: Path, workers: int, *, stores: bool = True, **more: str
) -> Iterator[tuple[Client, str]]:
    """Run a whole service whose model sleeps, and yield a client and the address of its Redis.

    Args:
        stores: whether upserts reach Milvus; see upsert_sink.py.
        more: additional environment variables of the processes.
    """
    with ExitStack() as running:
        env = environment(running, folder, "sleeper")
        if not stores:
            env["CLIPFLEET_MILVUS_URI"] = running.enter_context(sink(folder, env))
        env = {
            **env,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            **more,
        }
        port = commands.free_port()
        programs = [processes.gateway(commands.LOOPBACK, port), PLANNER]
        programs += [[*SLEEPER, "-n", f"w{n}@%h"] for n in range(workers)]
        for number, program in enumerate(programs):
            running.enter_context(process(program, folder / f"{number}.log", **env))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        url = env["CLIPFLEET_REDIS_URL"]
        fleet = RedisFleet(redis.Redis.from_url(url))
        until(lambda: len(fleet.alive()) == workers)
        client.create_collection("c", model="sleeper", dim=int(more.get("SLEEPER_DIM", "16")))
        yield client, url


@dataclass(frozen=True)
class Searchable:
    """A service to search.

    Attributes:
        ports: ports of the gateways.
        milvus: address of Milvus.
        collection: the collection that holds the vectors.
        worker: the query worker.
    """

    ports: tuple[int, ...]
    milvus: str
    collection: Collection
    worker: psutil.Process


@contextmanager
def searchable(
    folder: Path, vectors: Path, gateways: Sequence[Mapping[str, str]]
) -> Iterator[Searchable]:
    """Gateways with these settings before one query worker of the carried model, and a collection
    `c` of the vectors; nothing else runs."""
    with ExitStack() as running:
        url, uri = running.enter_context(valkey(folder)), running.enter_context(milvus(folder))
        env = {
            "CLIPFLEET_REDIS_URL": url,
            "CLIPFLEET_MILVUS_URI": uri,
            "CLIPFLEET_BLOBS": str(folder / "blobs"),
            "CLIPFLEET_MODEL": CARRIED_MODEL,
        }
        worker = running.enter_context(process(QUERY_WORKER, folder / "worker.log", **env))
        ports = tuple(commands.free_port() for _ in gateways)
        for port, more in zip(ports, gateways, strict=True):
            program, log = processes.gateway(commands.LOOPBACK, port), folder / f"{port}.log"
            running.enter_context(process(program, log, **{**env, **more}))
        redis_client = redis.Redis.from_url(url)
        until(lambda: len(RedisFleet(redis_client).alive()) == 1)
        for port in ports:
            with Client(f"http://{commands.LOOPBACK}:{port}") as client:
                until(partial(client.create_collection, "c"))
        with Client(f"http://{commands.LOOPBACK}:{ports[0]}") as client:
            fill(client, "c", vectors)
        collection = RedisCatalogue(redis_client).find("c")
        assert collection
        yield Searchable(ports, uri, collection, worker)


def fill(client: Client, collection: str, vectors: Path) -> None:
    """Upsert the vectors of benchmarks/vectors.py, and wait longer than Milvus' staleness."""
    with np.load(vectors) as arrays:
        rows, labels = arrays["rows"], arrays["labels"]
    client.upsert(
        collection,
        (
            {"id": str(n), "values": row, "label": str(label)}
            for n, (row, label) in enumerate(zip(rows, labels, strict=True))
        ),
    )
    time.sleep(12)


PROGRAMS = {
    "valkey": "valkey",
    "upsert_sink": "sink",
    "milvus": "milvus",
    "uvicorn": "gateway",
    "planner": "planner",
    "forkserver": "feeders",
    "celery": "worker",
}


def cpu_s() -> dict[str, float]:
    """Seconds of processor time of each part."""
    spent: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        part = next((name for word, name in PROGRAMS.items() if word in line), "other")
        spent[part] = spent.get(part, 0.0) + times.user + times.system
    return spent


def timed_jobs(client: Client, folder: Path, images: int, rounds: int, dim: int) -> list[float]:
    """Index a folder into new collections; prints the processor time of each part.

    Returns:
        Images per second of each round, from the start of the job to its end.
    """
    rates = []
    for number in range(rounds):
        name = f"round-{number}"
        client.create_collection(name, model="sleeper", dim=dim)
        before = cpu_s()
        job = client.index(name, folder, wait=True)
        assert job.done == images, job
        spent = {part: seconds - before.get(part, 0.0) for part, seconds in cpu_s().items()}
        rates.append(job.done / ((job.finished_at or 0) - (job.started_at or 0)))
        each = ", ".join(f"{p} {1e3 * s / job.done:.3f}" for p, s in sorted(spent.items()))
        total = 1e3 * sum(spent.values()) / job.done
        print(
            f"{rates[-1]:.0f} images/s; core-ms an image: {each}, together {total:.3f}", flush=True
        )
    return rates


def shown(values: Sequence[float], digits: int = 1) -> str:
    """The median, the minimum and the maximum as text."""
    least, middle, greatest = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {greatest:.{digits}f})"


def linked(photos: Path, folder: Path, images: int) -> Path:
    """Create a folder of links to the photos, repeated until there are enough."""
    kinds = (".jpg", ".jpeg")
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in kinds)
    folder.mkdir()
    for number, path in enumerate(islice(cycle(paths), images)):
        (folder / f"{number:06d}.jpg").symlink_to(path.resolve())
    return folder


def until(done: Callable[[], object], timeout_s: float = 180.0) -> None:
    """Call `done` until it returns true. Errors are ignored until the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if done():
                return
        except Exception:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {timeout_s:g} s")
        time.sleep(0.1)
