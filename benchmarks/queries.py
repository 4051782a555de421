"""Measures text queries over HTTP: 64 clients at once, and one client alone.

    python benchmarks/queries.py VECTORS.npz [--rounds 5] [--seconds 6] [--before CHECKOUT]

Uses clipfleet-mini, the vectors of benchmarks/vectors.py, and texts that are never repeated. Two
gateways with the same queue, worker and store take turns: one with defaults, one with batches of
one query (CLIPFLEET_LIMITS__QUERY_BATCH=1). The client alone takes turns with the same work in
process: embed one text, search for it.

Last, one client searches by an uploaded JPEG of 3 megapixels, another one each time.

With --before, a service of another checkout takes turns as well, on the same Python packages.
"""

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path

import httpx
import numpy as np
from callers import Caller, at_once, texts
from parts import Searchable, searchable, shown
from PIL import Image

from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.workers.embedding.load import load_embedder

CLIENTS = 64
PATH = "/v1/collections/c/search"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--alone", type=int, default=60, help="queries of one client, per round")
    parser.add_argument("--before", type=Path, help="a checkout of another commit")
    args = parser.parse_args()
    words = texts()
    if args.before:
        beside_another(args, words)
        return
    gateways: list[dict[str, str]] = [{}, {"CLIPFLEET_LIMITS__QUERY_BATCH": "1"}]
    with (
        tempfile.TemporaryDirectory() as scratch,
        searchable(Path(scratch), args.vectors, gateways) as service,
    ):
        asyncio.run(at_once(CLIENTS, 2, service.ports[0], PATH, words))  # warm
        rounds = [crowd(service, args.seconds, words) for _ in range(args.rounds)]
        alone = InProcess(service)
        pairs = [one_alone(service, alone, args.alone, words) for _ in range(args.rounds)]
        photos = [by_photos(service) for _ in range(args.rounds)]
    print(f"{CLIENTS} clients, searches a second:")
    print(
        f"  together {shown([a for a, _ in rounds])}, one a message {shown([b for _, b in rounds])}"
    )
    print(f"  ratio {shown([a / b for a, b in rounds], 2)}")
    print("one client, p50 in ms:")
    print(f"  HTTP {shown([a for a, _ in pairs])}, in process {shown([b for _, b in pairs])}")
    print(f"  difference {shown([a - b for a, b in pairs])}")
    print(f"by a photo of 3 megapixels, p50 in ms: {shown(photos)}")
    print(f"load {os.getloadavg()[0]:.1f}")


def beside_another(args: argparse.Namespace, words: Iterator[str]) -> None:
    """Searches a second of this commit and of another one, in turns."""
    with ExitStack() as running:
        services, vectors = [], args.vectors.resolve()
        for checkout in (Path(__file__).resolve().parents[1], args.before.resolve()):
            scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))
            # `python -m` and Celery import from the current folder first.
            running.enter_context(chdir(scratch))
            os.environ |= {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
            services.append(running.enter_context(searchable(scratch, vectors, [{}])))
        del os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"]
        for service in services:
            asyncio.run(at_once(CLIENTS, 2, service.ports[0], PATH, words))
        rounds = [
            [
                asyncio.run(at_once(CLIENTS, args.seconds, service.ports[0], PATH, words))
                for service in services
            ]
            for _ in range(args.rounds)
        ]
    print(f"{CLIENTS} clients, searches a second:")
    print(f"  now {shown([a for a, _ in rounds])}, before {shown([b for _, b in rounds])}")
    print(f"  ratio {shown([a / b for a, b in rounds], 2)}")


def crowd(service: Searchable, seconds: float, words: Iterator[str]) -> tuple[float, float]:
    together, singly = (
        asyncio.run(at_once(CLIENTS, seconds, port, PATH, words)) for port in service.ports
    )
    return together, singly


class InProcess:
    """The least work of a query: embed one text, search once."""

    def __init__(self, service: Searchable) -> None:
        self._embedder = load_embedder(Settings(model=CARRIED_MODEL))
        self._store, self._collection = MilvusStore(service.milvus), service.collection

    def search(self, text: str) -> float:
        began = time.perf_counter()
        row = self._embedder.embed_texts([text])
        (matches,) = self._store.search(
            self._collection, row, namespace="default", top_k=10, fresh=False
        )
        assert len(matches) == 10
        return time.perf_counter() - began


def one_alone(
    service: Searchable, alone: InProcess, queries: int, words: Iterator[str]
) -> tuple[float, float]:
    """Median milliseconds of a query over HTTP and in process."""

    async def over_http() -> list[float]:
        async with Caller(service.ports[0], PATH) as caller:
            return [await caller.search(next(words)) for _ in range(queries)]

    over = asyncio.run(over_http())
    inside = [alone.search(next(words)) for _ in range(queries)]
    return 1e3 * statistics.median(over), 1e3 * statistics.median(inside)


def by_photos(service: Searchable, queries: int = 20) -> float:
    """Median milliseconds of searches by uploaded photos."""
    took = []
    with httpx.Client(base_url=f"http://127.0.0.1:{service.ports[0]}") as http:
        for number in range(queries + 2):
            small = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
            photo = io.BytesIO()
            Image.fromarray(small).resize((2048, 1536), Image.Resampling.BICUBIC).save(
                photo, "JPEG", quality=90
            )
            files = {"file": ("photo.jpg", photo.getvalue(), "image/jpeg")}
            began = time.perf_counter()
            answer = http.post(f"{PATH}/image", files=files)
            took.append(time.perf_counter() - began)
            assert len(answer.json()["matches"]) == 10, answer.text
    return 1e3 * statistics.median(took[2:])


if __name__ == "__main__":
    main()
