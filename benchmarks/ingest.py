"""Compares bulk indexing with the limit of its parts, and with a loop as in a tutorial.

    python benchmarks/ingest.py PHOTOS [--images 600] [--rounds 3] [--model FOLDER] [--workers N]

The limit is cores / (core-seconds per image of reading, decoding, thumbnail and resizing + of the
model + of the store), each measured alone in this run. The loop takes one image at a time: open it,
run the model's own processor and `get_image_features`, upsert one row, as in the notebook tutorial.
A model folder without weights gets random weights, which take the same time.

With --workers, `clipfleet up --workers N` and `--workers 1` take turns, and nothing else is
measured. Both run all the time.
"""

import argparse
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from pymilvus import MilvusClient

from clipfleet import Client, Error
from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.imaging.thumbnails import thumbnail
from clipfleet.common.settings import CARRIED_MODEL, Settings, carried_model
from clipfleet.common.store import Record
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands
from clipfleet.workers.embedding.libraries import transformers
from clipfleet.workers.embedding.load import load_embedder
from clipfleet.workers.embedding.passes import cpu_passes

BATCH = 32
LOOP = 60


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=CARRIED_MODEL)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    photos = sorted(
        path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    paths = list(itertools.islice(itertools.cycle(photos), args.images))
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as running:
        scratch = running.enter_context(tempfile.TemporaryDirectory())
        model = with_weights(args.model, Path(scratch) / "model")
        folder = linked(paths, Path(scratch) / "photos")
        if args.workers:
            several_workers(running, Path(scratch), model, folder, args)
            return
        embedder, tutorial = load_embedder(Settings(model=model)), Tutorial(model)
        client, milvus = running.enter_context(up(Path(scratch) / "data", model))
        client.index("warm-up", folder, wait=True)
        rounds = []
        for number in range(args.rounds):
            parts = (
                preparing(paths[:200], embedder, Path(scratch)),
                modelling(embedder),
                storing(milvus),
            )
            chain = indexing(client, folder, f"round-{number}")
            rounds.append((parts, chain, tutorial.rate(paths[:LOOP], milvus)))
            report(rounds[-1], cores)
    print("median and spread of the rounds:")
    for name, values in (
        ("chain / ceiling", [chain / (cores / sum(parts)) for parts, chain, _ in rounds]),
        ("chain / the tutorial's loop", [chain / loop for _, chain, loop in rounds]),
    ):
        print(f"  {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


def several_workers(
    running: ExitStack, scratch: Path, model: str, folder: Path, args: argparse.Namespace
) -> None:
    """Compare N workers with one, in turns."""
    clients = []
    for workers in (args.workers, 1):
        data, option = scratch / str(workers), ["--workers", str(workers)]
        client, _ = running.enter_context(up(data, model, option))
        client.index("warm-up", folder, wait=True)
        clients.append(client)
    rounds = []
    for number in range(args.rounds):
        several, single = (indexing(client, folder, f"round-{number}") for client in clients)
        rounds.append(several / single)
        load = os.getloadavg()[0]
        print(f"{args.workers} workers {several:.1f} images/s, one {single:.1f}, load {load:.1f}")
    spread = f"{min(rounds):.2f} to {max(rounds):.2f}"
    print(f"{args.workers} workers / one: {statistics.median(rounds):.2f} ({spread})")


def with_weights(model: str, folder: Path) -> str:
    config = carried_model() if model == CARRIED_MODEL else Path(model)
    if any(config.glob("*.safetensors")):
        return str(config)
    shutil.copytree(config, folder)
    transformers.AutoModel.from_config(
        transformers.AutoConfig.from_pretrained(config)
    ).save_pretrained(folder)
    return str(folder)


def report(measured: tuple[Sequence[float], float, float], cores: int) -> None:
    (prepare, model, store), chain, loop = measured
    parts = f"prepare {prepare * 1e3:.2f}, model {model * 1e3:.2f}, store {store * 1e3:.2f}"
    ceiling = cores / (prepare + model + store)
    print(f"core-milliseconds an image: {parts}; {cores} cores allow {ceiling:.1f} images/s")
    print(f"  chain {chain:.1f} images/s, loop {loop:.1f} images/s, load {os.getloadavg()[0]:.1f}")


def preparing(paths: Sequence[Path], embedder: Embedder, scratch: Path) -> float:
    settings, edge = Settings(), embedder.preprocess.edge()
    began = time.process_time()
    for path in paths:
        seen = decode(path.read_bytes(), settings.limits, edge=edge)
        (scratch / "thumbnail").write_bytes(thumbnail(seen, settings.thumbnail_edge))
        embedder.preprocess.apply(seen.image)
    return (time.process_time() - began) / len(paths)


def modelling(embedder: Embedder, batches: int = 4) -> float:
    spec = embedder.preprocess
    pixels = np.zeros((BATCH, spec.height, spec.width, 3), np.uint8)
    began = time.process_time()
    for _ in range(batches):
        embedder.embed_images(pixels)
    return (time.process_time() - began) / (batches * BATCH)


def storing(milvus: tuple[str, psutil.Process], chunk: int = 128, chunks: int = 4) -> float:
    """Core-seconds per image of the store's client and server."""
    uri, server = milvus
    store = MilvusStore(uri)
    collection = Collection.new("benchmark", metric="cosine", model="none", dim=384, fields={})
    store.create(collection)
    rows = np.random.default_rng(0).standard_normal((chunk * chunks, 384)).astype(np.float32)
    records = [record(number, row) for number, row in enumerate(rows)]
    before, began = cpu_s(server), time.process_time()
    for start in range(0, len(records), chunk):
        store.fingerprints(collection, [record.pk for record in records[start : start + chunk]])
        store.upsert(collection, records[start : start + chunk])
    seconds = time.process_time() - began + cpu_s(server) - before
    store.drop(collection)
    return seconds / len(records)


def record(number: int, row: Any) -> Record:
    name = f"/photos/{number:08d}.jpg"
    return Record(primary_key("default", name), name, "default", name, row, content_hash="0" * 32)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def indexing(client: Client, folder: Path, collection: str) -> float:
    """Images per second from the start of the job to its end."""
    job = client.index(collection, folder, wait=True)
    assert job.done == job.total, job
    return job.done / ((job.finished_at or 0) - (job.started_at or 0))


class Tutorial:
    """One image at a time through transformers and pymilvus alone."""

    def __init__(self, model: str) -> None:
        self._model = transformers.AutoModel.from_pretrained(model).eval()
        self._processor = transformers.AutoImageProcessor.from_pretrained(model)

    def rate(self, paths: Sequence[Path], milvus: tuple[str, psutil.Process]) -> float:
        torch.set_num_threads(cpu_passes())  # what a notebook has
        client = MilvusClient(milvus[0], grpc_options={"grpc.keepalive_time_ms": 600_000})
        dim = self._model.config.projection_dim
        client.create_collection("tutorial", dim, id_type="string", max_length=512)
        began = time.perf_counter()
        for path in paths:
            pixels = self._processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
            with torch.no_grad():
                features = self._model.get_image_features(**pixels)
            row = getattr(features, "pooler_output", features)[0]
            client.upsert("tutorial", [{"id": str(path), "vector": row.tolist()}])
        seconds = time.perf_counter() - began
        client.drop_collection("tutorial")
        client.close()
        torch.set_num_threads(1)
        return len(paths) / seconds


def linked(paths: Sequence[Path], folder: Path) -> Path:
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:06d}.jpg").symlink_to(path.resolve())
    return folder


@contextmanager
def up(
    data: Path, model: str, options: Sequence[str] = ()
) -> Iterator[tuple[Client, tuple[str, psutil.Process]]]:
    """Run a stack and yield a client and its Milvus."""
    port = str(commands.free_port())
    command = [commands.script("clipfleet"), "up", "--data", str(data), "--port", port]
    with subprocess.Popen([*command, "--model", model, *options]) as process:
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                _until_ready(client)
                yield client, _milvus(process.pid)
        finally:
            process.send_signal(signal.SIGINT)


def _until_ready(client: Client) -> None:
    while True:
        try:
            client.create_collection("ready")
            return
        except Error:
            time.sleep(0.5)


def _milvus(parent: int) -> tuple[str, psutil.Process]:
    for child in psutil.Process(parent).children():
        words = child.cmdline()
        if "--data-dir" in words:
            return commands.milvus_uri(int(words[words.index("--port") + 1])), child
    raise SystemExit("the stack has no Milvus of its own")


if __name__ == "__main__":
    main()
