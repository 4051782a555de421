"""Measures how fast a job tags many stored images, end to end.

    python benchmarks/tags.py [--rows 100000] [--dim 512] [--words 100] [--milvus http://host:port]

Starts `clipfleet up` with milvus-lite in a scratch folder, or on a Milvus server, and fills a
collection with own vectors. Each of them is near one of the words, so the first job writes every
row, and the second one none. The time is that of the client, from the request to the end of the
job. The model is a hash: embedding the words takes no time worth noting here.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from parts import process, until

from clipfleet import Client
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.embedded import commands

TEMPLATE = "a photo of a {}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--milvus", default="", help="address of a running Milvus server")
    args = parser.parse_args()
    port = commands.free_port()
    env = {"CLIPFLEET_MILVUS_URI": args.milvus} if args.milvus else {}
    words = [f"thing {n}" for n in range(args.words)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [
            commands.script("clipfleet"), "up", "--port", str(port), "--data", str(folder / "data"),
            "--model", f"hash:{args.dim}",
        ]  # fmt: skip
        with process(command, folder / "up.log", **env), Client(f"127.0.0.1:{port}") as client:
            until(lambda: client.create_collection("photos"), 120)
            began = time.perf_counter()
            client.upsert("photos", vectors(args.rows, args.dim, words))
            print(f"filled: {args.rows / (time.perf_counter() - began):.0f} rows/s")
            for what in ("every row changes", "no row changes"):
                print(f"{what}: {run(client, words, args.rows)}")
    print(f"load {os.getloadavg()[0]:.1f}")


def run(client: Client, words: list[str], rows: int) -> str:
    """Tag all images, and say how long it took."""
    began = time.perf_counter()
    job = client.tag("photos", words, template=TEMPLATE, wait=True)
    seconds = time.perf_counter() - began
    assert (job.total, job.failed) == (rows, 0), job
    return f"{seconds:.1f} s, {job.done} written, {job.skipped} not"


def vectors(rows: int, dim: int, words: list[str]) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    labels = HashEmbedder(dim).embed_texts([TEMPLATE.replace("{}", word) for word in words])
    for number in range(rows):
        noise = random.standard_normal(dim).astype(np.float32) / dim**0.5
        yield {
            "id": f"/data/photos/2024/{number:09d}.jpg",
            "values": labels[number % len(words)] + noise,
            "metadata": {"year": 1900 + number % 100},
        }


if __name__ == "__main__":
    main()
