"""Thumbnails: their shape, and that they keep no metadata of the original."""

import io

import pytest
from PIL import Image, ImageDraw

from clipfleet.common.blobs import BlobGone
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.thumbnails import MAX_BYTES, thumbnail, thumbnail_key
from support.worker_harness import Workplace


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def left_behind(workplace: Workplace, name: str) -> Image.Image:
    key = thumbnail_key(workplace.collection, primary_key("n", name))
    return opened(workplace.blobs.get(key, MAX_BYTES))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 500), (256, 128)),
        ((500, 1000), (128, 256)),
        ((100, 60), (100, 60)),
        ((1, 1), (1, 1)),
        ((60_000, 1), (256, 1)),
    ],
)
def test_the_longest_side_is_bounded_and_nothing_is_made_larger(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert opened(thumbnail(Image.new("RGB", size, "red"), 256)).size == expected


def test_colours_stay(workplace: Workplace) -> None:
    workplace.run([workplace.photo("grey.jpg", 140)])
    colour = left_behind(workplace, "grey.jpg").getpixel((3, 3))
    assert isinstance(colour, tuple)
    assert all(abs(channel - 140) <= 2 for channel in colour)


def test_position_comment_and_profile_of_the_original_are_gone_and_it_stands_upright(
    workplace: Workplace,
) -> None:
    image = Image.new("RGB", (40, 20), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x010E] = "a secret"
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    path = workplace.folder / "told.jpg"
    image.save(path, exif=exif, comment=b"a secret", icc_profile=b"a secret", quality=95)
    assert path.read_bytes().count(b"a secret") == 3
    workplace.run([workplace.item(path)])
    small = left_behind(workplace, "told.jpg")
    assert small.size == (20, 40)
    assert not small.getexif()
    assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    key = thumbnail_key(workplace.collection, primary_key("n", "told.jpg"))
    assert b"secret" not in workplace.blobs.get(key, MAX_BYTES)
    red, _, blue = small.getpixel((16, 3))  # type: ignore[misc]
    assert blue > 200 > red


def test_a_failed_image_leaves_none(workplace: Workplace) -> None:
    (workplace.folder / "text.jpg").write_text("no photo")
    workplace.run([workplace.item(workplace.folder / "text.jpg")])
    with pytest.raises(BlobGone):
        left_behind(workplace, "text.jpg")
