"""How long one text query takes while nothing else happens, and beside a bulk job that never ends.

    python benchmarks/under_load.py PHOTOS VECTORS.npz [--rounds 3] [--queries 300]

`clipfleet up` with the carried model on this machine; the job writes into the very collection that
is searched, which holds the vectors that benchmarks/vectors.py made. The bar: p99 within twice.
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
    asked = parser.parse_args()
    words = texts()
    with tempfile.TemporaryDirectory() as made, up(Path(made) / "data") as (client, port):
        client.create_collection("c")
        fill(client, "c", asked.vectors)
        photos = linked(asked.photos, Path(made) / "photos", IMAGES)
        rounds = []
        for number in range(asked.rounds):
            alone = asyncio.run(waits(port, asked.queries, words))
            loaded, rate = beside_a_job(client, port, photos, asked.queries, words)
            rounds.append((alone, loaded))
            said = f"idle {percentiles(alone)}, beside a job {percentiles(loaded)} ms"
            said += f"; {rate:.1f} images/s, load {os.getloadavg()[0]:.1f}"
            print(f"round {number}: {said}", flush=True)
    for point in (50, 99):
        idle, beside = ([float(np.percentile(one[n], point)) for one in rounds] for n in (0, 1))
        ratios = [b / a for a, b in zip(idle, beside, strict=True)]
        print(f"p{point}: idle {shown(idle)}, beside a job {shown(beside)} ms")
        print(f"  ratio {shown(ratios, 2)}")


async def waits(port: int, queries: int, words: Iterator[str]) -> list[float]:
    """Milliseconds of one query after the other."""
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
