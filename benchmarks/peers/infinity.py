"""Compares the embedding of texts over HTTP with Infinity, with the same model and weights.

    python benchmarks/peers/infinity.py CLIP [--clients 64] [--seconds 15] [--rounds 3]
        [--work .cache/peers]

CLIP is a folder with the configuration of a CLIP model. Without weights it gets random ones, which
take the same time. Infinity gets a virtual environment of its own in WORK, with torch in the
version of constraints.txt. It runs with its defaults, on torch and the processor.

The two take turns; both run all the time. Each client sends one text, waits for its embedding and
sends the next one. No text is sent twice. At the end the embeddings of both are compared, and
clipfleet's model embeds texts without a service, in batches on all cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from callers import Caller, at_once, texts
from ingest import with_weights
from parts import cpu_s, process, shown, until, up
from peers.environment import environment

from clipfleet.common.settings import Settings
from clipfleet.embedded import commands
from clipfleet.workers.embedding.load import load_embedder

# sentence-transformers 3, which Infinity needs, does not know transformers 5.
PACKAGES = ("infinity-emb[server,torch]==0.0.78", "transformers>=4.57,<5", "pillow")
DIM = 512


@dataclass(frozen=True)
class Service:
    """A service that embeds texts.

    Attributes:
        name: its name in the report.
        port, path: where it listens.
        question: the body of a request for a text.
        embedding: the numbers in an answer.
    """

    name: str
    port: int
    path: str
    question: Callable[[str], object]
    embedding: Callable[[Any], list[float]]

    async def ask(self, caller: Caller, text: str) -> list[float]:
        numbers = self.embedding(json.loads(await caller.post(self.question(text))))
        assert len(numbers) == DIM, len(numbers)
        return numbers

    def rate(self, clients: int, seconds: float, words: Iterator[str]) -> tuple[float, str]:
        """Embeddings per second, and what each of them cost."""
        before = cpu_s()
        answers = asyncio.run(at_once(clients, seconds, self.port, self.path, words, self.ask))
        spent = {
            part: 1e3 * (now - before.get(part, 0.0)) / (answers * seconds)
            for part, now in cpu_s().items()
        }
        each = ", ".join(f"{part} {cost:.1f}" for part, cost in sorted(spent.items()) if cost > 0.1)
        return answers, f"{self.name} {answers:.1f} embeddings/s; core-ms of each: {each}"

    async def embed(self, words: list[str]) -> NDArray[np.float64]:
        async with Caller(self.port, self.path) as caller:
            return np.array([await self.ask(caller, word) for word in words])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".cache/peers"))
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work / "infinity", PACKAGES)
    model = work / "model"  # kept, because clipfleet converts a model that it does not know
    if not model.exists():
        model = Path(with_weights(str(args.clip), model))
    os.environ["CLIPFLEET_MODEL_CACHE"] = str(work / "converted")
    scratch = work / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    words = texts()
    with ExitStack() as running:
        services = (
            running.enter_context(clipfleet(scratch, model)),
            running.enter_context(infinity(scratch, python, model)),
        )
        for service in services:
            service.rate(args.clients, 3.0, words)  # warm
        ratios = []
        for _ in range(args.rounds):
            (ours, text), (theirs, other) = (
                service.rate(args.clients, args.seconds, words) for service in services
            )
            ratios.append(ours / theirs)
            load = os.getloadavg()[0]
            print(f"{text}\n{other}\n{ratios[-1]:.2f} times, load {load:.1f}", flush=True)
        some = list(itertools.islice(words, 20))
        rows, others = (asyncio.run(service.embed(some)) for service in services)
    print(f"lowest cosine of {len(some)} embeddings: {lowest_cosine(rows, others):.4f}")
    print(f"clipfleet's model alone: {alone(model, args.clients, args.seconds, words):.1f} texts/s")
    print(f"{shown(ratios, 2)} times")


@contextmanager
def clipfleet(scratch: Path, model: Path) -> Iterator[Service]:
    with up(scratch / "data", str(model)) as (_, port):
        yield Service(
            "clipfleet",
            port,
            "/v1/embed",
            lambda text: {"texts": [text]},
            lambda answer: answer["embeddings"][0],
        )


@contextmanager
def infinity(scratch: Path, python: Path, model: Path) -> Iterator[Service]:
    port = commands.free_port()
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", str(model)]
    command += ["--served-model-name", "clip", "--engine", "torch", "--device", "cpu"]
    command += ["--host", commands.LOOPBACK, "--port", str(port)]
    env = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
    with process(command, scratch / "infinity.log", **env):
        service = Service(
            "Infinity",
            port,
            "/embeddings",
            lambda text: {"model": "clip", "input": [text]},
            lambda answer: answer["data"][0]["embedding"],
        )
        until(lambda: len(asyncio.run(service.embed(["ready"]))))
        yield service


def lowest_cosine(rows: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    cosines = (rows * others).sum(axis=1)
    return float((cosines / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)).min())


def alone(model: Path, batch: int, seconds: float, words: Iterator[str]) -> float:
    """Texts per second of the model without a service, in batches."""
    embedder, done = load_embedder(Settings(model=str(model))), 0
    embedder.embed_texts(list(itertools.islice(words, batch)))
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        embedder.embed_texts(list(itertools.islice(words, batch)))
        done += batch
    return done / passed


if __name__ == "__main__":
    main()
