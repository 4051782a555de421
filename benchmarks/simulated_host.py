"""Measures the chain on a simulated host with 16 cores and a GPU: what is left when those sleep.

    python benchmarks/simulated_host.py PHOTOS [--images 60000] [--rounds 3] [--dim 512] [--stores]

Sixteen feeders sleep 1.6 ms an image, and the device sleeps 0.1 ms an image: both can do 10,000
images a second. Everything else is real: Valkey, gateway, planner, one worker with its client of
the store. Upserts are not stored, since milvus-lite alone takes half a core-millisecond an image;
with --stores they are. The processor time of a part is that of its processes.
"""

import argparse
import tempfile
from pathlib import Path

from parts import linked, shown, sleepers, timed_jobs

FEEDERS, FEED_S, DEVICE_S = 16, 0.0016, 0.0001


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--thumbnail", type=int, default=8_000, help="bytes")
    parser.add_argument("--stores", action="store_true", help="store the embeddings")
    args = parser.parse_args()
    simulated = {
        "CLIPFLEET_FEEDERS": str(FEEDERS),
        "FEED_THUMBNAIL": str(args.thumbnail),
        "FEED_S": str(FEED_S),
        "SLEEPER_S": str(DEVICE_S),
        "SLEEPER_DIM": str(args.dim),
        "SLEEPER_BATCH": "256",
    }
    with (
        tempfile.TemporaryDirectory() as scratch,
        sleepers(Path(scratch), 1, stores=args.stores, **simulated) as (client, _),
    ):
        client.index("c", linked(args.photos, Path(scratch) / "few", 3_000), wait=True)
        folder = linked(args.photos, Path(scratch) / "all", args.images)
        rates = timed_jobs(client, folder, args.images, args.rounds, args.dim)
        print(f"images/s: {shown(rates, 0)}")


if __name__ == "__main__":
    main()
