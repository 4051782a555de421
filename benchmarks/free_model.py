"""Measures the whole chain with a model that costs nothing: one worker, real photos and store.

    python benchmarks/free_model.py PHOTOS [--images 20000] [--dim 512] [--rounds 3] [--milvus URI]

The embeddings are random. With --milvus, the store is that server in place of milvus-lite.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from parts import linked, shown, sleepers, timed_jobs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--milvus", default="")
    args = parser.parse_args()
    settings: dict[str, Any] = {
        "SLEEPER_S": "0",
        "SLEEPER_DIM": str(args.dim),
        "SLEEPER_BATCH": "128",
    }
    if args.milvus:
        settings["CLIPFLEET_MILVUS_URI"] = args.milvus
    with (
        tempfile.TemporaryDirectory() as scratch,
        sleepers(Path(scratch), 1, **settings) as (client, _),
    ):
        client.index("c", linked(args.photos, Path(scratch) / "few", 2_000), wait=True)
        folder = linked(args.photos, Path(scratch) / "all", args.images)
        rates = timed_jobs(client, folder, args.images, args.rounds, args.dim)
        counts = [client.collection(f"round-{n}").count for n in range(args.rounds)]
        assert counts == [args.images] * args.rounds, counts
        for name in ("c", *(f"round-{number}" for number in range(args.rounds))):
            client.delete_collection(name)
        print(f"images/s: {shown(rates, 0)}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
