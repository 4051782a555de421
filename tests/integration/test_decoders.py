"""The faster decoder of JPEGs gives exactly the pixels that Pillow gives."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfleet.common.imaging.decode import OVERSAMPLING, decode
from clipfleet.common.settings import Limits
from support.models import data

EDGE = 224


def require_same(whole: bytes) -> None:
    ours = decode(whole, Limits(), edge=EDGE).image
    theirs = Image.open(io.BytesIO(whole)).convert("RGB")
    assert np.array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize(
    "photos", ["flickr8k/images", "imagenette2-224/val/n03028079", "caltech101-128/Faces"]
)
def test_photos(photos: str) -> None:
    paths = sorted(data(photos).glob("*.[jJ]*"))[::8]
    assert len(paths) > 3
    for path in paths:
        require_same(path.read_bytes())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (127, 129), (320, 240)])
def test_every_way_to_write_one(subsampling: str, progressive: bool, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(
        file, "JPEG", quality=80, subsampling=subsampling, progressive=progressive
    )
    require_same(file.getvalue())


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_large_ones_are_shrunk_as_pillow_shrinks_them(
    scale: int, subsampling: str, progressive: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    file, size = io.BytesIO(), (104 * scale, 80 * scale)
    Image.fromarray(noise).resize(size).save(
        file, "JPEG", quality=80, subsampling=subsampling, progressive=progressive
    )
    ours = decode(file.getvalue(), Limits(), edge=80 // OVERSAMPLING).image
    theirs = Image.open(file)
    theirs.draft(None, (104, 80))
    assert theirs.size == (104, 80)
    assert np.array_equal(ours, np.asarray(theirs))


def test_one_with_garbage_in_the_middle_is_taken_as_pillow_takes_it() -> None:
    """libjpeg warns, and Pillow returns the pixels that it could read."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    whole = bytearray(file.getvalue())
    middle = len(whole) // 2
    whole[middle : middle + 40] = b"\xff\xd5" * 20
    require_same(bytes(whole))


def test_the_shared_photos_are_jpegs_of_the_common_kind() -> None:
    """With any other kind, the tests above would compare Pillow with itself."""
    some: Path = sorted(data("flickr8k/images").glob("*.jpg"))[0]
    with Image.open(some) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
