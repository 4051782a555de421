"""Measures a Milvus server with many embeddings: memory, inserts, recall and latency.

    python benchmarks/store_large.py VECTORS.npz [--rows 100000] [--rounds 3]

Starts the server of the wheel `milvus`. 1,000 of the embeddings of benchmarks/vectors.py are the
queries. The others are stored, with as many synthetic ones as are needed: an embedding, moved a
random part of the way towards one of its ten nearest, plus noise with the covariance of the real
ones. One rotation turns all into 512 dimensions and changes no cosine. It also prints the dimension
of the neighbourhoods (Levina and Bickel 2004) of real and of synthetic embeddings.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from parts import milvus_server, shown, until
from pymilvus import MilvusClient

from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Match, Record, Vectors
from clipfleet.common.store.milvus import MilvusStore

DIM = 512
K = 10
QUERIES = 1_000
NOISE = 0.5  # of the standard deviation in each direction; by it the dimensions agree
EFFORTS = (20, 32, 64, 128, 256)
BATCHES = (1, 16, 64)
WRITE = 250


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.getLogger("clipfleet").setLevel(logging.CRITICAL)  # while the server starts
    random = np.random.default_rng(0)
    with np.load(args.vectors) as arrays:
        real = random.permutation(arrays["rows"].astype(np.float32))
    real, queries = real[QUERIES:], real[:QUERIES]
    between = resembling(real, args.rows - len(real), random)
    some = random.choice(between, len(real), replace=False)
    print(f"{len(real):,} real, {len(between):,} made; dimensions of neighbourhoods:")
    print(f"  real {dimensions(real, random):.1f}, made {dimensions(some, random):.1f}")
    turn = np.linalg.qr(random.standard_normal((DIM, DIM)))[0][: real.shape[1]].astype(np.float32)
    rows, queries = np.concatenate([real, between]) @ turn, queries @ turn
    collection = Collection.new("benchmark", metric="cosine", model="m", dim=DIM, fields={})
    with tempfile.TemporaryDirectory() as folder:
        with milvus_server(Path(folder)) as (uri, child):
            fill(uri, child, collection, rows)
            measure(uri, child, collection, rows, queries, args.rounds)
        with milvus_server(Path(folder)) as (uri, child):  # nothing left of the writing
            until(partial(searched, MilvusStore(uri), collection, queries[:64]))
            time.sleep(30)
            print(f"memory: {megabytes(child)} after a restart, for searching alone")
    print(f"load {os.getloadavg()[0]:.1f}")


def resembling(real: Vectors, count: int, random: np.random.Generator) -> Vectors:
    near = nearest(real, real, 11)[:, 1:]
    chosen = random.integers(len(real), size=count)
    towards = near[chosen, random.integers(10, size=count)]
    step = random.random((count, 1), dtype=np.float32)
    spread = np.linalg.cholesky(np.cov(real.T) + 1e-8 * np.eye(real.shape[1])).astype(np.float32)
    noise = random.standard_normal((count, real.shape[1]), dtype=np.float32) @ spread.T
    return unit(real[chosen] + step * (real[towards] - real[chosen]) + NOISE * noise)


def dimensions(rows: Vectors, random: np.random.Generator, k: int = 20) -> float:
    """The maximum-likelihood estimate, averaged as its inverse (MacKay and Ghahramani 2005)."""
    some = random.choice(rows, 2_000, replace=False)
    near = nearest(some, rows, k + 1)[:, 1:]
    cosines = np.einsum("nd,nkd->nk", some, rows[near])
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 1e-9))
    inverse = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    return float(1 / inverse.mean())


def nearest(of: Vectors, among: Vectors, count: int) -> NDArray[np.intp]:
    blocks = []
    for start in range(0, len(of), 1_000):
        scores = of[start : start + 1_000] @ among.T
        best = np.argpartition(-scores, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        blocks.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(blocks)


def unit(rows: Vectors) -> Vectors:
    normal: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def fill(uri: str, child: psutil.Process, collection: Collection, rows: Vectors) -> None:
    store = MilvusStore(uri, timeout_s=120)
    store.create(collection)
    print(f"memory: {megabytes(child)} empty")
    began = time.perf_counter()
    for start in range(0, len(rows), WRITE):
        part = enumerate(rows[start : start + WRITE], start)
        store.upsert(collection, [record(number, row) for number, row in part])
    print(f"inserted {len(rows) / (time.perf_counter() - began):,.0f}/s in batches of {WRITE}")
    print(f"settled after {settled(uri, collection):.0f} s more")
    print(f"memory: {megabytes(child)} with {len(rows):,}; {rows.nbytes / 1e6:,.0f} MB of vectors")


def megabytes(child: psutil.Process) -> str:
    return f"{child.memory_info().rss / 1e6:,.0f} MB"


def measure(
    uri: str,
    child: psutil.Process,
    collection: Collection,
    rows: Vectors,
    queries: Vectors,
    rounds: int,
) -> None:
    least = -np.partition(-(queries @ rows.T), K - 1, axis=1)[:, K - 1]
    for effort in EFFORTS:
        store = MilvusStore(uri, effort=effort, timeout_s=120)
        find = partial(searched, store, collection)
        find(queries[:64])  # connected, loaded
        right = [
            recalled(find(queries[n : n + 50]), least[n : n + 50]) for n in range(0, QUERIES, 50)
        ]
        print(f"ef {effort}: recall@{K} {statistics.mean(right):.4f}")
        for batch in BATCHES:
            times = [timed(find, queries, batch, child) for _ in range(rounds)]
            middle, late, work = zip(*times, strict=True)
            print(f"  {batch} at once: p50 {shown(middle)} ms, p99 {shown(late)} ms", end=", ")
            print(f"processor {shown(work, 2)} ms a query")


def record(number: int, row: Vectors) -> Record:
    name = str(number)
    uri = f"file:///photos/of/somebody/{number // 1_000:04d}/{number:08d}.jpg"
    key = primary_key("default", name)
    metadata = {"taken": 2000 + number % 25}
    return Record(key, name, "default", uri, row, label=f"l{number % 100}", metadata=metadata)


def settled(uri: str, collection: Collection) -> float:
    """Wait until the collection is flushed and indexed, and return the seconds it took."""
    client, began = MilvusClient(uri, timeout=120), time.perf_counter()
    name = next(name for name in client.list_collections() if collection.generation in name)
    client.flush(name, timeout=120)

    def indexed() -> bool:
        return int(client.describe_index(name, "embedding")["pending_index_rows"]) == 0

    until(indexed, 1_200)
    taken = time.perf_counter() - began
    time.sleep(30)  # query nodes take the index for the rows that they searched until now
    client.close()
    return taken


def searched(store: MilvusStore, collection: Collection, rows: Vectors) -> list[list[Match]]:
    return store.search(collection, rows, namespace="default", top_k=K, fresh=False)


def recalled(results: list[list[Match]], least: Vectors) -> float:
    """Recall by score, not by id: of two equally near embeddings either one is right."""
    pairs = zip(results, least, strict=True)
    return statistics.fmean(sum(m.score >= score - 1e-5 for m in got) / K for got, score in pairs)


def timed(
    find: Callable[[Vectors], Any], queries: Vectors, batch: int, child: psutil.Process
) -> tuple[float, float, float]:
    """Milliseconds: median and 99th percentile of a call, and processor time per query.

    Makes 500 calls with one query, or 100 with several. The processor time is the server's.
    """
    taken: list[float] = []
    worked = worked_s(child)
    calls = 500 if batch == 1 else 100
    for number in range(calls):
        start = number * batch % (QUERIES - batch + 1)
        began = time.perf_counter()
        find(queries[start : start + batch])
        taken.append(1e3 * (time.perf_counter() - began))
    work = 1e3 * (worked_s(child) - worked) / (calls * batch)
    return statistics.median(taken), float(np.percentile(taken, 99)), work


def worked_s(child: psutil.Process) -> float:
    times = child.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
