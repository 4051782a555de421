"""The format of query images between gateway and workers: raw pixels if they fit, else JPEG."""

import io
import struct

import numpy as np
from PIL import Image

from clipfleet.common.imaging.preprocess import Pixels

_HEADER = struct.Struct(">4sHH")
QUALITIES = (95, 90, 80, 65, 45, 25)
_RAW, _JPEG = b"RAW1", b"JPG1"


def pack(pixels: Pixels, limit_bytes: int) -> bytes:
    """Pack pixels into at most `limit_bytes` bytes.

    Raw pixels when they fit (224 x 224 does), otherwise the JPEG with the highest quality that
    fits. When even the lowest quality does not fit, the result is larger than the limit.
    """
    height, width, _ = pixels.shape
    if pixels.nbytes + _HEADER.size <= limit_bytes:
        return _HEADER.pack(_RAW, height, width) + pixels.tobytes()
    packed = b""
    for quality in QUALITIES:
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "JPEG", quality=quality)
        packed = _HEADER.pack(_JPEG, height, width) + target.getvalue()
        if len(packed) <= limit_bytes:
            break
    return packed


def unpack(data: bytes) -> Pixels:
    """Unpack pixels. ValueError for a format of another version."""
    kind, height, width = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if kind == _RAW:
        return np.frombuffer(body, np.uint8).reshape(height, width, 3)
    if kind == _JPEG:
        return np.asarray(Image.open(io.BytesIO(body)))
    raise ValueError("the pixels have a format of another version")
