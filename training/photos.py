"""Records of the photographs in the data folder."""

import csv
from collections import defaultdict
from pathlib import Path

from training.records import Kind, Record, bucket, is_held

NAMES = Path(__file__).parents[1] / "examples" / "imagenette.csv"
with NAMES.open(newline="", encoding="utf-8") as _lines:
    IMAGENETTE = {row["label"]: row["name"] for row in csv.DictReader(_lines)}

CALTECH_NAMES = {
    "Faces": "face",
    "Faces_easy": "close-up of a face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "cougar",
    "cougar_face": "face of a cougar",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "hawksbill": "hawksbill turtle",
    "water_lilly": "water lily",
    "yin_yang": "yin and yang symbol",
    "snoopy": "Snoopy cartoon dog",
    "garfield": "Garfield cartoon cat",
}
"""Names that read better than the folder's; every other folder name only loses underscores."""

FLICKR_HELD = 0.21
"""Share of Flickr8k held out: more than a tenth, since a gallery needs a hundred photos."""

IMAGENETTE_TRAIN_PER_CLASS = 400
"""Training photos used per Imagenette class; ImageNet training has seen the rest before."""


def caltech_name(folder: str) -> str:
    """Turn a Caltech101 folder into the words that stand for its class."""
    return CALTECH_NAMES.get(folder, folder.replace("_", " "))


def imagenette(data: Path) -> list[Record]:
    """List Imagenette: the training split capped per class, the whole validation half held."""
    root = data / "imagenette2-224"
    records = []
    for wnid, name in IMAGENETTE.items():
        train = _ranked("imagenette", root, root / "train" / wnid)
        held = _ranked("imagenette", root, root / "val" / wnid)
        records += [_photo("imagenette", root, path, name, False) for path in train]
        records += [_photo("imagenette", root, path, name, True) for path in held]
    return records


def _ranked(source: str, root: Path, folder: Path) -> list[Path]:
    """Return a folder's photos in hash order, training folders cut to the cap."""
    paths = sorted(folder.iterdir(), key=lambda path: bucket(source, str(path.relative_to(root))))
    return paths[:IMAGENETTE_TRAIN_PER_CLASS] if folder.parent.name == "train" else paths


def caltech(data: Path) -> list[Record]:
    """List Caltech101, a tenth of it held out."""
    root = data / "caltech101-128"
    records = []
    for path in sorted(root.glob("*/*")):
        held = is_held("caltech101", str(path.relative_to(root)), 0.1)
        records.append(_photo("caltech101", root, path, caltech_name(path.parent.name), held))
    return records


def imagenet_sample(data: Path) -> list[Record]:
    """List the one-photo-per-class sample of ImageNet, a tenth of it held out."""
    root = data / "imagenet-1k-sample-128"
    records = []
    for path in sorted(root.glob("*.jpg")):
        held = is_held("imagenet-sample", path.name, 0.1)
        records.append(_photo("imagenet-sample", root, path, class_name(path), held))
    return records


def class_name(path: Path) -> str:
    """Read the class name out of ``<wnid>_<name>.jpg``."""
    return path.stem.partition("_")[2].replace("_", " ")


def imagenet_names(data: Path) -> list[str]:
    """Return the thousand class names in the order of ImageNet's class numbers."""
    return [class_name(path) for path in sorted((data / "imagenet-1k-sample-128").glob("*.jpg"))]


def flickr(data: Path) -> list[Record]:
    """List Flickr8k with five captions a photo, a fifth of it held out."""
    root = data / "flickr8k" / "images"
    records = []
    for name, captions in _captions(data / "flickr8k" / "captions.csv").items():
        held = is_held("flickr8k", name, FLICKR_HELD)
        records.append(Record("flickr8k", name, root / name, captions, Kind.PHOTO, held))
    return records


def _captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the captions file: photo name to its captions, in the file's order."""
    rows: dict[str, list[str]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["image"]].append(row["caption"].strip())
    return {name: tuple(captions) for name, captions in rows.items()}


def _photo(source: str, root: Path, path: Path, name: str, held: bool) -> Record:
    """Build the record of a photo that has a class name."""
    return Record(source, str(path.relative_to(root)), path, (name,), Kind.PHOTO, held)
