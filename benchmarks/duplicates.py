"""Measures the search for duplicates: what a threshold recalls, and how long a collection takes.

    python benchmarks/duplicates.py planted FOLDER... [--model clipfleet-mini] [--photos 300]
    python benchmarks/duplicates.py speed [--rows 100000] [--dim 512]

`planted` plants copies of photos among the photos of the folders: crops, re-encodings, resized and
flipped ones. For thresholds it prints which share of the copies of each kind comes into the group
of its original, and how many pairs of different photos come into one group. The different photos
that are nearest to each other are listed, as they may be real duplicates. `speed` groups embeddings
of which a tenth are near copies of others.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipfleet.cli import evaluation
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.workers.analysis.near import group_near
from clipfleet.workers.embedding.load import load_embedder

Rows = NDArray[np.float32]
THRESHOLDS = (0.80, 0.85, 0.88, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def crop(share: float) -> Callable[[Image.Image], Image.Image]:
    """The middle of an image with this share of each side."""

    def cut(image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = width * (1 - share) / 2, height * (1 - share) / 2
        return image.crop((round(x), round(y), round(width - x), round(height - y)))

    return cut


def reencoded(quality: int) -> Callable[[Image.Image], Image.Image]:
    """The image after JPEG of this quality."""

    def encode(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    return encode


def resized(share: float) -> Callable[[Image.Image], Image.Image]:
    """The image with this share of each side."""
    return lambda image: image.resize(
        (max(1, round(image.width * share)), max(1, round(image.height * share))),
        Image.Resampling.BICUBIC,
    )


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 90": reencoded(90),
    "JPEG, quality 70": reencoded(70),
    "JPEG, quality 50": reencoded(50),
    "JPEG, quality 30": reencoded(30),
    "resized to 50 %": resized(0.5),
    "resized to 25 %": resized(0.25),
    "cropped to 90 %": crop(0.9),
    "cropped to 75 %": crop(0.75),
    "flipped": ImageOps.mirror,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    planted = commands.add_parser("planted")
    planted.add_argument("folders", type=Path, nargs="+")
    planted.add_argument("--model", default=CARRIED_MODEL)
    planted.add_argument("--photos", type=int, default=300, help="that copies are made of")
    planted.add_argument("--others", type=int, default=3_000, help="photos without copies")
    speed = commands.add_parser("speed")
    speed.add_argument("--rows", type=int, default=100_000)
    speed.add_argument("--dim", type=int, default=512)
    args = parser.parse_args()
    if args.command == "speed":
        measure_speed(args.rows, args.dim)
    else:
        measure_recall(args.folders, args.model, args.photos, args.others)
    print(f"load {os.getloadavg()[0]:.1f}")


def measure_recall(folders: list[Path], model: str, photos: int, others: int) -> None:
    settings = Settings(model=model)
    embedder = load_embedder(settings)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            chosen = [files[n] for n in random.permutation(len(files))[: photos + others]]
            paths = list(chosen)
            for kind in KINDS.values():
                paths += _copies(chosen[:photos], kind, Path(scratch), len(paths))
            images = evaluation.embed_images(paths, embedder, settings, lambda *_: None)
            if len(images.rows) != len(paths):
                raise SystemExit("some photos could not be read")
            _report(folder, chosen, images.rows, min(photos, len(chosen)))


def _copies(
    photos: list[Path], kind: Callable[[Image.Image], Image.Image], folder: Path, start: int
) -> Iterator[Path]:
    for number, photo in enumerate(photos, start):
        path = folder / f"{number}.png"
        with Image.open(photo) as image:
            kind(image.convert("RGB")).save(path)
        yield path


def _report(folder: Path, chosen: list[Path], rows: Rows, photos: int) -> None:
    originals = rows[: len(chosen)]
    among = originals @ originals.T
    np.fill_diagonal(among, 0)
    pairs = np.argwhere(np.triu(among) > THRESHOLDS[0])
    nearest = sorted(pairs, key=lambda pair: -among[tuple(pair)])[:12]
    print(f"{folder}: {len(chosen):,} photos, {photos} of them with {len(KINDS)} copies")
    tops = among.max(axis=1)
    print("  nearest other photo, percentiles 50, 90, 99, 100: ", end="")
    print(" ".join(f"{np.percentile(tops, share):.3f}" for share in (50, 90, 99, 100)))
    print("  threshold " + " ".join(f"{threshold:5.2f}" for threshold in THRESHOLDS))
    groups = [group_near(rows, threshold) for threshold in THRESHOLDS]
    for place, kind in enumerate(KINDS):
        start = len(chosen) + place * photos
        shares = [np.mean(of[start : start + photos] == of[:photos]) for of in groups]
        print(f"  {kind:18s}" + " ".join(f"{share:5.3f}" for share in shares))
    alike = [_pairs(of[: len(chosen)]) for of in groups]
    print("  pairs of photos in one group: " + " ".join(f"{count}" for count in alike))
    for first, second in nearest:
        print(f"    {among[first, second]:.3f} {chosen[first].name} {chosen[second].name}")


def _pairs(leaders: NDArray[np.int64]) -> int:
    sizes = np.unique(leaders, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def measure_speed(count: int, dim: int) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((count, dim), dtype=np.float32)
    copies, originals = random.permutation(count)[: count // 10 * 2].reshape(2, -1)
    noise = random.standard_normal((len(copies), dim), dtype=np.float32)
    rows[copies] = rows[originals] + 0.1 * noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    began = time.perf_counter()
    leaders = group_near(rows, 0.95)
    took = time.perf_counter() - began
    print(f"{count:,} embeddings of {dim}: grouped in {took:.1f} s, {len(set(leaders))} groups")


if __name__ == "__main__":
    main()
