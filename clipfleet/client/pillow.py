"""Makes a file of a Pillow image that the service shows as it shows the file the image came from.

Pillow need not be installed: only methods of the image are used.
"""

import io
import struct
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

ORIENTATION = 0x0112  # the tag of EXIF
XMP = ("xmp", "XML:com.adobe.xmp")
BITS, PHOTOMETRIC, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 284, 338, 339  # tags of TIFF

# Modes that PNG does not have, and what has the same colours.
CONVERTED = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
CONVERTED |= {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


@runtime_checkable
class PillowImage(Protocol):
    """The attributes of `PIL.Image.Image` that are used."""

    @property
    def mode(self) -> str: ...

    @property
    def info(self) -> Any: ...

    def save(self, fp: Any, **params: Any) -> None: ...

    def load(self) -> Any: ...

    def convert(self, mode: str) -> Any: ...

    def getexif(self) -> Any: ...


def image_file(image: PillowImage) -> bytes:
    """A PNG of the image, or a TIFF where PNG has no such numbers; with its orientation.

    Raises:
        ValueError: Pillow has read a TIFF wrongly; its path or its bytes can be given instead.
    """
    clear = _transparency(image)
    _load(image)
    options = {"exif": _exif(_orientation(image)), "icc_profile": None, **clear}
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _numbers(image, tags, options)
    if _is_misread(tags):
        raise ValueError("Pillow reads this kind of TIFF wrongly: give its path or its bytes")
    if image.mode in CONVERTED:
        return _png(image.convert(CONVERTED[image.mode]), options)
    if image.mode == "RGBA" and _has_padding(image, tags):
        return _png(image.convert("RGB"), options)
    return _png(image, options)


def _load(image: Any) -> None:
    """Load the image, and turn a TIFF as its tag says. Pillow turns it as XMP says, too."""
    xmp = image.info.pop("xmp", None) if hasattr(image, "tag_v2") else None
    try:
        image.load()
    finally:
        if xmp is not None:
            image.info["xmp"] = xmp


def _png(image: PillowImage, options: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def _numbers(image: Any, tags: Mapping[int, Any], options: Mapping[str, Any]) -> bytes:
    """A file of grey with more than 8 bits. Pillow leaves a TIFF's numbers as they are stored."""
    inverted = tags.get(PHOTOMETRIC) == 0
    if image.mode.startswith("I;16"):
        white = 2 ** min(16, tags.get(BITS, (16,))[0]) - 1
        if image.mode != "I;16":
            image = image.convert("I").convert("I;16")
        if inverted:
            image = image.point(lambda value: value * (-65_535 / white) + 65_535.5)
        elif white < 65_535:
            image = image.point(lambda value: value * (65_535 / white) + 0.5)
        return _png(image, options)
    if image.mode == "I" and getattr(image, "format", None) == "PNG":
        return _png(image, options)
    image = image.point(lambda value: value * -1 + 1) if inverted else image.copy()
    file = io.BytesIO()
    image.save(file, format="TIFF", compression="raw")  # 32-bit whole numbers: the service refuses
    return file.getvalue()


def _is_misread(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow has taken signed numbers for unsigned, or 16-bit planes for 8-bit ones."""
    signed = 2 in tags.get(SAMPLE_FORMAT, ())
    return signed or (tags.get(PLANAR) == 2 and max(tags.get(BITS, (8,))) > 8)


def _has_padding(image: Any, tags: Mapping[int, Any]) -> bool:
    """Whether alpha is only padding: 0 everywhere, where no file says that it is alpha."""
    format_ = getattr(image, "format", None)
    if format_ not in ("BMP", "DIB") and not (tags and EXTRA_SAMPLES not in tags):
        return False
    extrema: tuple[int, int] = image.getchannel("A").getextrema()
    return extrema == (0, 0)


def _transparency(image: Any) -> dict[str, Any]:
    """The transparent colour with 8 bits. Pillow scales a PNG's pixels but not this colour."""
    if "transparency" not in image.info:
        return {}
    clear, tiles = image.info["transparency"], getattr(image, "tile", ())  # until it is loaded
    how = tiles[0][3] if tiles else None
    if how in ("L;2", "L;4"):
        clear *= 85 if how == "L;2" else 17
    if how == "RGB;16B":
        clear = tuple(part >> 8 for part in clear)
    return {"transparency": clear}


def _orientation(image: PillowImage) -> int:
    """The orientation that EXIF gives; 1 where it is damaged. Pillow also looks into XMP."""
    try:
        tags = image.getexif()
        if any(name in image.info for name in XMP):
            tags = type(tags)()
            tags.load(image.info.get("exif") or b"")
        value = tags.get(ORIENTATION, 1)
    except Exception:  # the parser raises errors of any class
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(orientation: int) -> bytes:
    """EXIF with an orientation alone."""
    return b"Exif\0\0" + struct.pack(
        "<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0
    )
