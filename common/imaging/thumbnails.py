"""Thumbnails of images, made at ingest, so that no source has to be read again to show them."""

import re
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.decode import Decoded
from clipfleet.common.imaging.resize import resize

QUALITY = 80
MAX_BYTES = 4_000_000
MAX_BYTES_PER_PIXEL = 0.4  # of a file that is its own thumbnail; QUALITY gives 0.2 on average

# Of the segments of a JPEG these are needed to show it: the tables of the quantizer and of the
# Huffman codes, the frame of a baseline JPEG, the restart interval, and the scan.
NEEDED = frozenset(b"\xdb\xc4\xc0\xdd")
SCAN = 0xDA
# The start of a JFIF file, whose colours are YCbCr: version 1.1, square pixels.
START = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
END = b"\xff\xd9"
# Within a scan, 255 is followed by 0, or by the number of a restart.
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def thumbnail(decoded: Decoded, edge: int) -> bytes:
    """Make a thumbnail: a JPEG without metadata, with a longest side of at most `edge` pixels.

    An ordinary JPEG that is small enough is its own thumbnail, without all that is not needed to
    show it: metadata, profiles, comments, and what follows the image.
    """
    height, width, _ = decoded.image.shape
    fits = max(width, height) <= edge
    if fits and decoded.jpeg and len(decoded.jpeg) <= MAX_BYTES_PER_PIXEL * width * height:
        bare = _without_metadata(decoded.jpeg)
        if bare:
            return bare
    scale = min(1.0, edge / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.ascontiguousarray(resize(decoded.image, *size, Image.Resampling.BICUBIC))
    jpeg: bytes = simplejpeg.encode_jpeg(small, QUALITY, "RGB", "420")
    return jpeg


def _without_metadata(jpeg: bytes) -> bytes:
    """The image of a baseline JFIF file with one scan; empty for any other file."""
    if jpeg[:4] != START[:4] or jpeg[6:11] != START[6:11]:
        return b""
    kept, place = [START], 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        kind = jpeg[place + 1]
        after = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if kind == SCAN:
            end = END_OF_SCAN.search(jpeg, after)
            if end is None or end[0] != END:
                return b""
            return b"".join([*kept, jpeg[place : end.end()]])
        if kind in NEEDED:
            kept.append(jpeg[place:after])
        elif not (0xE0 <= kind <= 0xED or kind in (0xEF, 0xFE)):
            return b""  # another kind of JPEG, or Adobe's marker (0xEE), which is about colours
        place = after
    return b""


def thumbnail_key(collection: Collection, pk: str) -> str:
    """The key of a thumbnail in the blob store.

    Thumbnails are spread over 256 folders. Some file systems are slow with too many files in a
    folder, and ext4 with too many folders: in 4,096 of them a new file took 0.7 ms instead of 0.14.
    """
    return f"{thumbnails_of(collection)}/{pk[:2]}/{pk}.jpg"


def thumbnail_keys(collection: Collection, pks: Sequence[str]) -> list[str]:
    """All keys that may hold thumbnails of images; those that 0.1 wrote are in 4,096 folders."""
    prefix = thumbnails_of(collection)
    earlier = [f"{prefix}/{pk[:3]}/{pk}.jpg" for pk in pks]
    return [thumbnail_key(collection, pk) for pk in pks] + earlier


def read_thumbnail(blobs: Blobs, collection: Collection, pk: str) -> bytes:
    """Read a thumbnail; raises BlobGone when there is none, and BlobsUnavailable."""
    now, earlier = thumbnail_keys(collection, [pk])
    try:
        return blobs.get(now, MAX_BYTES)
    except BlobGone:
        return blobs.get(earlier, MAX_BYTES)


def thumbnails_of(collection: Collection) -> str:
    """The prefix of the keys of all thumbnails of a collection."""
    return f"thumbnails/{collection.generation}"
