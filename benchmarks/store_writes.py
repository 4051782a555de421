"""Measures what writing embeddings costs: the client's and the server's processor time.

    python benchmarks/store_writes.py [--rows 16384] [--dim 512] [--batch 512] [--rounds 3]

Each round fills a new collection of a milvus-lite of its own, and looks up fingerprints before each
batch as workers do. Merges and indexes that follow the last batch are counted for 5 s. The searches
come after that, one at a time.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from parts import process, shown, until

from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands

SEARCHES = 50
AFTER_S = 5.0  # in which the server merges and indexes what was written


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, milvus_lite(Path(scratch)) as (uri, server):
        store = MilvusStore(uri, timeout_s=60)
        until(lambda: store.version())
        rounds = [written(store, server, args) for _ in range(args.rounds)]
    print("core-milliseconds a row:")
    print(f"  client: {shown([each.client for each in rounds], 3)}")
    print(f"  server, until the last answer: {shown([each.server for each in rounds], 3)}")
    print(f"  server, {AFTER_S:g} s after it: {shown([each.after for each in rounds], 3)}")
    print(f"milliseconds a search: {shown([each.search for each in rounds])}")
    print(f"load {os.getloadavg()[0]:.1f}")


@contextmanager
def milvus_lite(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    port = commands.free_port()
    command = commands.milvus_lite(folder / "milvus", port)
    environment = commands.MILVUS_LITE_ENVIRONMENT
    with process(command, folder / "milvus.log", **environment) as server:
        yield commands.milvus_uri(port), server


@dataclass(frozen=True)
class Written:
    """What one round took.

    Attributes:
        client: core-milliseconds a row, of this process.
        server: core-milliseconds a row, until the last row was confirmed.
        after: core-milliseconds a row, after that.
        search: milliseconds of a search, the median.
    """

    client: float
    server: float
    after: float
    search: float


def written(store: MilvusStore, server: psutil.Process, args: argparse.Namespace) -> Written:
    collection = Collection.new("b", metric="cosine", model="m", dim=args.dim, fields={})
    store.create(collection)
    rows = records(args.rows, args.dim)
    began, before = time.process_time(), spent_s(server)
    for start in range(0, len(rows), args.batch):
        batch = rows[start : start + args.batch]
        store.fingerprints(collection, [row.pk for row in batch])
        store.upsert(collection, batch)
    client, middle = time.process_time() - began, spent_s(server)
    time.sleep(AFTER_S)
    after = spent_s(server) - middle
    taken = []
    for row in rows[:SEARCHES]:
        began = time.perf_counter()
        store.search(collection, row.embedding[None], namespace="default", top_k=10)
        taken.append(1e3 * (time.perf_counter() - began))
    store.drop(collection)
    each = 1e3 / args.rows
    return Written(client * each, (middle - before) * each, after * each, statistics.median(taken))


def records(count: int, dim: int) -> list[Record]:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"/data/photos/2024/{number:09d}.jpg" for number in range(count)]
    return [
        Record(
            primary_key("default", name),
            name,
            "default",
            name,
            row,
            content_hash="a" * 32,
            job_id="b" * 32,
        )
        for name, row in zip(names, rows, strict=True)
    ]


def spent_s(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
