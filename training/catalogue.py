"""All pictures of a run, source by source, minus the sources that were left out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from training import drawings, photos
from training.fetch import EMOJI_VENDORS
from training.records import Record

VIEWS = {"flickr8k": 4, "imagenet-sample": 2, "caltech101": 1, "imagenette": 1}
"""Cached views of a source's pictures: the plain one, and so many less one that are varied."""

DRAWING_VIEWS = 1
"""Views of drawings; a second one would put them on black (see ``pictures.BACKGROUNDS``)."""

Lister = Callable[[Path, Path], list[Record]]


def _listers() -> dict[str, Lister]:
    """Name every source and the function that lists it, given the data and the work folder."""
    listers: dict[str, Lister] = {
        "flickr8k": lambda data, _: photos.flickr(data),
        "imagenet-sample": lambda data, _: photos.imagenet_sample(data),
        "caltech101": lambda data, _: photos.caltech(data),
        "openmoji": lambda _, work: drawings.openmoji(work),
        "openclipart": lambda _, work: drawings.clipart(work),
    }
    for vendor in EMOJI_VENDORS:
        listers[f"emoji-{vendor}"] = partial(_emoji, vendor)
    listers["imagenette"] = lambda data, _: photos.imagenette(data)
    return listers


def _emoji(vendor: str, _: Path, work: Path) -> list[Record]:
    """List one vendor's emoji; the data folder is not needed."""
    return drawings.emoji(work, vendor)


SOURCES = tuple(_listers())


def catalogue(data: Path, work: Path, without: frozenset[str]) -> dict[str, list[Record]]:
    """List the pictures of every source that is not left out."""
    listers = _listers().items()
    return {name: lister(data, work) for name, lister in listers if name not in without}


def views(source: str) -> int:
    """Return how many views of a source's pictures are cached."""
    return VIEWS.get(source, DRAWING_VIEWS)


def training_only(records: list[Record]) -> list[Record]:
    """Leave the held-out pictures out."""
    return [record for record in records if not record.held]
