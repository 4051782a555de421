"""Measures images per second of clipfleet-mini and of ViT-B/32 with clipfleet's embedder.

    python benchmarks/embedder.py FOLDER_WITH_CLIP_CONFIG [--rounds 7] [--batch 32]

The folder holds config, tokenizer and preprocessor of openai/clip-vit-base-patch32. Its weights are
random, which takes the same time. The models take turns within one run, so that other load on the
machine hardly changes their ratio.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from shutil import copytree

import numpy as np

from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.workers.embedding.libraries import transformers
from clipfleet.workers.embedding.load import load_embedder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    carried = load_embedder(Settings(model=CARRIED_MODEL))
    base = _random_clip(args.clip)
    rounds = [(_rate(carried, args.batch), _rate(base, args.batch)) for _ in range(args.rounds)]
    ratios = sorted(ours / theirs for ours, theirs in rounds)
    print(f"device {carried.device}, batch {args.batch}, {args.rounds} rounds in turns")
    print(f"{CARRIED_MODEL}: {statistics.median(r[0] for r in rounds):.1f} images/s")
    print(f"ViT-B/32: {statistics.median(r[1] for r in rounds):.1f} images/s")
    print(f"ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def _random_clip(folder: Path) -> Embedder:
    with tempfile.TemporaryDirectory() as scratch:
        copytree(folder, scratch, dirs_exist_ok=True)
        transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(folder)).save_pretrained(
            scratch
        )
        return load_embedder(Settings(model=scratch))


def _rate(embedder: Embedder, batch: int) -> float:
    spec = embedder.preprocess
    pixels = np.zeros((batch, spec.height, spec.width, 3), np.uint8)
    began = time.perf_counter()
    embedder.embed_images(pixels)
    return batch / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
