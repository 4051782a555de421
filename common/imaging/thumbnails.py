"""Thumbnails of images, made at ingest, so that no source has to be read again to show them."""

import io

from PIL import Image

from clipfleet.common.collection import Collection

QUALITY = 80
MAX_BYTES = 4_000_000


def thumbnail(image: Image.Image, edge: int) -> bytes:
    """Make a thumbnail: a JPEG without metadata, with a longest side of at most `edge` pixels."""
    scale = min(1.0, edge / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info = {}  # otherwise Pillow writes a comment into the file
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=QUALITY)
    return jpeg.getvalue()


def thumbnail_key(collection: Collection, pk: str) -> str:
    """The key of a thumbnail in the blob store.

    Thumbnails are spread over folders: some file systems are slow with too many files in one.
    """
    return f"{thumbnails_of(collection)}/{pk[:3]}/{pk}.jpg"


def thumbnails_of(collection: Collection) -> str:
    """The prefix of the keys of all thumbnails of a collection."""
    return f"thumbnails/{collection.generation}"
