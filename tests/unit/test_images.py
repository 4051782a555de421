"""Decoding: each file gives an image or a reason why it is not one."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from clipfleet.common.errors import BadImage
from clipfleet.common.imaging.decode import FORMATS, decode
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.settings import Limits
from support.images import (
    EDGE,
    LIMITS,
    decoded,
    encoded,
    halves,
    near,
    png,
    png_chunk,
    refused,
)


def without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + jpeg[at + 2 + length :]


def png_claiming(width: int, height: int, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def test_a_truncated_jpeg_is_named_with_its_reason() -> None:
    data = encoded(halves(320, 240), "JPEG")
    assert "cut short" in refused(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_in_the_middle_is_no_image(kind: str) -> None:
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    assert refused(data[: len(data) // 2])


def test_an_image_of_one_pixel_is_an_image() -> None:
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        seen = decoded(encoded(Image.new("RGB", (1, 1), "white"), kind))
        assert (seen.width, seen.height) == (1, 1)


def test_a_header_that_claims_too_many_pixels_is_refused_unread() -> None:
    assert "50000x50000" in refused(png_claiming(50_000, 50_000))
    bmp = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    assert "50000x50000" in refused(bytes(bmp))


def test_a_png_bomb_is_refused_by_its_pixels() -> None:
    side = 20_000
    small_on_disk = png_claiming(side, side, bytes(1_000_000))
    assert len(small_on_disk) < 10_000
    assert "the limit is" in refused(small_on_disk)


def test_a_comment_in_a_png_is_not_unpacked_whatever_its_size() -> None:
    plain = encoded(halves(8, 8), "PNG")
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    data = plain[:33] + png_chunk(b"zTXt", text) + plain[33:]
    assert decoded(data).width == 8


def test_an_image_with_no_pixels_at_all_is_refused_not_handed_on() -> None:
    """Otherwise the image fails in the resize, together with the images of its batch."""
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = bytes(4)
    bmp = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = bytes(8)
    for data in (bytes(gif), bytes(bmp), png_claiming(0, 5, b""), png_claiming(5, 0, b"")):
        try:
            seen = decode(data, LIMITS, edge=EDGE)
        except BadImage:
            continue
        pixels = Preprocess(shortest=8, height=8, width=8).apply(seen.image)
        assert pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("marked", [True, False])
def test_a_cmyk_jpeg_keeps_its_colours_with_adobes_marker_or_without(marked: bool) -> None:
    """Photoshop and Pillow store the values inverted: 255 is no ink."""
    data = encoded(halves(64, 64).convert("CMYK"), "JPEG", quality=95)
    data = data if marked else without_adobe_marker(data)
    assert (b"Adobe" in data) is marked
    seen = decoded(data)
    assert near(seen.image, (8, 8), (255, 0, 0))
    assert near(seen.image, (56, 8), (0, 0, 255))


def test_a_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 1)
    seen = decoded(encoded(image, "PNG", transparency=0))
    assert near(seen.image, (0, 0), (0, 255, 0))
    assert near(seen.image, (3, 3), (255, 255, 255))


@pytest.mark.parametrize(("mode", "clear"), [("LA", (0, 0)), ("RGBA", (0, 0, 0, 0))])
def test_what_is_transparent_becomes_white(mode: str, clear: tuple[int, ...]) -> None:
    seen = decoded(encoded(Image.new(mode, (4, 4), clear), "PNG"))
    assert near(seen.image, (1, 1), (255, 255, 255))


def test_half_transparent_black_becomes_grey() -> None:
    seen = decoded(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert near(seen.image, (1, 1), (127, 127, 127))


def test_a_sixteen_bit_grey_png_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    seen = decoded(encoded(Image.fromarray(ramp), "PNG"))
    assert np.abs(seen.image[..., 0] - ramp / 257.0).max() <= 1


def test_a_sixteen_bit_colour_png_keeps_its_colour() -> None:
    assert near(
        decoded(png(1, 4, 16, 2, struct.pack(">HHH", 65_535, 32_768, 0) * 4)).image,
        (0, 1),
        (255, 128, 0),
    )


def test_a_palette_and_one_bit_images_get_their_colours() -> None:
    seen = decoded(encoded(halves(8, 8).quantize(4), "PNG"))
    assert near(seen.image, (1, 1), (255, 0, 0))
    assert near(seen.image, (6, 1), (0, 0, 255))
    bits = Image.new("1", (8, 8), 0)
    bits.putpixel((3, 3), 1)
    seen = decoded(encoded(bits, "PNG"))
    assert near(seen.image, (3, 3), (255, 255, 255))
    assert near(seen.image, (0, 0), (0, 0, 0))


def test_a_large_image_with_transparency_is_shrunk_before_it_is_laid_on_white() -> None:
    image = Image.new("RGBA", (601, 450), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 300, 450))
    seen = decoded(encoded(image, "PNG"), edge=20)
    assert (seen.width, seen.height) == (601, 450)
    assert seen.image.shape == (112, 150, 3)
    assert near(seen.image, (10, 50), (255, 0, 0))
    assert near(seen.image, (140, 50), (255, 255, 255))


def test_a_floating_point_tiff_is_scaled_to_eight_bits() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    seen = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert np.abs(seen.image[..., 0] - values * 255).max() <= 1


def test_floating_point_beyond_white_is_scaled_down_and_below_black_is_black() -> None:
    values = np.array([[-3, 0], [5, 10]], np.float32)
    seen = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert np.abs(seen.image[..., 0] - np.array([[0, 0], [127, 255]])).max() <= 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_floating_point_tiff_with_holes_keeps_its_other_pixels(odd: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0] = odd
    seen = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert near(seen.image, (2, 2), (127, 127, 127))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format_is_read(kind: str) -> None:
    seen = decoded(encoded(halves(64, 48), kind))
    assert (seen.width, seen.height) == (64, 48)
    assert near(seen.image, (4, 4), (255, 0, 0))
    assert near(seen.image, (60, 4), (0, 0, 255))


def test_what_is_no_image_is_refused_in_words() -> None:
    assert refused(b"") == "the file is empty"
    assert "no image of a known format" in refused(b"Dear diary, today I took no photos.")
    assert "no image of a known format" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n")


def test_a_file_over_the_byte_limit_is_refused_at_the_limit_it_is_not() -> None:
    data = encoded(halves(64, 64), "PNG")
    assert str(len(data) - 1) in refused(data, Limits(image_bytes=len(data) - 1))
    assert decode(data, Limits(image_bytes=len(data)), edge=EDGE).width == 64


def test_the_pixel_limit_itself_is_still_allowed() -> None:
    data = encoded(halves(10, 10), "PNG")
    assert decode(data, Limits(image_pixels=100), edge=EDGE).width == 10
    assert "10x10" in refused(data, Limits(image_pixels=99))


SEEDS = [encoded(Image.effect_noise((24, 16), 60).convert("RGB"), kind) for kind in FORMATS]
CHANGE = st.tuples(st.integers(0, 10_000), st.integers(0, 255))


@effort(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(CHANGE, max_size=12), st.integers(0, 10_000))
def test_whatever_the_bytes_it_is_decoded_or_a_bad_image(
    seed: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        seen = decode(bytes(data[: cut or None]), Limits(image_pixels=1_000_000), edge=8)
    except BadImage:
        return
    height, width, channels = seen.image.shape
    assert channels == 3
    assert min(height, width) > 0


def test_an_image_to_search_by_has_few_pixels_in_memory() -> None:
    """The pixels that remain after a JPEG is shrunk on load are what counts."""
    image = Image.new("RGB", (800, 800))
    for kind, limit, fits in (
        ("PNG", 640_000, True),
        ("PNG", 639_999, False),
        ("JPEG", 10_000, True),
        ("JPEG", 9_999, False),
    ):
        file = io.BytesIO()
        image.save(file, kind)
        if fits:
            assert decode(file.getvalue(), Limits(), edge=20, in_memory=limit).width == 800
        else:
            with pytest.raises(BadImage, match="CLIPFLEET_LIMITS__QUERY_PIXELS"):
                decode(file.getvalue(), Limits(), edge=20, in_memory=limit)
        assert decode(file.getvalue(), Limits(), edge=20).width == 800
