"""The embedder on real architectures, against transformers' own way of doing it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.settings import Settings
from support import models, webserver
from support.models import clip_embedder, data, tiny_siglip


@pytest.fixture(scope="module", params=["torch", "openvino"])
def embedder(request: pytest.FixtureRequest, tiny: Path) -> Embedder:
    return models.embedder(tiny, request.param)


def photos(count: int) -> list[Path]:
    return sorted((data("flickr8k") / "images").iterdir())[:count]


def theirs(model: Path, images: list[Image.Image]) -> np.ndarray:
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(model)
    pixels = processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
    with torch.no_grad():
        features = transformers.AutoModel.from_pretrained(model).get_image_features(**pixels)
    rows = getattr(features, "pooler_output", features).numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def ours(embedder: Embedder, paths: list[Path]) -> np.ndarray:
    limits, edge = Settings().limits, embedder.preprocess.edge()
    images = [decode(path.read_bytes(), limits, edge=edge).image for path in paths]
    return embedder.embed_images(np.stack([embedder.preprocess.apply(image) for image in images]))


def test_images_get_the_embeddings_that_the_models_own_processor_gives(
    embedder: Embedder, tiny: Path
) -> None:
    paths = photos(40)
    reference = theirs(tiny, [Image.open(path) for path in paths])
    cosines = (ours(embedder, paths) * reference).sum(axis=1)
    assert cosines.min() >= 0.999
    assert np.median(cosines) >= 0.9999


def test_rows_are_unit_float32_and_do_not_depend_on_the_batch(embedder: Embedder) -> None:
    texts = ["", "a dog", "ein Hund 🐕", "word " * 10_000]
    together = embedder.embed_texts(texts)
    alone = np.concatenate([embedder.embed_texts([text]) for text in texts])
    assert together.dtype == np.float32
    assert together.shape == (4, embedder.dim)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-5)
    paths = photos(3)
    images = ours(embedder, paths)
    assert np.allclose(images, np.concatenate([ours(embedder, [p]) for p in paths]), atol=1e-5)


def test_texts_get_the_embeddings_that_the_models_own_tokenizer_gives(
    embedder: Embedder, tiny: Path
) -> None:
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(tiny)(
        ["two dogs in the snow"], return_tensors="pt"
    )
    with torch.no_grad():
        features = transformers.AutoModel.from_pretrained(tiny).get_text_features(**tokens)
    row = getattr(features, "pooler_output", features)[0].numpy()
    mine = embedder.embed_texts(["two dogs in the snow"])[0]
    assert np.allclose(mine, row / np.linalg.norm(row), atol=1e-5)


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    assert embedder.embed_texts([]).shape == (0, embedder.dim)
    assert embedder.embed_images(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, embedder.dim)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_siglip_loads_and_embeds(tmp_path: Path, runtime: Literal["torch", "openvino"]) -> None:
    embedder = models.embedder(tiny_siglip(tmp_path), runtime)
    reference = theirs(tmp_path, [Image.open(path) for path in photos(8)])
    assert (ours(embedder, photos(8)) * reference).sum(axis=1).min() >= 0.999
    rows = embedder.embed_texts(["a", "a much longer text"])
    assert np.allclose(rows[0], embedder.embed_texts(["a"])[0], atol=1e-5)
    assert ours(embedder, photos(2)).shape == (2, embedder.dim)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_text_that_is_too_long_is_known(runtime: Literal["torch", "openvino"]) -> None:
    embedder = models.embedder("clipfleet-mini", runtime)
    cut = embedder.cut_texts(["a " * words for words in range(1, 100)])
    fitting = cut.index(True)
    assert fitting > 20
    assert cut == [False] * fitting + [True] * (99 - fitting)
    rows = embedder.embed_texts([f"{'a ' * (fitting - 1)}{end}" for end in ("a", "dog")])
    assert rows[0] @ rows[1] < 0.9999  # the last word that fits counts
    rows = embedder.embed_texts([f"{'a ' * fitting}{end}" for end in ("a", "dog")])
    assert rows[0] @ rows[1] > 0.9999  # the next one does not
    assert embedder.cut_texts(["犬 " * 100, "", "x, " * 40, "犬"]) == [True, False, True, False]
    assert embedder.cut_texts([]) == []


def test_without_hub_and_folder_the_error_names_both_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StartupError) as caught:
        clip_embedder("nobody/has-this-model")
    assert "hub" in caught.value.detail
    assert "CLIPFLEET_MODEL=/path/to/folder" in caught.value.detail


def test_a_model_that_is_not_for_transformers_may_be_one_of_open_clip(tmp_path: Path) -> None:
    def absent(request: webserver.PageRequest) -> None:
        request.begin(404, X_Error_Code="EntryNotFound", Content_Length="0")

    name = "somebody/their-clip"
    code = f"from clipfleet.workers.embedding.hub import require_model; require_model({name!r})"
    with webserver.site({f"/{name}/resolve/main/config.json": absent}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    assert f"name it hf-hub:{name}" in done.stderr


def test_a_folder_without_a_model_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not contain a complete model"):
        clip_embedder(tmp_path)
    with pytest.raises(StartupError, match="no model folder"):
        clip_embedder(tmp_path / "nope")
