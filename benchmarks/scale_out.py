"""Measures the rate with more workers, with a model that sleeps a fixed time per image.

    python benchmarks/scale_out.py PHOTOS [--workers 1 2 4 8] [--seconds 30]

Everything but the model is real: Valkey, milvus-lite, gateway, planner, one process per worker.
Efficiency is the rate divided by that of the first run times the number of workers. The overhead of
a chunk is the time that its worker needed in addition to the sleep.
"""

import argparse
import os
import tempfile
from pathlib import Path

import redis
from parts import linked, sleepers
from sleeper import SLEEP_S

from clipfleet.common.ledger.redis import RedisLedger


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    first = 0.0
    for workers in args.workers:
        images = int(workers * args.seconds / SLEEP_S)
        rate, overhead = measured(workers, args.photos, images)
        first = first or rate / workers
        print(
            f"{workers} workers: {rate:.1f} images/s, efficiency {rate / workers / first:.3f}, "
            f"{rate * SLEEP_S / workers:.3f} of what sleeping alone allows, "
            f"overhead {1e3 * overhead:.0f} ms a chunk, load {os.getloadavg()[0]:.1f}"
        )


def measured(workers: int, photos: Path, images: int) -> tuple[float, float]:
    """Images per second, and seconds of overhead per chunk."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        sleepers(Path(scratch), workers) as (client, url),
    ):
        client.index("c", linked(photos, Path(scratch) / "few", 40 * workers), wait=True)
        job = client.index("c", linked(photos, Path(scratch) / "all", images), wait=True)
        assert job.done == images, job
        seconds = (job.finished_at or 0) - (job.started_at or 0)
        chunks = RedisLedger(redis.Redis.from_url(url)).job(job.id).chunks
        return images / seconds, (seconds * workers - images * SLEEP_S) / chunks


if __name__ == "__main__":
    main()
