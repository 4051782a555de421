"""Measures how many images one and two feeders prepare, beside the image processor of a model.

    python benchmarks/feeders.py CLIP PHOTOS [--images 2000] [--megapixels] [--rounds 3]

CLIP is a folder with the configuration of a CLIP image processor. With --megapixels the photos are
first enlarged to 4,000 x 3,000 pixels. The processor takes one image at a time on one thread, as
its documentation shows it: `processor(images=Image.open(path).convert("RGB"))`. The device does
nothing; the feeders read, hash, decode, resize and make thumbnails.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

from parts import shown
from PIL import Image

from clipfleet.common.auth.source_access import access_of
from clipfleet.common.blobs import Blobs
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.libraries import transformers
from clipfleet.workers.embedding.of_transformers import preprocess_of
from clipfleet.workers.ingest.feeders import Fed, ProcessFeeders
from clipfleet.workers.ingest.prepare import Kit, Request
from clipfleet.workers.metrics import StageTimings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--megapixels", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    processor = transformers.AutoImageProcessor.from_pretrained(args.clip)
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(source_roots=(Path("/"),), blobs=f"{scratch}/blobs")
        kit = Kit.of(settings, access_of(settings, Blobs(settings.blobs)), preprocess_of(processor))
        photos = sorted(args.photos.rglob("*.[jJ][pP]*[gG]"))
        if args.megapixels:
            photos = enlarged(photos[:12], Path(scratch))
        paths = list(islice(cycle(photos), args.images))
        scaling, ratios = [], []
        for _ in range(args.rounds):
            single, pair = fed(1, kit, paths), fed(2, kit, paths)
            alone = processed(processor, paths[: max(24, args.images // 20)])
            scaling.append(pair / single)
            ratios.append(pair / alone)
            rates = f"1 feeder {single:.0f}/s, 2 feeders {pair:.0f}/s, processor {alone:.1f}/s"
            print(rates, flush=True)
    print(f"two feeders / one: {shown(scaling, 2)}")
    print(f"two feeders / the processor alone: {shown(ratios, 2)}; load {os.getloadavg()[0]:.1f}")


def fed(count: int, kit: Kit, paths: Sequence[Path]) -> float:
    """Images per second of so many feeders."""
    with closing(ProcessFeeders(count, kit)) as feeders:
        feeders.start()
        wait([submit(feeders, path) for path in paths[: 64 * count]])
        began = time.perf_counter()
        results = [submit(feeders, path) for path in paths]
        wait(results)
        seconds = time.perf_counter() - began
        assert all(result.result()[1].size for result in results)
    return len(paths) / seconds


def submit(feeders: ProcessFeeders, path: Path) -> "Future[Fed]":
    request = Request(f"file:{path}", None, "chunk", None, "", "m")
    return feeders.submit(request, StageTimings())


def processed(processor: object, paths: Sequence[Path]) -> float:
    """Images per second of the processor."""
    began = time.perf_counter()
    for path in paths:
        processor(images=Image.open(path).convert("RGB"), return_tensors="np")  # type: ignore[operator]
    return len(paths) / (time.perf_counter() - began)


def enlarged(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of the photos with 12 megapixels."""
    copies = []
    for path in photos:
        copies.append(folder / path.name)
        image = Image.open(path).convert("RGB").resize((4_000, 3_000), Image.Resampling.BICUBIC)
        image.save(copies[-1], quality=90)
    return copies


if __name__ == "__main__":
    main()
