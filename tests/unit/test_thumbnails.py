"""Thumbnails: their shape, and that they keep no metadata of the original."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from clipfleet.common.blobs import BlobGone
from clipfleet.common.errors import BadImage
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.decode import Decoded, decode
from clipfleet.common.imaging.thumbnails import (
    MAX_BYTES,
    MAX_BYTES_PER_PIXEL,
    read_thumbnail,
    thumbnail,
    thumbnail_key,
    thumbnail_keys,
)
from clipfleet.common.settings import Limits
from support.images import encoded
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
    image = np.full((size[1], size[0], 3), (255, 0, 0), np.uint8)
    assert opened(thumbnail(Decoded(image, *size), 256)).size == expected


def photo(width: int, height: int) -> Image.Image:
    rough = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def of_file(data: bytes, edge: int = 256) -> bytes:
    return thumbnail(decode(data, Limits(), edge=176), edge)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_small_jpeg_is_its_own_thumbnail_without_what_is_not_its_image(
    subsampling: str, restarts: int
) -> None:
    image, exif = photo(224, 180), Image.Exif()
    exif[0x010E] = "a secret"
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    plain = {"quality": 80, "subsampling": subsampling, "restart_marker_rows": restarts}
    data = encoded(image, "JPEG", exif=exif, comment=b"a secret", icc_profile=b"a secret", **plain)
    small = of_file(data + b"a secret after the end")
    assert b"secret" in data
    assert b"secret" not in small
    assert small == encoded(image, "JPEG", **plain)
    assert np.array_equal(np.asarray(opened(small)), np.asarray(opened(data)))


def adobe(data: bytes) -> bytes:
    """The JPEG with the marker of Adobe, which says how its colours are to be read."""
    return data[:20] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01" + data[20:]


def without_jfif(data: bytes) -> bytes:
    return data[:2] + data[20:]


def with_a_picture(data: bytes) -> bytes:
    """The JPEG with the small picture that its first segment may hold."""
    picture = b"\x01\x01abc"
    return data[:4] + b"\x00\x13" + data[6:18] + picture + data[20:]


OTHERS = {
    "progressive": encoded(photo(200, 150), "JPEG", quality=80, progressive=True),
    "heavy": encoded(photo(200, 150).effect_spread(40), "JPEG", quality=99),
    "larger": encoded(photo(300, 150), "JPEG", quality=80),
    "turned": encoded(
        photo(200, 150),
        "JPEG",
        quality=80,
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    "grey": encoded(photo(200, 150).convert("L"), "JPEG", quality=80),
    "png": encoded(photo(200, 150), "PNG"),
    "adobe": adobe(encoded(photo(200, 150), "JPEG", quality=80)),
    "no JFIF": without_jfif(encoded(photo(200, 150), "JPEG", quality=80)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_image_is_written_again(kind: str) -> None:
    decoded = decode(OTHERS[kind], Limits(), edge=176)
    small = thumbnail(decoded, 256)
    assert small == thumbnail(Decoded(decoded.image, decoded.width, decoded.height), 256)
    assert max(opened(small).size) <= 256


def test_the_picture_within_the_first_segment_is_left_out() -> None:
    plain = encoded(photo(200, 150), "JPEG", quality=80)
    data = with_a_picture(plain)
    assert b"abc" in data
    assert np.array_equal(np.asarray(opened(data)), np.asarray(opened(plain)))
    assert of_file(data) == plain


CHANGE = st.tuples(st.integers(0, 700), st.integers(0, 255))  # the headers, and some of the scan


@effort(max_examples=300, deadline=None)
@given(st.lists(CHANGE, max_size=6))
def test_a_damaged_jpeg_has_a_thumbnail_of_the_pixels_that_it_was_decoded_to(
    changes: list[tuple[int, int]],
) -> None:
    data = bytearray(encoded(photo(64, 48), "JPEG", quality=80, comment=b"c" * 40))
    for place, value in changes:
        data[place] = value
    try:
        seen = decode(bytes(data), Limits(image_pixels=10_000), edge=176)
    except BadImage:
        return
    shown = np.asarray(opened(thumbnail(seen, 256))).astype(int)
    assert shown.shape == seen.image.shape
    if len(data) <= MAX_BYTES_PER_PIXEL * 64 * 48:
        assert np.abs(shown - seen.image).mean() <= 12


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


def test_a_thumbnail_in_the_folder_of_the_release_before_is_read_and_deleted(
    workplace: Workplace,
) -> None:
    collection, pk, blobs = workplace.collection, primary_key("n", "old.jpg"), workplace.blobs
    now, earlier = thumbnail_keys(collection, [pk])
    assert now == thumbnail_key(collection, pk) != earlier
    blobs.put(earlier, io.BytesIO(b"earlier"))
    assert read_thumbnail(blobs, collection, pk) == b"earlier"
    blobs.put(now, io.BytesIO(b"now"))
    assert read_thumbnail(blobs, collection, pk) == b"now"
    blobs.delete_all(thumbnail_keys(collection, [pk]))
    with pytest.raises(BlobGone):
        read_thumbnail(blobs, collection, pk)
