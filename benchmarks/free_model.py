"""Measures the whole chain with a model that costs nothing: one worker, real photos and store.

    python benchmarks/free_model.py PHOTOS [--images 20000] [--dim 512] [--rounds 3]
        [--milvus URI | --server]

The embeddings are random. With --milvus, the store is that server in place of milvus-lite. With
--server, milvus-lite and the server of the wheel `milvus` take turns; each round starts both anew,
one after the other, with all other parts.
"""

import argparse
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parts import linked, milvus_server, shown, sleepers, timed_jobs

from clipfleet import Client


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    store = parser.add_mutually_exclusive_group()
    store.add_argument("--milvus", default="")
    store.add_argument("--server", action="store_true")
    args = parser.parse_args()
    logging.getLogger("clipfleet").setLevel(logging.CRITICAL)  # while the server starts
    if not args.server:
        report("Milvus" if args.milvus else "milvus-lite", rates(args, args.rounds, args.milvus))
        return
    lite, server = [], []
    for _ in range(args.rounds):
        lite += rates(args, 1)
        with tempfile.TemporaryDirectory() as folder, milvus_server(Path(folder)) as (uri, _):
            server += rates(args, 1, uri)
    report("milvus-lite", lite)
    report("Milvus server", server)
    ratios = [served / embedded for served, embedded in zip(server, lite, strict=True)]
    print(f"Milvus server / milvus-lite: {shown(ratios, 2)}")


def report(name: str, of_rounds: list[float]) -> None:
    print(f"{name}, images/s: {shown(of_rounds, 0)}; load {os.getloadavg()[0]:.1f}")


def rates(args: argparse.Namespace, rounds: int, milvus: str = "") -> list[float]:
    """Images per second of the rounds, with one worker that is started for them."""
    with tempfile.TemporaryDirectory() as scratch, worker(args.dim, scratch, milvus) as client:
        client.index("c", linked(args.photos, Path(scratch) / "few", 2_000), wait=True)
        folder = linked(args.photos, Path(scratch) / "all", args.images)
        of_rounds = timed_jobs(client, folder, args.images, rounds, args.dim)
        counts = [client.collection(f"round-{number}").count for number in range(rounds)]
        assert counts == [args.images] * rounds, counts
        for name in ("c", *(f"round-{number}" for number in range(rounds))):
            client.delete_collection(name)
    return of_rounds


@contextmanager
def worker(dim: int, scratch: str, milvus: str) -> Iterator[Client]:
    settings: dict[str, Any] = {
        "SLEEPER_S": "0",
        "SLEEPER_DIM": str(dim),
        "SLEEPER_BATCH": "128",
    }
    if milvus:
        settings["CLIPFLEET_MILVUS_URI"] = milvus
    with sleepers(Path(scratch), 1, **settings) as (client, _):
        yield client


if __name__ == "__main__":
    main()
