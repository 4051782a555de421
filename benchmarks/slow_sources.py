"""Measures a folder job alone, and during a job of 10,000 URLs whose hosts never answer.

    python benchmarks/slow_sources.py PHOTOS [--images 1500] [--rounds 3] [--hosts 1] [--total-s 6]

There is one worker, with the model hash:64, which takes no time. Limit: the folder job takes at
most 1.3 times its time alone. It also prints how fast the slow job failed, with the circuit breaker
and without.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psutil
import redis
from parts import environment, linked, process, shown, until

from clipfleet import Client
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.embedded import commands, processes

MODEL = "hash:64"
URLS = 10_000
WATCHED_S = 3.0  # times the limit of a fetch: so long the slow job's failures are counted


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that accepts connections to all of 127.0.0.0/8 and never answers."""
    with socket.create_server(("", 0), backlog=1_024) as server, ExitStack() as kept:

        def accept() -> None:
            while True:
                try:
                    kept.enter_context(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def service(folder: Path, total_s: float, breaker: bool) -> Iterator[tuple[Client, psutil.Process]]:
    """Run a service with one ingest worker, and yield a client and the worker."""
    folder.mkdir()
    with ExitStack() as running:
        env = {
            **environment(running, folder, MODEL),
            "CLIPFLEET_FETCH__ALLOWED_NETWORKS": json.dumps(["127.0.0.0/8"]),
            "CLIPFLEET_FETCH__TOTAL_S": str(total_s),
            "CLIPFLEET_FETCH__READ_S": str(total_s / 3),
            "CLIPFLEET_FETCH__BREAKER_TIMEOUTS": "8" if breaker else "0",
        }
        port = commands.free_port()
        gateway = processes.gateway(commands.LOOPBACK, port)
        running.enter_context(process(gateway, folder / "gateway.log", **env))
        running.enter_context(process(processes.planner(), folder / "planner.log", **env))
        command = processes.worker("one", ["ingest"], MODEL)
        worker = running.enter_context(process(command, folder / "worker.log", **env))
        client = running.enter_context(Client(f"http://{commands.LOOPBACK}:{port}"))
        fleet = RedisFleet(redis.Redis.from_url(env["CLIPFLEET_REDIS_URL"]))
        until(lambda: len(fleet.alive()) == 1)
        for name in ("folder", "slow"):
            client.create_collection(name, model=MODEL, dim=64)
        yield client, worker


def seconds(client: Client, folder: Path, images: int) -> float:
    """Seconds from the creation of the job to its end. The client looks only every 0.3 s."""
    job = client.index("folder", folder, on_existing="replace", wait=True)
    assert job.done == images, job
    return (job.finished_at or 0) - job.created_at


def slow_job(client: Client, port: int, hosts: int) -> str:
    urls = [
        f"http://127.1.{n % hosts // 250}.{n % hosts % 250 + 1}:{port}/{n}" for n in range(URLS)
    ]
    return client.index("slow", urls).id


def is_planned(client: Client, job_id: str) -> bool:
    return client.job(job_id).total > 0


def failures(client: Client, job_id: str, seconds: float) -> list[tuple[float, int]]:
    """Pairs of seconds and the number of failures by then."""
    began, seen = time.monotonic(), []
    while (passed := time.monotonic() - began) < seconds:
        job = client.job(job_id)
        seen.append((passed, job.failed))
        if job.finished_at:
            break
        time.sleep(0.1)
    return seen


def summary(seen: list[tuple[float, int]]) -> str:
    first = next((at for at, failed in seen if failed), None)
    last_at, failed = seen[-1]
    begun = "none" if first is None else f"the first after {first:.1f} s"
    return f"{failed:,} of {URLS:,} failed within {last_at:.1f} s, {begun}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--total-s", type=float, default=6.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, silent() as port:
        photos = linked(args.photos, Path(scratch) / "photos", args.images)
        for breaker in (True, False):
            print(f"{args.hosts} silent hosts, breaker {'on' if breaker else 'off'}")
            folder = Path(scratch) / f"breaker-{breaker}"
            with service(folder, args.total_s, breaker) as (client, worker):
                seconds(client, photos, args.images)
                alone, beside = [], []
                for _ in range(args.rounds):
                    alone.append(seconds(client, photos, args.images))
                    job = slow_job(client, port, args.hosts)
                    until(partial(is_planned, client, job))
                    with ThreadPoolExecutor(1) as pool:
                        watched = pool.submit(failures, client, job, WATCHED_S * args.total_s)
                        beside.append(seconds(client, photos, args.images))
                        print(f"  slow job: {summary(watched.result())}")
                    client.cancel(job)
                ratios = [during / before for before, during in zip(alone, beside, strict=True)]
                print(
                    f"  alone {shown(alone, 2)} s, beside {shown(beside, 2)} s, "
                    f"ratio {shown(ratios, 2)}"
                )
                print(f"  worker: {worker.num_threads()} threads; load {os.getloadavg()[0]:.1f}")
                assert worker.is_running(), "the worker ended itself"
                print(f"  median ratio {statistics.median(ratios):.2f}; the limit is 1.3")


if __name__ == "__main__":
    main()
