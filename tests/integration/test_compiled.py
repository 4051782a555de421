"""CLIPFLEET_COMPILE gives the same embeddings, also where nothing can be compiled."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.models import clip_embedder, tiny_clip

if TYPE_CHECKING:
    from clipfleet.workers.embedding.clip import ClipEmbedder


def pixels(embedder: "ClipEmbedder", count: int) -> np.ndarray:
    shape = (count, embedder.preprocess.height, embedder.preprocess.width, 3)
    return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's own
def test_a_compiled_model_gives_the_same_embeddings_whatever_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)  # no pool of compilers for so little
    model = tiny_clip(tmp_path, layers=1)  # compilers take seconds for a layer
    plain = clip_embedder(model)
    compiled = clip_embedder(model, compile=True)
    assert compiled._compiled
    for count in (1, 3, 8, 21):
        images = pixels(plain, count)
        there = compiled.embed_images(images)
        assert there.shape == (count, plain.dim)
        assert np.allclose(there, plain.embed_images(images), atol=1e-5)


def test_where_nothing_can_be_compiled_the_model_runs_as_it_is_and_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(*_: object, **__: object) -> object:
        def fails(**__: object) -> object:
            raise RuntimeError("no C++ compiler was found\nand much more")

        return fails

    monkeypatch.setattr("torch.compile", compiled)
    with caplog.at_level(logging.WARNING):
        embedder = clip_embedder(tiny, compile=True)
    (line,) = [
        record.getMessage() for record in caplog.records if record.name.endswith("embedding.clip")
    ]
    assert line == "CLIPFLEET_COMPILE: the model runs uncompiled: no C++ compiler was found"
    assert embedder.embed_images(pixels(embedder, 3)).shape == (3, embedder.dim)
