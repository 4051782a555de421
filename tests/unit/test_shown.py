"""Which way up, which frame, and how much of a large photo is decoded."""

import io

import pytest
from PIL import Image, TiffImagePlugin

from clipfleet.common.imaging.preprocess import Pixels
from support.images import decoded, encoded, halves, near

ORIENTATION = 0x0112


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_or_of_several_pages_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert near(decoded(data).image, (3, 3), (255, 0, 0))


# (orientation, where the top left and top right corners of the stored image are shown)
SHOWN = [
    (1, "top left", "top right"),
    (2, "top right", "top left"),
    (3, "bottom right", "bottom left"),
    (4, "bottom left", "bottom right"),
    (5, "top left", "bottom left"),
    (6, "top right", "bottom right"),
    (7, "bottom right", "top right"),
    (8, "bottom left", "top left"),
]


@pytest.mark.parametrize(("orientation", "red", "lime"), SHOWN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_is_turned_as_it_was_taken_and_measured_as_shown(
    kind: str, orientation: int, red: str, lime: str
) -> None:
    image = Image.new("RGB", (96, 64), "blue")
    image.paste("red", (0, 0, 32, 32))
    image.paste("lime", (64, 0, 96, 32))
    seen = decoded(encoded(image, kind, **tagged(kind, orientation)))
    assert (seen.width, seen.height) == ((96, 64) if orientation < 5 else (64, 96))
    assert seen.image.shape == (seen.height, seen.width, 3)
    assert near(seen.image, corner(seen.image, red), (255, 0, 0))
    assert near(seen.image, corner(seen.image, lime), (0, 255, 0))


def tagged(kind: str, orientation: int) -> dict[str, object]:
    if kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[ORIENTATION] = orientation
        return {"tiffinfo": tags}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return {"exif": exif, "quality": 95}


def corner(image: Pixels, name: str) -> tuple[int, int]:
    down, across = name.split()
    x = 8 if across == "left" else image.shape[1] - 9
    return x, 8 if down == "top" else image.shape[0] - 9


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    seen = decoded(encoded(halves(64, 32), "JPEG", **tagged("JPEG", orientation)))
    assert seen.image.shape == (32, 64, 3)


def test_a_large_photo_taken_sideways_is_shrunk_and_turned() -> None:
    seen = decoded(encoded(halves(4_000, 3_000), "JPEG", **tagged("JPEG", 6)))
    assert (seen.width, seen.height) == (3_000, 4_000)
    assert seen.image.shape == (2_000, 1_500, 3)
    assert near(seen.image, (700, 100), (255, 0, 0))


def test_a_large_jpeg_is_shrunk_on_load_but_measured_in_full() -> None:
    seen = decoded(encoded(halves(4_000, 3_000), "JPEG"))
    assert (seen.width, seen.height) == (4_000, 3_000)
    assert seen.image.shape == (1_500, 2_000, 3)


@pytest.mark.parametrize("size", [(4_001, 3_000), (4_000, 3_001)])
def test_a_jpeg_is_shrunk_only_by_what_divides_both_its_sides(size: tuple[int, int]) -> None:
    """Half a pixel at the end of a row would stretch the whole image."""
    assert decoded(encoded(halves(*size), "JPEG")).image.shape == (*size[::-1], 3)


def test_a_phones_jpeg_with_a_second_picture_in_it_is_shrunk_on_load_too() -> None:
    """MPO: what phones write for gain maps and previews; to Pillow another format."""
    data = encoded(halves(4_000, 3_000), "MPO", save_all=True, append_images=[halves(64, 48)])
    seen = decoded(data)
    assert (seen.width, seen.height) == (4_000, 3_000)
    assert min(seen.image.shape[:2]) < 3_000
