"""Embeddings from the bytes of a file, compared with the model's own image processor."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.settings import CARRIED_MODEL, Limits, carried_model
from support import models
from support.models import clip_embedder, data, tiny_clip

if TYPE_CHECKING:
    from clipfleet.workers.embedding.clip import ClipEmbedder

PHOTOS = {"flickr8k": "images/*.jpg", "imagenette2-224": "val/*/*", "caltech101-128": "*/*.jpg"}
MAX_PHOTOS = 80

Rows = NDArray[np.float32]


@pytest.fixture(scope="module", params=["torch", "openvino"])
def carried(request: pytest.FixtureRequest) -> Embedder:
    return models.embedder(CARRIED_MODEL, request.param)


@cache
def in_torch(model: str | Path) -> "ClipEmbedder":
    return clip_embedder(model, device="cpu")


@cache
def spread(folder: str) -> list[Path]:
    paths = sorted(data(folder).glob(PHOTOS[folder]))
    return paths[:: max(1, len(paths) // MAX_PHOTOS)][:MAX_PHOTOS]


@cache
def photo(number: int) -> Image.Image:
    photos = spread("flickr8k")
    return Image.open(photos[number % len(photos)]).convert("RGB")


def whole(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def mosaic(across: int, size: tuple[int, int], kind: str = "JPEG", first: int = 0) -> bytes:
    """Build one large image of `across` x `across` photos; more photos give finer detail."""
    width, height = size
    image = Image.new("RGB", size)
    for place in range(across * across):
        x, y = place % across, place // across
        x0, x1 = x * width // across, (x + 1) * width // across
        y0, y1 = y * height // across, (y + 1) * height // across
        box = (x1 - x0, y1 - y0)
        image.paste(photo(first + place).resize(box, Image.Resampling.BILINEAR), (x0, y0))
    target = io.BytesIO()
    image.save(target, kind, quality=90, compress_level=1)
    return target.getvalue()


def cosines(embedder: Embedder, model: str | Path, files: Sequence[bytes]) -> Rows:
    from clipfleet.workers.embedding.libraries import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(model)
    theirs = processor(images=[whole(file) for file in files], return_tensors="pt")
    rows = (our_embeddings(embedder, files), features(model, theirs["pixel_values"]))
    return np.asarray((rows[0] * rows[1]).sum(axis=1))


def our_embeddings(embedder: Embedder, files: Sequence[bytes]) -> Rows:
    return embedder.embed_images(np.stack([our_pixels(embedder, file) for file in files]))


def our_pixels(embedder: Embedder, file: bytes) -> NDArray[np.uint8]:
    return embedder.preprocess.apply(decode(file, Limits(), edge=embedder.preprocess.edge()).image)


def features(model: str | Path, pixel_values: Any) -> Rows:
    import torch

    with torch.inference_mode():
        output = in_torch(model).model.get_image_features(pixel_values=pixel_values)
    rows = getattr(output, "pooler_output", output).numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_photos_get_the_embeddings_of_the_models_own_processor(carried: Embedder) -> None:
    for folder in PHOTOS:
        files = [path.read_bytes() for path in spread(folder)]
        seen = cosines(carried, str(carried_model()), files)
        assert seen.min() >= 0.999, folder
        assert np.median(seen) >= 0.9999, folder


@pytest.mark.parametrize("across", [1, 4, 20])
@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((4000, 3000), "JPEG"),  # shrunk on load
        ((3023, 4031), "JPEG"),  # nothing divides it
        ((3520, 1760), "JPEG"),  # as small as may be for what it is shrunk by
        ((2000, 1504), "PNG"),
    ],
)
def test_large_images_get_the_embeddings_of_the_models_own_processor(
    carried: Embedder, across: int, size: tuple[int, int], kind: str
) -> None:
    files = [mosaic(across, size, kind, first) for first in (0, 27, 54)]
    seen = cosines(carried, str(carried_model()), files)
    assert seen.min() >= 0.999
    assert np.median(seen) >= 0.9999


def test_clips_own_preprocessing_is_ours_to_a_grey_level(tmp_path: Path) -> None:
    """CLIP as published, with shortest edge 224 and a centre crop, and random weights."""
    from clipfleet.workers.embedding.libraries import transformers

    embedder = clip_embedder(tiny_clip(tmp_path, image_size=224), device="cpu")
    processor = transformers.AutoImageProcessor.from_pretrained(data("clip-vit-base-patch32"))
    photos = [path.read_bytes() for path in spread("flickr8k")[:40]]
    large = [mosaic(across, (4000, 3000)) for across in (1, 20)]
    for files, tolerance in ((photos, 0.1), (large, 1.0)):
        theirs = processor(images=[whole(f) for f in files], do_normalize=False, do_rescale=False)
        expected = np.stack([np.asarray(image) for image in theirs["pixel_values"]]).transpose(
            0, 2, 3, 1
        )
        ours = np.stack([our_pixels(embedder, file) for file in files])
        assert np.abs(ours - expected.astype(float)).mean(axis=(1, 2, 3)).max() <= tolerance
        assert cosines(embedder, tmp_path, files).min() >= 0.999


def test_a_gateway_without_torch_makes_pixels_with_the_same_embedding(
    carried: Embedder,
) -> None:
    """A search by a photo that a worker indexed finds that photo with a score of 1."""
    files = [path.read_bytes() for path in spread("flickr8k")] + [mosaic(4, (4000, 3000))]
    edge = carried.preprocess.edge()
    images = [decode(file, Limits(), edge=edge).image for file in files]
    gateway = carried.embed_images(np.stack([carried.preprocess.apply(image) for image in images]))
    seen = (gateway * our_embeddings(carried, files)).sum(axis=1)
    assert seen.min() >= 0.999
    assert np.median(seen) >= 0.9999
