"""From an image to a model's pixels, and from those pixels to bytes for Redis and back."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from clipfleet.common.imaging import preprocess
from clipfleet.common.imaging import resize as resizing
from clipfleet.common.imaging.preprocess import Pixels, Preprocess
from clipfleet.common.imaging.resize import by_pillow, resize
from clipfleet.common.queue.pixels import pack, unpack

CLIP = Preprocess(shortest=224, height=224, width=224)
SQUASH = Preprocess(height=64, width=48)
SIDE = st.integers(1, 700)


def noise(height: int, width: int) -> Pixels:
    random = np.random.default_rng(7)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def coloured(size: tuple[int, int], colour: str) -> Pixels:
    return np.asarray(Image.new("RGB", size, colour))


FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
SIZES = [(224, 224), (500, 333), (1_000, 700), (90, 120), (176, 300), (300, 176), (7, 2_500)]


@pytest.mark.parametrize("how", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_resized_to_what_pillow_makes_of_it_except_for_rounding(
    size: tuple[int, int], how: Image.Resampling
) -> None:
    """Rows first, which Pillow chooses for most images: two of its calls."""
    image = noise(*size)
    rows = Image.fromarray(image).resize((176, size[0]), how)
    expected = np.asarray(rows.resize((176, 176), how))
    difference = np.abs(resize(image, 176, 176, how).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.02


def test_an_image_of_several_bands_is_resized_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(701, 900)
    whole = resize(image, 176, 150, Image.Resampling.BICUBIC)
    monkeypatch.setattr(resizing, "BAND_BYTES", 3 * 900 * 100)
    assert np.array_equal(resize(image, 176, 150, Image.Resampling.BICUBIC), whole)


@pytest.mark.parametrize("how", [Image.Resampling.HAMMING, Image.Resampling.NEAREST])
def test_other_filters_and_platforms_without_the_resizer_have_pillow(
    how: Image.Resampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(60, 50)
    assert np.array_equal(resize(image, 31, 33, how), by_pillow(image, 31, 33, how))
    monkeypatch.setattr(resizing, "fast", None)
    expected = by_pillow(image, 31, 33, Image.Resampling.BICUBIC)
    assert np.array_equal(resize(image, 31, 33, Image.Resampling.BICUBIC), expected)


def test_threads_resize_at_the_same_time() -> None:
    """A resizer that two threads share refuses the call of the second."""
    images = [noise(900 + n, 1_200) for n in range(8)]
    expected = [CLIP.apply(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for seen, alone in zip(threads.map(CLIP.apply, images), expected, strict=True):
                assert np.array_equal(seen, alone)


@effort(max_examples=60, deadline=None)
@given(SIDE, SIDE)
def test_any_size_comes_out_in_the_models_shape(width: int, height: int) -> None:
    image = np.full((height, width, 3), (0, 128, 128), np.uint8)
    for spec in (CLIP, SQUASH, Preprocess(shortest=32, height=48, width=16)):
        pixels = spec.apply(image)
        assert pixels.shape == (spec.height, spec.width, 3)
        assert pixels.dtype == np.uint8


@effort(max_examples=60, deadline=None)
@given(SIDE, SIDE)
def test_one_colour_stays_that_colour_to_the_edges(width: int, height: int) -> None:
    image = np.full((height, width, 3), (10, 120, 230), np.uint8)
    for spec in (CLIP, SQUASH):
        assert (spec.apply(image) == (10, 120, 230)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 40_000), (40_000, 7)])
@pytest.mark.parametrize("spec", [CLIP, SQUASH, Preprocess(shortest=512, height=224, width=448)])
def test_a_strip_is_never_blown_up_beyond_what_the_crop_can_see(
    size: tuple[int, int], spec: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def noted(image: Pixels, width: int, height: int, how: Image.Resampling) -> Pixels:
        sizes.append((width, height))
        return resize(image, width, height, how)

    monkeypatch.setattr(preprocess, "resize", noted)
    pixels = spec.apply(coloured(size, "red"))
    assert pixels.shape == (spec.height, spec.width, 3)
    assert sizes
    largest = 8 * max(spec.edge(), spec.height, spec.width)
    assert all(width <= largest and height <= largest for width, height in sizes)


def test_the_shortest_edge_crops_the_middle_and_squash_keeps_the_ends() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("red", (0, 0, 100, 100))
    image.paste("lime", (100, 0, 200, 100))
    image.paste("blue", (200, 0, 300, 100))
    cropped = Preprocess(shortest=100, height=100, width=100).apply(np.asarray(image))
    assert (cropped[:, 5:95] == (0, 255, 0)).all()
    squashed = Preprocess(height=90, width=90).apply(np.asarray(image))
    assert (squashed[:, 2] == (255, 0, 0)).all()
    assert (squashed[:, 87] == (0, 0, 255)).all()


def test_the_middle_of_a_strip_stays_its_middle() -> None:
    image = Image.new("RGB", (6_000, 10), "red")
    image.paste("lime", (2_990, 0, 3_010, 10))
    seen = Preprocess(shortest=10, height=10, width=10).apply(np.asarray(image))
    assert (seen[:, 1:9] == (0, 255, 0)).all()


def test_a_crop_larger_than_the_resized_image_is_padded_with_black() -> None:
    spec = Preprocess(shortest=10, height=20, width=20)
    seen = spec.apply(coloured((50, 50), "white"))
    assert seen.shape == (20, 20, 3)
    assert (seen[5:15, 5:15] == 255).all()
    assert seen.sum() == 10 * 10 * 3 * 255


def test_fit_shows_the_whole_image_between_bands_of_the_grey_level() -> None:
    image = Image.new("RGB", (300, 100), "red")
    spec = Preprocess(v=2, height=90, width=90, sides="fit", crop="nearest", fill=127)
    seen = spec.apply(np.asarray(image))
    assert (seen[30:60] == (255, 0, 0)).all()
    assert (seen[:30] == 127).all()
    assert (seen[60:] == 127).all()
    assert spec.apply(np.full((1, 60_000, 3), 9, np.uint8)).shape == (90, 90, 3)


def test_cover_fills_any_shape_and_crops_the_middle_of_the_longer_side() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("lime", (75, 0, 225, 100))
    spec = Preprocess(v=2, height=40, width=60, sides="cover", crop="nearest")
    assert (spec.apply(np.asarray(image))[:, 2:58] == (0, 255, 0)).all()


@pytest.mark.parametrize(("crop", "first"), [("down", 1), ("nearest", 2)])
def test_a_crop_that_is_half_a_pixel_off_is_rounded_as_the_library_does(
    crop: Literal["down", "nearest"], first: int
) -> None:
    columns = np.repeat(np.arange(7, dtype=np.uint8), 3).reshape(1, 7, 3)
    image = np.repeat(columns, 4, axis=0)
    seen = Preprocess(v=2, shortest=4, height=4, width=4, crop=crop).apply(image)
    assert seen[0, :, 0].tolist() == list(range(first, first + 4))


def test_a_record_of_earlier_releases_means_what_it_did() -> None:
    record = '{"v":1,"shortest":224,"height":224,"width":224,"resample":3}'
    assert Preprocess.model_validate_json(record) == CLIP


def test_the_edge_that_decoding_must_keep_is_the_longer_of_what_is_needed() -> None:
    assert CLIP.edge() == 224
    assert SQUASH.edge() == 64


def test_pixels_that_fit_travel_exactly() -> None:
    pixels = noise(224, 224)
    packed = pack(pixels, 256_000)
    assert len(packed) <= 256_000
    assert np.array_equal(unpack(packed), pixels)


def test_the_limit_is_on_the_packed_bytes() -> None:
    pixels = noise(10, 10)
    assert np.array_equal(unpack(pack(pixels, 308)), pixels)
    assert pack(pixels, 307)[:4] == b"JPG1"


def test_pixels_that_do_not_fit_travel_as_a_fine_jpeg() -> None:
    across = np.linspace(0, 255, 512).astype(np.uint8)
    pixels = np.repeat(np.tile(across, (400, 1))[..., None], 3, axis=2)
    packed = pack(pixels, 256_000)
    assert len(packed) <= 256_000
    seen = unpack(packed)
    assert seen.shape == pixels.shape
    assert seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("side", [384, 512])
def test_a_query_image_never_weighs_more_than_the_limit(side: int) -> None:
    """Noise is the worst case, because JPEG cannot compress it."""
    packed = pack(noise(side, side), 256_000)
    assert unpack(packed).shape == (side, side, 3)
    assert len(packed) <= 256_000


def test_the_header_says_the_size_of_what_follows() -> None:
    packed = pack(noise(3, 5), 1_000)
    assert unpack(packed).shape == (3, 5, 3)
    assert len(packed) == 8 + 3 * 5 * 3


def test_pixels_of_another_version_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="another version"):
        unpack(b"RAW9" + pack(noise(2, 2), 1_000)[4:])


def test_a_jpeg_sees_the_same_image_as_the_preprocessing_made() -> None:
    """Rows and columns are not swapped."""
    pixels = np.zeros((40, 90, 3), np.uint8)
    pixels[:, :45] = (255, 0, 0)
    packed = pack(pixels, 100)
    assert Image.open(io.BytesIO(packed[8:])).size == (90, 40)
    assert unpack(packed)[20, 10].tolist()[0] > 240
    assert unpack(packed)[20, 80].tolist()[0] < 15
