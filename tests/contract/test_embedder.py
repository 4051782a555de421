"""Contract of every embedder, on the hash embedder and on a real CLIP model."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipfleet.common.imaging.embedder import Embedder, HashEmbedder
from support import models


@pytest.fixture(scope="module", params=["hash", "clip"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    if request.param == "hash":
        return HashEmbedder()
    return models.clip_embedder(request.getfixturevalue("tiny"))


def pixels(embedder: Embedder, count: int) -> Any:
    spec = embedder.preprocess
    shape = (count, spec.height, spec.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_pixels_are_what_the_announced_preprocessing_gives(
    embedder: Embedder,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for size in ((400, 300), (90, 120), (64, 64), (7, 3000)):
        image = np.asarray(Image.fromarray(noise).resize(size))
        seen, expected = embedder.preprocess.apply(image), embedder.preprocess.apply(image)
        assert seen.dtype == np.uint8
        assert np.array_equal(seen, expected)


def test_rows_are_float32_of_unit_length_and_the_right_width(embedder: Embedder) -> None:
    for rows in (embedder.embed_texts(["a", "b", ""]), embedder.embed_images(pixels(embedder, 3))):
        assert rows.shape == (3, embedder.dim)
        assert rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_row_i_answers_item_i_whatever_else_is_in_the_batch(embedder: Embedder) -> None:
    texts: Any = [f"text {n} " * (1 + n % 9) for n in range(70)]
    embed: Any
    for embed, items in (
        (embedder.embed_images, pixels(embedder, 70)),
        (embedder.embed_texts, texts),
    ):
        together = embed(items)
        for n in (0, 33, 69):
            assert np.allclose(together[n], embed(items[n : n + 1])[0], atol=1e-5)


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    assert embedder.embed_texts([]).shape == (0, embedder.dim)
    assert embedder.embed_images(pixels(embedder, 0)).shape == (0, embedder.dim)


def test_calls_at_once_get_their_own_rows(embedder: Embedder) -> None:
    images = pixels(embedder, 40)
    orders = [np.roll(images, by, 0) for by in range(8)]
    expected = [embedder.embed_images(order) for order in orders]
    with ThreadPoolExecutor(4) as threads:
        rows = list(threads.map(embedder.embed_images, orders))
    assert np.allclose(rows, expected, atol=1e-5)
