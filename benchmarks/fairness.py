"""Measures a job of 100 images, alone and while a large job runs, with a model that sleeps.

    python benchmarks/fairness.py PHOTOS [--rounds 3]

Limit: twice its time alone, plus one chunk.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from parts import linked, sleepers, until

from clipfleet import Client
from clipfleet.common.settings import Settings

SMALL, LARGE = 100, 20_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    chunk_s = Settings().chunk_s
    with tempfile.TemporaryDirectory() as scratch, sleepers(Path(scratch), 1) as (client, _):
        small = linked(args.photos, Path(scratch) / "small", SMALL)
        client.index("c", small, wait=True)  # the worker's speed is known from here on
        alone = [seconds(client, small) for _ in range(args.rounds)]
        large = client.index("c", linked(args.photos, Path(scratch) / "large", LARGE))
        until(lambda: client.job(large).done > 0)
        beside = [seconds(client, small) for _ in range(args.rounds)]
        assert client.job(large).finished_at is None, "the large job was too short"
        client.cancel(large)
    bar = 2 * statistics.median(alone) + chunk_s
    print(f"alone {shown(alone)} s; beside {LARGE:,} images {shown(beside)} s; bar {bar:.1f} s")
    print(f"a chunk takes {chunk_s:.0f} s; load {os.getloadavg()[0]:.1f}")


def seconds(client: Client, folder: Path) -> float:
    began = time.monotonic()
    job = client.index("c", folder, on_existing="replace", wait=True)
    assert job.done == SMALL, job
    return time.monotonic() - began


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
