"""Measures a text query on an idle service, and during a bulk job that does not end.

    python benchmarks/under_load.py PHOTOS VECTORS.npz [--rounds 3] [--queries 300]

Runs `clipfleet up` with clipfleet-mini on this machine. The job writes into the collection that is
searched, which holds the vectors of benchmarks/vectors.py. Limit: twice the p99.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from callers import Caller, texts
from parts import fill, linked, shown, until, up

from clipfleet import Client

IMAGES = 20_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=300)
    args = parser.parse_args()
    words = texts()
    with tempfile.TemporaryDirectory() as scratch, up(Path(scratch) / "data") as (client, port):
        client.create_collection("c")
        fill(client, "c", args.vectors)
        photos = linked(args.photos, Path(scratch) / "photos", IMAGES)
        rounds = []
        for number in range(args.rounds):
            alone = asyncio.run(waits(port, args.queries, words))
            loaded, rate = beside_a_job(client, port, photos, args.queries, words)
            rounds.append((alone, loaded))
            message = f"idle {percentiles(alone)}, beside a job {percentiles(loaded)} ms"
            message += f"; {rate:.1f} images/s, load {os.getloadavg()[0]:.1f}"
            print(f"round {number}: {message}", flush=True)
    for point in (50, 99):
        idle, beside = ([float(np.percentile(pair[n], point)) for pair in rounds] for n in (0, 1))
        ratios = [b / a for a, b in zip(idle, beside, strict=True)]
        print(f"p{point}: idle {shown(idle)}, beside a job {shown(beside)} ms")
        print(f"  ratio {shown(ratios, 2)}")


async def waits(port: int, queries: int, words: Iterator[str]) -> list[float]:
    """Milliseconds of queries that follow each other."""
    async with Caller(port, "/v1/collections/c/search") as caller:
        return [1e3 * await caller.search(next(words)) for _ in range(queries)]


def beside_a_job(
    client: Client, port: int, photos: Path, queries: int, words: Iterator[str]
) -> tuple[list[float], float]:
    job = client.index("c", photos, on_existing="replace")
    until(lambda: client.job(job).done)
    began, done = time.monotonic(), client.job(job).done
    measured = asyncio.run(waits(port, queries, words))
    now = client.job(job)
    assert now.finished_at is None, "the job was too short"
    client.cancel(job)
    client.wait(job)
    rate = (now.done - done) / (time.monotonic() - began)
    time.sleep(12)  # what was written is then older than Milvus' staleness, as before
    return measured, rate


def percentiles(values: list[float]) -> str:
    return "p50 {:.0f}, p95 {:.0f}, p99 {:.0f}".format(*np.percentile(values, (50, 95, 99)))


if __name__ == "__main__":
    main()
