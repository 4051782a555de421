"""Embeds photos with clipfleet-mini, as vectors for other benchmarks.

    python benchmarks/vectors.py PHOTOS VECTORS.npz [--images 10000]

The file has `rows` (float32 [n, dim], unit length) and `labels` (the photos' folders).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.workers.embedding.load import load_embedder

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    kinds = (".jpg", ".jpeg")
    paths = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in kinds)
    chosen = paths[: args.images]
    embedder = load_embedder(Settings(model=CARRIED_MODEL))
    rows = [_embedded(chosen[n : n + BATCH], embedder) for n in range(0, len(chosen), BATCH)]
    labels = np.array([path.parent.name for path in chosen])
    np.savez(args.vectors, rows=np.concatenate(rows), labels=labels)
    print(f"{len(chosen)} vectors of {embedder.dim} numbers")


def _embedded(paths: list[Path], embedder: Embedder) -> Embeddings:
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return embedder.embed_images(np.stack([embedder.preprocess.apply(image) for image in images]))


if __name__ == "__main__":
    main()
