"""Compares clipfleet's preprocessing of JPEG files with the model's own image processor.

    python benchmarks/preprocess.py FOLDER_WITH_CLIP_CONFIG PHOTOS... [--rounds 9]

It takes JPEG files from each folder PHOTOS and the folders below it. From those of the first folder
it also makes 12-megapixel JPEG files, each of 20 x 20 photos, in a temporary folder.

The other side is `Image.open(path).convert("RGB")` and the processor of transformers, once with one
image at a time, as its documentation shows it, and once with batches. clipfleet's side includes the
normalisation on the CPU, which a worker does on its device. Both sides have one thread, are timed
by the CPU time of this thread, and take turns within one run, so that other load affects both
alike.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from shutil import copytree

import numpy as np
import PIL
import torch
from PIL import Image

from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.settings import CARRIED_MODEL, Limits, Settings, carried_model
from clipfleet.workers.embedding.clip import ClipEmbedder
from clipfleet.workers.embedding.libraries import transformers

Way = Callable[[Sequence[Path]], object]

LIMITS = Limits()
BATCH = 32
LARGE_BATCH = 8  # 12 megapixels are 48 MB each, and transformers holds them all


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Pillow {PIL.__version__}, torch {torch.__version__}", end=", ")
    print(f"transformers {transformers.__version__}; {args.rounds} rounds in turns")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        sets = {folder.name: _spread(folder) for folder in args.photos}
        sets["12 megapixels"] = _mosaics(_spread(args.photos[0]), scratch)
        for model in (str(carried_model()), _random_clip(args.clip, scratch / "clip")):
            for name, paths in sets.items():
                _compare(model, name, paths, args.rounds)


def _compare(model: str, name: str, paths: Sequence[Path], rounds: int) -> None:
    embedder = ClipEmbedder(Settings(model=model, device="cpu"))
    processor = transformers.AutoImageProcessor.from_pretrained(model)

    def ours(paths: Sequence[Path]) -> object:
        return embedder.normalised(np.stack([_pixels(embedder, path) for path in paths]))

    def alone(paths: Sequence[Path]) -> object:
        return [batch([path]) for path in paths]

    def batch(paths: Sequence[Path]) -> object:
        images = [Image.open(path).convert("RGB") for path in paths]
        return processor(images=images, return_tensors="pt")

    ways: list[Way] = [ours, alone, batch]
    for way in ways:
        way(paths[:2])
    timed = [[_milliseconds(way, paths) for way in ways] for _ in range(rounds)]
    mine, single, many = (statistics.median(column) for column in zip(*timed, strict=True))
    print(f"{name}, {_title(model)} ({type(processor).__name__}), CPU milliseconds an image:")
    print(f"  clipfleet {mine:.2f}")
    print(f"  theirs one at a time {single:.2f}: {_ratio([t[1] / t[0] for t in timed])}")
    print(f"  theirs in batches {many:.2f}: {_ratio([t[2] / t[0] for t in timed])}", flush=True)


def _ratio(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})"


def _pixels(embedder: ClipEmbedder, path: Path) -> Pixels:
    edge = embedder.preprocess.edge()
    return embedder.preprocess.apply(decode(path.read_bytes(), LIMITS, edge=edge).image)


def _milliseconds(way: Way, paths: Sequence[Path]) -> float:
    """CPU milliseconds per image."""
    size = LARGE_BATCH if len(paths) <= LARGE_BATCH else BATCH
    began = time.thread_time()
    for start in range(0, len(paths), size):
        way(paths[start : start + size])
    return 1e3 * (time.thread_time() - began) / len(paths)


def _spread(folder: Path, count: int = 96) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return paths[:: max(1, len(paths) // count)][:count]


def _mosaics(photos: Sequence[Path], folder: Path, count: int = 8) -> list[Path]:
    """Create images of 4000 x 3000 pixels, each of 20 x 20 photos in another order."""
    tiles = [Image.open(path).convert("RGB").resize((200, 150)) for path in photos]
    paths = [folder / f"{n}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        mosaic = Image.new("RGB", (4000, 3000))
        for place, tile in enumerate(islice(cycle(tiles), n, n + 400)):
            mosaic.paste(tile, (place % 20 * 200, place // 20 * 150))
        mosaic.save(path, quality=90)
    return paths


def _random_clip(config: Path, folder: Path) -> str:
    copytree(config, folder)
    transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(config)).save_pretrained(folder)
    return str(folder)


def _title(model: str) -> str:
    return CARRIED_MODEL if model == str(carried_model()) else "real CLIP"


if __name__ == "__main__":
    main()
