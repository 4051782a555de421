"""Text queries through HTTP: 64 clients at once, and one alone.

    python benchmarks/queries.py VECTORS.npz [--rounds 5] [--seconds 6]

The carried model, the vectors that benchmarks/vectors.py made, texts that are never the same. Two
gateways stand before the same queue, worker and store and take turns: one as it is, one with
batches of one (CLIPFLEET_LIMITS__QUERY_BATCH=1). The client alone takes turns with the same work in
process: embed one text, search for it.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from callers import Caller, at_once, texts
from parts import Searchable, searchable, shown

from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.workers.embedding.clip import ClipEmbedder

CLIENTS = 64
PATH = "/v1/collections/c/search"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--alone", type=int, default=60, help="queries of one client, per round")
    asked = parser.parse_args()
    words = texts()
    gateways: list[dict[str, str]] = [{}, {"CLIPFLEET_LIMITS__QUERY_BATCH": "1"}]
    with (
        tempfile.TemporaryDirectory() as made,
        searchable(Path(made), asked.vectors, gateways) as service,
    ):
        asyncio.run(at_once(CLIENTS, 2, service.ports[0], PATH, words))  # warm
        rounds = [crowd(service, asked.seconds, words) for _ in range(asked.rounds)]
        alone = InProcess(service)
        pairs = [one_alone(service, alone, asked.alone, words) for _ in range(asked.rounds)]
    print(f"{CLIENTS} clients, searches a second:")
    print(
        f"  together {shown([a for a, _ in rounds])}, one a message {shown([b for _, b in rounds])}"
    )
    print(f"  ratio {shown([a / b for a, b in rounds], 2)}")
    print("one client, p50 in ms:")
    print(f"  HTTP {shown([a for a, _ in pairs])}, in process {shown([b for _, b in pairs])}")
    print(f"  difference {shown([a - b for a, b in pairs])}")
    print(f"load {os.getloadavg()[0]:.1f}")


def crowd(service: Searchable, seconds: float, words: Iterator[str]) -> tuple[float, float]:
    together, singly = (
        asyncio.run(at_once(CLIENTS, seconds, port, PATH, words)) for port in service.ports
    )
    return together, singly


class InProcess:
    """What a query needs at the least: one text embedded, one search."""

    def __init__(self, service: Searchable) -> None:
        self._embedder = ClipEmbedder(Settings(model=CARRIED_MODEL))
        self._store, self._collection = MilvusStore(service.milvus), service.collection

    def search(self, text: str) -> float:
        began = time.perf_counter()
        row = self._embedder.embed_texts([text])
        (found,) = self._store.search(
            self._collection, row, namespace="default", top_k=10, fresh=False
        )
        assert len(found) == 10
        return time.perf_counter() - began


def one_alone(
    service: Searchable, alone: InProcess, queries: int, words: Iterator[str]
) -> tuple[float, float]:
    """Their p50 in milliseconds."""

    async def over_http() -> list[float]:
        async with Caller(service.ports[0], PATH) as caller:
            return [await caller.search(next(words)) for _ in range(queries)]

    over = asyncio.run(over_http())
    inside = [alone.search(next(words)) for _ in range(queries)]
    return 1e3 * statistics.median(over), 1e3 * statistics.median(inside)


if __name__ == "__main__":
    main()
