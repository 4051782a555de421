"""A Pillow image is sent so that the service sees what it sees of the file the image came from."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from clipfleet.client.payloads import image_bytes
from clipfleet.common.imaging.preprocess import Pixels
from support.images import decoded, encoded, halves, png, png_chunk, refused
from support.tiffs import packed, tiff

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def sent(image: Image.Image) -> Pixels:
    """What the service sees of a Pillow image."""
    return decoded(image_bytes(image)).image


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("CMYK", "TIFF"),
        ("CMYK", "JPEG"),
        ("LAB", "TIFF"),
        ("YCbCr", "TIFF"),
        ("F", "TIFF"),
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "GIF"),
        ("RGB", "JPEG"),
        ("RGBA", "WEBP"),
        ("RGBA", "AVIF"),
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
        ("I;16B", "TIFF"),
    ],
)
def test_an_opened_image_is_sent_as_its_file_is_seen(mode: str, kind: str, loaded: bool) -> None:
    if mode == "LAB":
        image = Image.frombytes("LAB", (16, 16), bytes(RAMP) * 3)
    elif mode.startswith("I;16"):
        order = "<" if mode == "I;16" else ">"
        image = Image.frombytes(mode, (16, 16), (RAMP.astype(f"{order}u2") * 257).tobytes())
    elif mode == "F":
        image = Image.fromarray(RAMP / np.float32(255))
    else:
        image = Image.merge("RGB", [Image.fromarray(part) for part in (RAMP, RAMP.T, 255 - RAMP)])
        image = image.convert(mode)
    file = encoded(image, kind, **({} if kind in ("GIF", "TIFF") else {"quality": 95}))
    opened: Any = Image.open(io.BytesIO(file))
    if loaded:
        opened.load()
    assert np.abs(sent(opened) - decoded(file).image.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA", "1"])
def test_an_image_of_each_mode_is_sent_in_its_colours(mode: str) -> None:
    image = halves(16, 16)
    through = {"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, "RGB")
    converted = image.convert(through)
    if mode == "LAB":
        converted = Image.new("LAB", (16, 16), (138, 81, 70))
        image = converted.convert("RGB")
    elif mode != through:
        converted = converted.convert(mode)
    if mode in ("La", "1"):
        image = converted.convert("L" if mode == "1" else "LA")
    assert np.abs(sent(converted) - np.asarray(image.convert("RGB")).astype(int)).max() <= 2


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0), (16, 1)])
def test_grey_of_more_than_eight_bits_keeps_its_shades(bits: int, photometric: int) -> None:
    values = np.arange(0, 2**bits, 2**bits // 256, dtype=np.uint16).reshape(16, 16)
    file = tiff([packed(values, bits)], (16, 16), bits, photometric=photometric)
    opened = Image.open(io.BytesIO(file))
    assert opened.mode == "I;16"
    assert np.abs(sent(opened) - decoded(file).image.astype(int)).max() <= 1


def test_numbers_without_an_agreed_white_are_refused_as_in_their_file() -> None:
    image = Image.fromarray(RAMP.astype(np.int32))
    assert "TIFF of 32-bit signed numbers" in refused(image_bytes(image))
    opened = Image.open(io.BytesIO(encoded(image, "TIFF")))
    assert "TIFF of 32-bit signed numbers" in refused(image_bytes(opened))


def test_a_tiff_that_pillow_reads_wrongly_is_refused() -> None:
    signed = tiff([packed(RAMP, 8)], (16, 16), 8, number=2)
    with pytest.raises(ValueError, match="give its path"):
        image_bytes(Image.open(io.BytesIO(signed)))
    wide = [packed(RAMP.astype(np.uint16), 16)] * 3
    planes = tiff(wide, (16, 16), 16, photometric=2, samples=3)
    with pytest.raises(ValueError, match="give its path"):
        image_bytes(Image.open(io.BytesIO(planes)))


def test_alpha_that_is_only_padding_is_not_sent() -> None:
    image = halves(16, 16).convert("RGBA")
    image.putalpha(0)
    values = np.asarray(image).reshape(16, -1)
    file = tiff([packed(values, 8)], (16, 16), 8, photometric=2, samples=4)
    assert (sent(Image.open(io.BytesIO(file))) == np.asarray(halves(16, 16))).all()
    assert (sent(image) == 255).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_sent_at_each_depth(bits: int) -> None:
    values = (np.arange(16) % 2**bits).reshape(4, 4).astype("u2" if bits == 16 else "u1")
    chunk = png_chunk(b"tRNS", b"\0\1")
    file = png(4, 4, bits, 0, b"".join(packed(values, bits, ">")), chunk)
    assert (sent(Image.open(io.BytesIO(file))) == decoded(file).image).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_turned_photo_is_turned_once(kind: str, loaded: bool) -> None:
    options: dict[str, object] = {"exif": Image.Exif()}
    options["exif"][0x0112] = 6  # type: ignore[index]
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = 6
        options = {"tiffinfo": tags}
    file = encoded(halves(96, 64), kind, **options)
    opened: Any = Image.open(io.BytesIO(file))
    if loaded:
        opened.load()
    assert (sent(opened) == decoded(file).image).all()
    assert decoded(file).width == 64


def test_neither_damaged_exif_nor_xmp_turns_what_is_sent() -> None:
    for exif in (b"Exif\0\0XXXXnot a TIFF header at all", b"Exif\0\0II*\0\1"):
        file = encoded(halves(96, 64), "JPEG", exif=exif, dpi=(72, 72))
        assert sent(Image.open(io.BytesIO(file))).shape == (64, 96, 3)
    xmp = b'<x tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options: dict[str, dict[str, Any]] = {
        "PNG": {"pnginfo": info},
        "TIFF": {"tiffinfo": {700: xmp}},
        "JPEG": {"xmp": xmp},
    }
    for kind, more in options.items():
        opened = Image.open(io.BytesIO(encoded(halves(96, 64), kind, **more)))
        assert sent(opened).shape == (64, 96, 3), kind
        assert xmp.decode() in str(opened.info), "the caller's image stays as it was"


def test_only_the_orientation_of_exif_is_sent() -> None:
    """Where a photo was taken is not the business of a search."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    file = encoded(halves(96, 64), "JPEG", exif=exif)
    data = image_bytes(Image.open(io.BytesIO(file)))
    assert b"a camera" not in data
    assert decoded(data).width == 64
