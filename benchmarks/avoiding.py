"""Measures at which weight "words, but not like this image" still finds what the words say.

    python benchmarks/avoiding.py FOLDER [--names NAMES.csv] [--each 40] [--model NAME] [--json]

The folder has a folder of images for each class; NAMES.csv (`label,name`) gives classes a name in
words. For each class the query is "a photo of a NAME" minus an image of the class, as a user does
who presses "Not like this" on one of the first ten answers; each of the ten is taken once. The
script prints, for several weights:

- `wanted`: the share of the class among the ten nearest, without the image itself;
- `rank`: the median rank of the image itself, from 0, out of all images;
- `alike`: how many of the image's own ten nearest neighbours are among the ten nearest.

A good weight keeps `wanted` near that of weight 0, and moves the image and its like away. The last
block is the same for words in place of the image: "a photo of a NAME" minus "a photo of a OTHER",
for every other class.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipfleet.cli import evaluation
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.workers.embedding.load import load_embedder

Rows = NDArray[np.float32]

WEIGHTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
NEAREST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--each", type=int, default=40, help="images of a class at most")
    parser.add_argument("--model", default=CARRIED_MODEL)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    settings = Settings(model=args.model)
    embedder = load_embedder(settings)
    names = _names(args.names)
    classes = sorted(path for path in args.folder.iterdir() if path.is_dir())
    paths = [path for folder in classes for path in sorted(folder.iterdir())[: args.each]]
    images = evaluation.embed_images(paths, embedder, settings, lambda *_: None)
    labels = np.array([paths[n].parent.name for n in images.kept])
    prompts = [
        f"a photo of a {names.get(folder.name, folder.name.replace('_', ' '))}"
        for folder in classes
    ]
    texts = embedder.embed_texts(prompts)
    result = {
        "images": len(labels),
        "classes": len(classes),
        "model": args.model,
        "image": [_minus_image(weight, images.rows, labels, classes, texts) for weight in WEIGHTS],
        "words": [_minus_words(weight, images.rows, labels, classes, texts) for weight in WEIGHTS],
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{len(labels)} images of {len(classes)} classes, {args.model}")
    for kind in ("image", "words"):
        print(f"words minus {'an image of the class' if kind == 'image' else 'other words'}:")
        for row in result[kind]:
            print("  " + "   ".join(f"{name} {value:g}" for name, value in row.items()))


def _names(table: Path | None) -> dict[str, str]:
    if table is None:
        return {}
    with table.open(newline="") as rows:
        return {row["label"]: row["name"] for row in csv.DictReader(rows)}


def _nearest(images: Rows, query: Rows) -> NDArray[np.int64]:
    return np.argsort(-(images @ query), kind="stable")


def _minus_image(
    weight: float, images: Rows, labels: NDArray[np.str_], classes: list[Path], texts: Rows
) -> dict[str, float]:
    shares, ranks, alike = [], [], []
    for folder, text in zip(classes, texts, strict=True):
        for disliked in _nearest(images, text)[:NEAREST]:
            if labels[disliked] != folder.name:
                continue
            order = _nearest(images, text - weight * images[disliked])
            ranks.append(int(np.flatnonzero(order == disliked)[0]))
            top = order[order != disliked][:NEAREST]
            shares.append(np.mean(labels[top] == folder.name))
            kin = _nearest(images, images[disliked])[1 : NEAREST + 1]
            alike.append(len(set(kin) & set(top)))
    return {
        "weight": weight,
        "wanted": round(float(np.mean(shares)), 3),
        "rank": float(np.median(ranks)),
        "alike": round(float(np.mean(alike)), 2),
    }


def _minus_words(
    weight: float, images: Rows, labels: NDArray[np.str_], classes: list[Path], texts: Rows
) -> dict[str, float]:
    shares = []
    for n, folder in enumerate(classes):
        for other in np.delete(texts, n, axis=0):
            top = _nearest(images, texts[n] - weight * other)[:NEAREST]
            shares.append(np.mean(labels[top] == folder.name))
    return {"weight": weight, "wanted": round(float(np.mean(shares)), 3)}


if __name__ == "__main__":
    main()
