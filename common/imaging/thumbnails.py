"""Small pictures of indexed images, made at ingest, so that nobody has to read a source again."""

import io

from PIL import Image

from clipfleet.common.collection import Collection

QUALITY = 80
MOST_BYTES = 4_000_000


def thumbnail(image: Image.Image, edge: int) -> bytes:
    """A JPEG of an RGB image, its longest side at most `edge` pixels, nothing of its metadata."""
    scale = min(1.0, edge / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info = {}  # a comment would be written along
    made = io.BytesIO()
    small.save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def thumbnail_key(collection: Collection, pk: str) -> str:
    """Where it lies among the blobs: spread over folders, which some file systems need."""
    return f"{thumbnails_of(collection)}/{pk[:3]}/{pk}.jpg"


def thumbnails_of(collection: Collection) -> str:
    return f"thumbnails/{collection.generation}"
