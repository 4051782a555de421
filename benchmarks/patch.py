"""Measures how fast labels of many images change: `PATCH …/images` by filter, end to end.

    python benchmarks/patch.py [--rows 100000] [--dim 512] [--rounds 3]

Starts `clipfleet up` with milvus-lite in a scratch folder, fills a collection with own vectors, and
changes the labels of all of them by a filter on the label, with the Python client. The time is that
of the client, from the first request to the last answer.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from parts import process, shown, until

from clipfleet import Client
from clipfleet.embedded import commands


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    port = commands.free_port()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [
            commands.script("clipfleet"), "up", "--port", str(port), "--data", str(folder / "data"),
            "--model", f"hash:{args.dim}",
        ]  # fmt: skip
        with process(command, folder / "up.log"), Client(f"127.0.0.1:{port}") as client:
            until(lambda: client.create_collection("photos", fields={"year": "int"}), 120)
            began = time.perf_counter()
            client.upsert("photos", vectors(args.rows, args.dim))
            print(f"filled: {args.rows / (time.perf_counter() - began):.0f} rows/s")
            rates = [rate(client, n, args.rows) for n in range(args.rounds)]
    print(f"changed by filter: {shown(rates, 0)} rows/s")
    print(f"load {os.getloadavg()[0]:.1f}")


def rate(client: Client, number: int, rows: int) -> float:
    """Rows a second of one round, in which each label changes."""
    began = time.perf_counter()
    counted = client.update_images(
        "photos", filter={"label": f"label {number}"}, label="", dry_run=True
    )
    print(f"counted: {time.perf_counter() - began:.2f} s")
    assert counted.matched == rows
    began = time.perf_counter()
    updated = client.update_images(
        "photos", filter={"label": f"label {number}"}, label=f"label {number + 1}"
    )
    seconds = time.perf_counter() - began
    if updated.updated != rows:  # an answer was lost, and its request was sent again
        print(f"counted as changed: {updated.updated}")
    assert client.count("photos", filter={"label": f"label {number + 1}"}) == rows
    return rows / seconds


def vectors(rows: int, dim: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    for number in range(rows):
        yield {
            "id": f"/data/photos/2024/{number:09d}.jpg",
            "values": random.standard_normal(dim).astype(np.float32),
            "label": "label 0",
            "metadata": {"year": 1900 + number % 100, "caption": f"a photo of thing {number}"},
        }


if __name__ == "__main__":
    main()
