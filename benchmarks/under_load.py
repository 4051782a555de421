"""Measures text queries on an idle service, and during a bulk job that does not end.

    python benchmarks/under_load.py PHOTOS VECTORS.npz [--rounds 1] [--rate 20] [--seconds 60]

Runs `clipfleet up` with clipfleet-mini on this machine. The job writes into the collection that is
searched, which holds the vectors of benchmarks/vectors.py. Queries are sent at times that are fixed
in advance (see load.py). The images that the job has done meanwhile are counted: at least
MIN_IMAGES, or the run does not count. Limit: 1.5 times the p99.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import load
from parts import fill, linked, shown, until, up

from clipfleet import Client

IMAGES = 40_000
MIN_IMAGES = 500


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, up(Path(scratch) / "data") as (client, port):
        client.create_collection("c")
        fill(client, "c", args.vectors)
        photos = linked(args.photos, Path(scratch) / "photos", IMAGES)
        url = f"http://127.0.0.1:{port}"
        options = ["--url", url, "--collection", "c", "--rate", str(args.rate)]
        queries = load.arguments([*options, "--seconds", str(args.seconds)])
        rounds = []
        for number in range(args.rounds):
            idle = measured(queries)
            beside, images = beside_a_job(client, photos, queries)
            rounds.append((idle["latency_ms"], beside["latency_ms"]))
            print(f"round {number}: idle {idle['latency_ms']} ms")
            print(f"  beside a job {beside['latency_ms']} ms, {images} images done meanwhile")
            print(f"  stages {beside['server_ms']}, load {os.getloadavg()[0]:.1f}", flush=True)
    for point in ("p50", "p99"):
        ratios = [beside[point] / idle[point] for idle, beside in rounds]
        print(f"{point}: beside a job / idle {shown(ratios, 2)}")


def measured(queries: argparse.Namespace) -> dict[str, Any]:
    """The report of load.py; every query must have been answered."""
    result = asyncio.run(load.measure(queries))
    assert result["answers"] == result["requests"] > 0, result["errors"]
    return result


def beside_a_job(
    client: Client, photos: Path, queries: argparse.Namespace
) -> tuple[dict[str, Any], int]:
    """The report, and the images that the job did while the queries ran."""
    job = client.index("c", photos, on_existing="replace")
    until(lambda: client.job(job).done)
    done = client.job(job).done
    result = measured(queries)
    now = client.job(job)
    assert now.finished_at is None, "the job was too short"
    images = now.done - done
    assert images >= MIN_IMAGES, f"the job did only {images} images meanwhile"
    client.cancel(job)
    client.wait(job)
    time.sleep(12)  # what was written is then older than Milvus' staleness, as before
    return result, images


if __name__ == "__main__":
    main()
