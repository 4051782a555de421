"""HEIC, with the extra `heif` and without; and what other files are called that are no image."""

import io
import subprocess
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from clipfleet.common.imaging.decode import SUFFIXES
from support.images import decoded, encoded, halves, near, refused


def test_a_heic_is_read_in_each_mode() -> None:
    for mode, right in (("RGB", (255, 0, 0)), ("L", (76, 76, 76)), ("RGBA", (255, 0, 0))):
        seen = decoded(encoded(halves(64, 48).convert(mode), "HEIF", quality=95))
        assert (seen.width, seen.height) == (64, 48)
        assert near(seen.image, (8, 8), right), mode


def test_the_transparent_part_of_a_heic_lies_on_white() -> None:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 48))
    seen = decoded(encoded(image, "HEIF", quality=95)).image
    assert near(seen, (8, 8), (255, 0, 0))
    assert near(seen, (56, 8), (255, 255, 255))


def test_a_heic_of_more_than_eight_bits_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16)
    pixels = np.broadcast_to(ramp[None, :, None], (48, 64, 3))
    file = pillow_heif.from_bytes("RGB;16", (64, 48), np.ascontiguousarray(pixels).tobytes())
    seen = decoded(_saved(file)).image
    assert np.abs(seen[24, :, 1] - ramp / 257.0).max() <= 6


def test_the_primary_image_of_a_heic_counts() -> None:
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red"))
    file.add_from_pillow(Image.new("RGB", (64, 48), "lime"))
    assert near(decoded(_saved(file, primary_index=1)).image, (8, 8), (0, 255, 0))


def _saved(file: pillow_heif.HeifFile, **options: object) -> bytes:
    target = io.BytesIO()
    file.save(target, quality=95, **options)
    return target.getvalue()


def test_a_heic_that_is_cut_short_is_refused() -> None:
    data = encoded(halves(64, 48), "HEIF")
    for length in (24, len(data) // 2, len(data) - 20):
        assert refused(data[:length])


def test_without_the_extra_a_heic_is_refused_by_its_name_and_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["pillow_heif"] = None  # as if it were not installed
from clipfleet.common.errors import BadImage
from clipfleet.common.imaging.decode import decode
from clipfleet.common.settings import Limits
try:
    decode(sys.stdin.buffer.read(), Limits(), edge=224)
except BadImage as error:
    print(error.detail)
"""
    data = encoded(halves(64, 48), "HEIF")
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True)
    assert b"HEIF image (HEIC)" in done.stdout, done.stderr
    assert b"pip install 'clipfleet[heif]'" in done.stdout


@pytest.mark.parametrize(
    "name", ["IMG_1.HEIC", "a.heif", "a.hif", "a.jpe", "a.mpo", "a.apng", "a.dib", "a.JFIF"]
)
def test_folders_look_at_it(name: str) -> None:
    assert f".{name.rpartition('.')[2].lower()}" in SUFFIXES


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\xff\x4f\xff\x51\0\x2f", "a JPEG 2000 image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns=''>", "an SVG drawing"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "a raw photo of a camera"),
        (b"PK\3\4\x14", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(beginning: bytes, name: str) -> None:
    reason = refused(beginning + bytes(60))
    assert reason.startswith(f"the file is {name}")
    assert "JPEG, PNG, WEBP" in reason


def test_no_reason_quotes_the_file() -> None:
    data = encoded(halves(64, 48), "PNG")
    reason = refused(data[:33] + b"\0\0\0\4s3c!et" + data[33:])
    assert "the PNG is damaged" in reason
    assert "s3c" not in reason


def test_a_jpeg_of_a_kind_that_is_not_read_says_so() -> None:
    data = bytearray(encoded(halves(64, 48), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12  # bits of a sample
    assert "the JPEG is damaged, cut short, or of a kind that is not read" in refused(bytes(data))
    assert "12-bit" in refused(bytes(data))


def test_a_bmp_of_a_kind_that_is_not_read_says_so() -> None:
    data = bytearray(encoded(halves(64, 48), "BMP"))
    data[30] = 4  # a JPEG inside
    assert "the BMP is damaged, cut short, or of a kind that is not read" in refused(bytes(data))
    assert "compression (4)" in refused(bytes(data))
