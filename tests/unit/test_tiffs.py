"""TIFF: each kind is shown as it is meant, or refused by its name; none is shown wrong."""

import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from clipfleet.common.errors import BadImage
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.settings import Limits
from support.images import EDGE, LIMITS, decoded, encoded, halves, near, refused
from support.tiffs import packed, tiff

WIDTH, HEIGHT = 37, 11
X, Y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
COLOUR = np.stack([X, Y, 1 - X], axis=2)  # from 0 to 1
ALPHA = (X + Y) / 2
ZERO = np.zeros_like(X)
GREY = X[..., None]


def tiff_of(
    channels: NDArray[np.float64],
    bits: int,
    *,
    number: int = 1,
    order: str = "<",
    planes: bool = False,
    photometric: int = 1,
    deflate: bool = False,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIFF of channels [height, width, samples] from 0 to 1."""
    if number == 3:
        values = channels.astype(f"f{bits // 8}")
    else:
        whole = np.round(channels * (2**bits - 1))
        values = whole.astype("u1" if bits <= 8 else "u2" if bits <= 16 else "u4")
    parts = np.moveaxis(values, -1, 0) if planes else [values.reshape(HEIGHT, -1)]
    return tiff(
        [packed(part, bits, order) for part in parts],
        (WIDTH, HEIGHT),
        bits,
        order=order,
        photometric=photometric,
        samples=channels.shape[-1],
        number=number,
        deflate=deflate,
        tags=tags,
    )


def is_like(seen: Pixels, right: NDArray[np.float64], tolerance: float = 2) -> bool:
    """Whether an image is like values from 0 to 1."""
    return bool(np.abs(seen - 255 * np.broadcast_to(right, seen.shape)).max() <= tolerance)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16])
def test_grey_is_scaled_by_its_own_depth(bits: int, order: str, deflate: bool) -> None:
    seen = decoded(tiff_of(GREY, bits, order=order, deflate=deflate)).image
    right = np.round(GREY * (2**bits - 1)) / (2**bits - 1)
    assert is_like(seen, right)


@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
def test_grey_whose_zero_is_white_is_inverted(bits: int) -> None:
    seen = decoded(tiff_of(1 - GREY, bits, photometric=0)).image
    assert is_like(seen, 1 - np.round((1 - GREY) * (2**bits - 1)) / (2**bits - 1))


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_numbers_of_each_size_are_read(bits: int, order: str) -> None:
    assert is_like(decoded(tiff_of(GREY, bits, number=3, order=order)).image, GREY)
    assert is_like(
        decoded(tiff_of(COLOUR, bits, number=3, order=order, photometric=2)).image, COLOUR
    )
    assert is_like(decoded(tiff_of(1 - GREY, bits, number=3, photometric=0)).image, GREY)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colours_are_read_together_or_in_planes(
    bits: int, planes: bool, order: str, deflate: bool
) -> None:
    data = tiff_of(COLOUR, bits, planes=planes, order=order, photometric=2, deflate=deflate)
    assert is_like(decoded(data).image, COLOUR)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", [False, True])
def test_transparency_lies_on_white(bits: int, planes: bool) -> None:
    alpha = ALPHA[..., None]
    for channels, photometric in ((COLOUR, 2), (GREY, 1)):
        right = channels * alpha + 1 - alpha
        straight = np.concatenate([channels, alpha], axis=2)
        multiplied = np.concatenate([channels * alpha, alpha], axis=2)
        for pixels, kind in ((straight, 2), (multiplied, 1)):
            tags = {338: [kind]}
            data = tiff_of(pixels, bits, planes=planes, photometric=photometric, tags=tags)
            assert is_like(decoded(data).image, right, 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_channel_that_is_not_named_is_transparency_unless_it_is_empty(bits: int) -> None:
    seen = decoded(tiff_of(np.dstack([COLOUR, ZERO]), bits, photometric=2))
    assert is_like(seen.image, COLOUR)
    seen = decoded(tiff_of(np.dstack([COLOUR, ALPHA]), bits, photometric=2))
    assert is_like(seen.image, COLOUR * ALPHA[..., None] + 1 - ALPHA[..., None], 3)
    seen = decoded(tiff_of(np.dstack([COLOUR, ALPHA]), bits, photometric=2, tags={338: [0]}))
    assert is_like(seen.image, COLOUR)
    seen = decoded(tiff_of(np.dstack([GREY, ZERO]), bits))
    assert is_like(seen.image, GREY)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_ink_with_a_channel_beside_it_is_read(bits: int, kind: int) -> None:
    alpha = np.full_like(X, 0.5)
    ink = np.dstack([1 - COLOUR, ZERO]) * (0.5 if kind == 1 else 1)
    right = COLOUR if kind == 0 else COLOUR * 0.5 + 0.5
    data = tiff_of(np.dstack([ink, alpha]), bits, photometric=5, tags={338: [kind]})
    assert is_like(decoded(data).image, right, 4)


def test_differences_of_neighbours_are_summed_up() -> None:
    whole = np.round(COLOUR * 65_535).astype("u2").reshape(HEIGHT, -1)
    steps = whole.reshape(HEIGHT, WIDTH, 3).copy()
    steps[:, 1:] -= steps[:, :-1].copy()
    for order in "<>":
        rows = packed(steps.reshape(HEIGHT, -1), 16, order)
        data = tiff(
            [rows], (WIDTH, HEIGHT), 16, order=order, photometric=2, samples=3, deflate=True,
            tags={317: [2]},
        )  # fmt: skip
        assert is_like(decoded(data).image, COLOUR)


def test_floating_point_numbers_with_their_predictor_are_read() -> None:
    split = COLOUR[..., 0].astype(">f4").view("u1").reshape(HEIGHT, WIDTH, 4)
    planes = np.moveaxis(split, 2, 1).reshape(HEIGHT, -1).copy()
    planes[:, 1:] -= planes[:, :-1].copy()
    rows = [row.tobytes() for row in planes]
    data = tiff([rows], (WIDTH, HEIGHT), 32, number=3, deflate=True, tags={317: [3]})
    assert is_like(decoded(data).image, GREY)


@pytest.mark.parametrize(
    ("bits", "number", "name"),
    [
        (8, 2, "8-bit signed"),
        (16, 2, "16-bit signed"),
        (32, 2, "32-bit signed"),
        (32, 1, "32-bit whole"),
        (64, 5, "64-bit complex"),
    ],
)
def test_numbers_without_an_agreed_white_are_refused_by_their_name(
    bits: int, number: int, name: str
) -> None:
    rows = packed(np.zeros((HEIGHT, WIDTH), f"u{bits // 8}"), bits)
    reason = refused(tiff([rows], (WIDTH, HEIGHT), bits, number=number))
    assert f"TIFF of {name} numbers, grey" in reason
    assert "8 or 16 bits" in reason


@pytest.mark.parametrize(
    ("photometric", "name"), [(8, "Lab"), (32_803, "camera sensor"), (777, "photometric 777")]
)
def test_colours_that_are_not_read_are_named(photometric: int, name: str) -> None:
    rows = packed(np.zeros((HEIGHT, WIDTH * 3), "u2"), 16)
    data = tiff([rows], (WIDTH, HEIGHT), 16, photometric=photometric, samples=3)
    assert name in refused(data)


def test_a_compression_that_is_not_read_is_named() -> None:
    data = tiff_of(GREY, 8, tags={259: [34712]})
    assert "JPEG 2000" in refused(data)


def test_a_big_tiff_is_read_in_both_byte_orders() -> None:
    for order in "<>":
        value = b"\x80\xff"  # two pixels
        tags = [(256, 3, 2), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
        tags += [(273, 16, 16), (278, 3, 1), (279, 16, 2)]
        entries = b"".join(
            struct.pack(f"{order}HHQ", tag, kind, 1)
            + struct.pack(order + ("H" if kind == 3 else "Q"), number).ljust(8, b"\0")
            for tag, kind, number in sorted(tags)
        )
        head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 24)
        data = head + value.ljust(8, b"\0")
        data += struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
        assert decoded(data).image[0, :, 0].tolist() == [128, 255]


def test_damage_in_tags_that_no_image_needs_does_not_matter() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34665] = 4_000_000_000  # where EXIF would be
    tags[700] = b'<x tiff:Orientation="6"/>'
    seen = decoded(encoded(halves(64, 32), "TIFF", tiffinfo=tags))
    assert (seen.width, seen.height) == (64, 32)
    assert near(seen.image, (8, 8), (255, 0, 0))


def test_the_samples_of_a_tiff_are_bounded() -> None:
    data = tiff_of(COLOUR, 64, number=3, photometric=2)
    assert "more than" in refused(data, Limits(image_pixels=WIDTH * HEIGHT))
    with pytest.raises(BadImage, match="its samples have more than"):
        decode(data, LIMITS, edge=EDGE, in_memory=WIDTH * HEIGHT)
    assert decode(data, LIMITS, edge=EDGE, in_memory=3 * WIDTH * HEIGHT).width == WIDTH


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_tiff_that_is_cut_short_is_refused(bits: int) -> None:
    data = tiff_of(GREY, bits, deflate=True)
    for length in (9, 40, len(data) // 2, len(data) - 40):
        assert refused(data[:length])
    short = bytearray(data)
    short[4:8] = struct.pack("<I", len(data) - 6)
    assert "cut short" in refused(bytes(short))


def test_lab_in_planes_has_the_colours_of_lab_together() -> None:
    together = decoded(tiff_of(COLOUR, 8, photometric=8)).image
    assert (decoded(tiff_of(COLOUR, 8, photometric=8, planes=True)).image == together).all()


def test_lab_and_ink_of_eight_bits_keep_their_colours() -> None:
    for mode in ("LAB", "CMYK", "YCbCr"):
        image = halves(64, 32).convert("RGB")
        converted = image.convert(mode) if mode != "LAB" else lab(image)
        seen = decoded(encoded(converted, "TIFF"))
        assert np.abs(seen.image[8, 8] - [255.0, 0, 0]).max() <= 25, mode
        assert np.abs(seen.image[8, 56] - [0.0, 0, 255]).max() <= 25, mode


def lab(image: Image.Image) -> Image.Image:
    """Red and blue in CIE L*a*b*, as Pillow stores it."""
    pixels = np.zeros((image.height, image.width, 3), np.uint8)
    pixels[:, : image.width // 2] = (138, 81, 70)
    pixels[:, image.width // 2 :] = (75, 68, 144)
    return Image.frombytes("LAB", image.size, pixels.tobytes())
