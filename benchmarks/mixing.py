"""Measures whether words and an image mix with a model that embeds them in separate regions.

    python benchmarks/mixing.py FOLDER_WITH_CAPTIONS [--model clipfleet-mini]

The folder holds captions.csv (image,caption; several rows per image) and images/. The script first
compares scores of words and of photos. Then it mixes photos that show one thing with the word for
another, and counts by their captions which of both the ten nearest photos show. "Moved" is the word
minus the mean of all texts plus the mean of all photos (Liang et al., "Mind the gap", 2022).
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipfleet.cli import evaluation
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.workers.embedding.load import load_embedder

Rows = NDArray[np.float32]

WATER = {"water", "pool", "ocean", "lake", "river"}
PAIRS = [
    ({"dog", "dogs"}, "snow", {"snow", "snowy"}),
    ({"dog", "dogs"}, "water", WATER),
    ({"child", "children", "boy", "boys", "girl", "girls"}, "water", WATER),
    ({"man", "men"}, "a bicycle", {"bike", "bikes", "bicycle", "biker"}),
]
WEIGHTS = (0.0, 0.5, 1.0, 2.0)
PHOTOS, NEAREST = 40, 10
SAYING = 2  # of an image's captions have to name a thing


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=CARRIED_MODEL)
    args = parser.parse_args()
    settings = Settings(model=args.model)
    embedder = load_embedder(settings)
    captions = _captions(args.folder / "captions.csv")
    paths = [args.folder / "images" / name for name in captions]
    images = evaluation.embed_images(paths, embedder, settings, lambda *_: None)
    texts_of = [captions[paths[n].name] for n in images.kept]
    texts = embedder.embed_texts([text for some in texts_of for text in some])
    own = np.repeat(np.arange(len(texts_of)), [len(some) for some in texts_of])
    _compare(images.rows, texts, own)
    apart = images.rows.mean(axis=0) - texts.mean(axis=0)
    print("shares of the ten nearest: the photo's thing, the word's, both; the same, moved")
    for first, word, second in PAIRS:
        (row,) = embedder.embed_texts([word])
        has, other = _showing(texts_of, first), _showing(texts_of, second)
        for weight in WEIGHTS:
            plain = _mixed(images.rows, has, other, weight * row)
            moved = _mixed(images.rows, has, other, weight * (row + apart))
            print(f"  {min(first)} + {weight} x {word}:  {plain}   {moved}")


def _captions(table: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = defaultdict(list)
    with table.open(newline="") as rows:
        for row in csv.DictReader(rows):
            captions[row["image"]].append(row["caption"].lower())
    return captions


def _compare(images: Rows, texts: Rows, own: NDArray[np.int64]) -> None:
    scores, among = texts @ images.T, images @ images.T
    others = among[~np.eye(len(images), dtype=bool)]
    mine = scores[np.arange(len(texts)), own]
    low, high = np.percentile(others, [1, 99])
    print(f"{len(images)} photos, {len(texts)} captions; cosines:")
    print(f"  caption and its photo {mine.mean():.2f}, any photo {scores.mean():.2f}")
    print(f"  two photos {others.mean():.2f} (1% to 99%: {low:.2f} to {high:.2f})")
    print(f"  over all photos, spread for a caption {scores.std(axis=1).mean():.3f}", end=", ")
    print(f"for a photo {among.std(axis=1).mean():.3f}")


def _showing(texts_of: list[list[str]], words: set[str]) -> NDArray[np.bool_]:
    naming = (sum(bool(words & set(text.split())) for text in some) for some in texts_of)
    return np.array([count >= SAYING for count in naming])


def _mixed(images: Rows, has: NDArray[np.bool_], other: NDArray[np.bool_], row: Rows) -> str:
    shown = []
    for n in np.flatnonzero(has & ~other)[:PHOTOS]:
        scores = images @ (images[n] + row)
        scores[n] = -np.inf
        top = np.argsort(-scores)[:NEAREST]
        shown.append([has[top].mean(), other[top].mean(), (has & other)[top].mean()])
    return " ".join(f"{share:.2f}" for share in np.mean(shown, axis=0))


if __name__ == "__main__":
    main()
