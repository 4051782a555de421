"""The media type of an image file, by its first bytes."""

from clipfleet.common.imaging import png, tiff
from clipfleet.common.imaging.formats import HEIF_BRANDS, JPEG

HEAD_BYTES = 64  # that are needed
SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/avif": ".avif",
    "image/heic": ".heic",
}
AVIF_BRANDS = (b"avif", b"avis")


def media_type(head: bytes) -> str:
    """The media type of an image that browsers or programs show as pixels; "" for anything else.

    SVG is none of them: it may contain scripts.
    """
    if head.startswith(JPEG):
        return "image/jpeg"
    if head.startswith(png.MAGIC):
        return "image/png"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith(tiff.MAGIC):
        return "image/tiff"
    if head[4:8] == b"ftyp":
        return _of_brands({head[8:12], *(head[at : at + 4] for at in range(16, 64, 4))})
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # reserved, always 0
        return "image/bmp"
    return ""


def _of_brands(brands: set[bytes]) -> str:
    if brands.intersection(AVIF_BRANDS):
        return "image/avif"
    return "image/heic" if brands.intersection(HEIF_BRANDS) else ""
