"""Reads from EXIF when, with what and where a photo was taken, as docs/images.md describes."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

FIELDS = ("taken_at", "camera", "latitude", "longitude", "altitude")
TEXT_CHARS = 200  # of the name of a camera at most
DATE = re.compile(r"(\d{4})[:/.-](\d\d)[:/.-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
OFFSET = re.compile(r"[+-]\d\d:\d\d|Z")


def exif_fields(exif: bytes) -> dict[str, str | float]:
    """The fields that EXIF gives, of FIELDS: without what is missing, damaged or impossible.

    Args:
        exif: EXIF, with or without `Exif\\0\\0` before it; or a TIFF file.
    """
    if not exif:
        return {}
    tags = Image.Exif()
    fields: dict[str, str | float | None] = {}
    # The parser raises errors of any class. What is damaged costs only its own fields.
    with suppress(Exception):
        tags.load(exif)
        fields["camera"] = _camera(tags)
    with suppress(Exception):
        fields["taken_at"] = _taken_at(tags.get_ifd(ExifTags.IFD.Exif))
    with suppress(Exception):
        fields |= _place(tags.get_ifd(ExifTags.IFD.GPSInfo))
    return {name: value for name in FIELDS if (value := fields.get(name)) not in (None, "")}


def _camera(tags: Mapping[int, Any]) -> str:
    maker, model = _text(tags.get(ExifTags.Base.Make)), _text(tags.get(ExifTags.Base.Model))
    has_maker = model.lower().startswith(maker.lower())
    return model if has_maker else f"{maker} {model}".strip()


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return ""
    text = text.partition("\0")[0].encode("utf-8", "replace").decode()
    return " ".join(text.split())[:TEXT_CHARS]


def _taken_at(tags: Mapping[int, Any]) -> str | None:
    for date, offset in (
        (ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal),
        (ExifTags.Base.DateTimeDigitized, ExifTags.Base.OffsetTimeDigitized),
    ):
        if match := DATE.fullmatch(_text(tags.get(date))):
            with suppress(ValueError):
                taken = datetime(*map(int, match.groups())).isoformat()  # type: ignore[arg-type]
                zone = _text(tags.get(offset))
                return taken + zone if OFFSET.fullmatch(zone) else taken
    return None


def _place(tags: Mapping[int, Any]) -> dict[str, float]:
    place: dict[str, float] = {}
    latitude = _degrees(tags.get(ExifTags.GPS.GPSLatitude), 90)
    longitude = _degrees(tags.get(ExifTags.GPS.GPSLongitude), 180)
    if latitude is not None and longitude is not None:
        south = _text(tags.get(ExifTags.GPS.GPSLatitudeRef)).upper().startswith("S")
        west = _text(tags.get(ExifTags.GPS.GPSLongitudeRef)).upper().startswith("W")
        place = {
            "latitude": -latitude if south else latitude,
            "longitude": -longitude if west else longitude,
        }
    with suppress(TypeError, ValueError, ZeroDivisionError):
        altitude = float(tags.get(ExifTags.GPS.GPSAltitude, math.nan))
        if math.isfinite(altitude):
            below = tags.get(ExifTags.GPS.GPSAltitudeRef) in (1, b"\1")
            place["altitude"] = round(-altitude if below else altitude, 1)
    return place


def _degrees(parts: Any, limit: float) -> float | None:
    """Degrees from degrees, minutes and seconds; None unless they are from 0 to `limit`."""
    try:
        degrees = sum(float(part) / 60**n for n, part in enumerate(parts))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return round(degrees, 6) if len(parts) == 3 and 0 <= degrees <= limit else None
