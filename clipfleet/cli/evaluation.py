"""Measures how well a model's embeddings serve search, on labelled or captioned images.

Runs in this process. Decoding, preprocessing and embedding are those of the workers.
"""

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.errors import BadImage, InvalidRequest
from clipfleet.common.imaging.decode import SUFFIXES, decode
from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.process.machine import cores
from clipfleet.common.settings import Settings

BATCH = 32
PROMPT = "a photo of a {name}"
# A number, a few letters with a number, a hash, or a word for "class" with a number.
CODE = re.compile(
    r"[\W_\d]*\d[\W_\d]*|[a-z]{1,2}[\W_]?\d[\W_\d]*|(?=.*\d)[0-9a-f]{8,}(?:-[0-9a-f]+)*"
    r"|(?:category|class|cls|folder|group|id|label|synset)[\W_]?\d+",
    re.IGNORECASE,
)
MEANINGS = {
    "top1": "images whose own label has the nearest prompt, as a share of all",
    "top5": "images whose own label is among those of the 5 nearest prompts",
    "any_of_5": "images with their own label among their 5 nearest other images",
    "precision@5": "mean share of the 5 nearest other images that have the image's label",
    "recall@1": "captions whose own image is the nearest",
    "recall@5": "captions whose own image is among the 5 nearest",
    "recall@10": "captions whose own image is among the 10 nearest",
}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the images that could be read.

    Attributes:
        rows: embeddings, [n, dim].
        kept: for each row, the index of its image in the list.
    """

    rows: Embeddings
    kept: tuple[int, ...]


def labelled_images(folder: Path) -> list[tuple[Path, str]]:
    """(path, label) of each image below the folder. The label is the name of its own folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    labelled = [(path, path.parent.name) for path in paths if path.parent != folder]
    if len({label for _, label in labelled}) < 2:
        raise InvalidRequest(f"{folder} needs images in at least two folders, one per label")
    return labelled


def unnamed_codes(labels: Collection[str], names: Mapping[str, str]) -> list[str]:
    """The labels that look like codes (n01440764, 001) and have no name, if most labels do.

    A prompt with a code in it means nothing to a model.
    """
    codes = sorted({label for label in labels if label not in names and CODE.fullmatch(label)})
    return codes if 2 * len(codes) > len(set(labels)) else []


def captioned_images(captions: Path) -> tuple[list[Path], list[tuple[int, str]]]:
    """Images and captions of a CSV file with the columns image and caption.

    The images are in the folder of the file, or in a folder `images` below it.

    Returns:
        The paths of the images, and the captions as (index of the image, text).
    """
    rows = table_rows(captions)
    if not rows or not {"image", "caption"} <= rows[0].keys():
        raise InvalidRequest(f"{captions} needs the columns image and caption")
    names = list(dict.fromkeys(row["image"] for row in rows))
    index = {name: n for n, name in enumerate(names)}
    base = captions.parent
    base = base / "images" if (base / "images").is_dir() else base
    return [base / name for name in names], [(index[r["image"]], r["caption"]) for r in rows]


def table_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names in its first line.

    A byte order mark and blanks after a separator do not count. Semicolons or tabs separate the
    cells if the first line has no comma. Rows with fewer or more cells than the first line are
    refused.

    Raises:
        InvalidRequest: the file is not valid CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            first = lines.readline()
            lines.seek(0)
            separators = [mark for mark in (",", ";", "\t") if mark in first]
            delimiter = separators[0] if separators else ","
            cells = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(cells, [])]
            rows = [row for row in cells if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{path} is not a CSV file in UTF-8: {error}") from error
    for row in rows:
        if len(row) != len(header):
            detail = f"a row of {path} has {len(row)} cells; its first line has {len(header)}"
            raise InvalidRequest(detail)
    return [dict(zip(header, map(str.strip, row), strict=True)) for row in rows]


def embed_images(
    paths: Sequence[Path], embedder: Embedder, settings: Settings, progress: Progress
) -> Embedded:
    """Embed images. Those that cannot be read are left out.

    Args:
        paths: the image files.
        embedder: the model.
        settings: limits for decoding, and the number of threads.
        progress: called with the number of images that are done, and of all.
    """
    rows: list[Embeddings] = []
    kept: list[int] = []
    with ThreadPoolExecutor(cores()) as threads:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            pixels = list(threads.map(lambda path: _pixels(path, embedder, settings), part))
            here = [(start + n, image) for n, image in enumerate(pixels) if image is not None]
            if here:
                rows.append(embedder.embed_images(np.stack([image for _, image in here])))
                kept += [n for n, _ in here]
            progress(start + len(part), len(paths))
    if not rows:
        raise InvalidRequest("none of the images could be read")
    return Embedded(np.concatenate(rows), tuple(kept))


def classify(
    images: Embeddings, truth: Sequence[str], names: dict[str, str], prompt: str, embedder: Embedder
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of naming an image by the nearest prompt (Radford et al. 2021).

    Args:
        images: embeddings of the images, [n, dim].
        truth: the label of each image.
        names: the words for a label in the prompt. Default: the label itself.
        prompt: text with `{name}` in it.
        embedder: the model.
    """
    labels = sorted(set(truth))
    texts = [prompt.format(name=names.get(label, label.replace("_", " "))) for label in labels]
    ranked = np.argsort(-(images @ embedder.embed_texts(texts).T), axis=1)
    right = ranked == np.array([labels.index(label) for label in truth])[:, None]
    return {"top1": float(right[:, 0].mean()), "top5": float(right[:, :5].any(axis=1).mean())}


def neighbours(images: Embeddings, truth: Sequence[str], k: int = 5) -> dict[str, float]:
    """Shares of images with any of their k nearest others of their label, and precision@k."""
    labels = np.array(truth)
    any_right, share = [], []
    for rows, own in _blocks(images):
        scores = rows @ images.T
        scores[np.arange(len(rows)), own] = -np.inf
        nearest = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        right = labels[nearest] == labels[own][:, None]
        any_right.append(right.any(axis=1))
        share.append(right.mean(axis=1))
    return {
        f"any_of_{k}": float(np.concatenate(any_right).mean()),
        f"precision@{k}": float(np.concatenate(share).mean()),
    }


def retrieve(
    texts: Embeddings, images: Embeddings, owner: Sequence[int], gallery: int
) -> dict[str, float]:
    """recall@1, @5 and @10 of finding an image by its caption.

    Args:
        texts: embeddings of the captions.
        images: embeddings of the images.
        owner: for each caption, the index of its image.
        gallery: images to search among. 0: all.
    """
    size = gallery or len(images)
    owners = np.array(owner)
    ranks = []
    for start in range(0, len(images) - size + 1, size):
        mine = np.flatnonzero((owners >= start) & (owners < start + size))
        scores = texts[mine] @ images[start : start + size].T
        target = scores[np.arange(len(mine)), owners[mine] - start]
        ranks.append((scores > target[:, None]).sum(axis=1))
    if not ranks:
        raise InvalidRequest(f"a gallery of {gallery} images needs at least as many images")
    rank = np.concatenate(ranks)
    return {f"recall@{k}": float((rank < k).mean()) for k in (1, 5, 10)}


def _blocks(rows: Embeddings, size: int = 512) -> Iterator[tuple[Embeddings, NDArray[np.int64]]]:
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, np.arange(start, start + len(part))


def _pixels(path: Path, embedder: Embedder, settings: Settings) -> Pixels | None:
    edge = embedder.preprocess.edge()
    try:
        return embedder.preprocess.apply(
            decode(path.read_bytes(), settings.limits, edge=edge).image
        )
    except (BadImage, OSError):
        return None
