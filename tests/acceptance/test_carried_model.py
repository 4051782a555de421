"""The carried model gives sensible results offline.

test_demo.py checks them through the whole service.
"""

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipfleet.cli import app, evaluation
from clipfleet.common.settings import CARRIED_MODEL, Settings, carried_model
from clipfleet.workers.embedding.clip import ClipEmbedder
from support.models import data
from support.stack import cli

SAMPLES = Path(str(files("clipfleet"))) / "samples"
NAMES = Path(__file__).parents[2] / "examples" / "imagenette.csv"


def test_it_is_small_enough_to_carry() -> None:
    size = sum(path.stat().st_size for path in carried_model().rglob("*"))
    assert size <= 25_000_000


@pytest.fixture(scope="module")
def embedder() -> ClipEmbedder:
    return ClipEmbedder(Settings(model=CARRIED_MODEL))


def test_half_of_the_sample_images_are_found_by_their_names(embedder: ClipEmbedder) -> None:
    """The recall was measured at 0.55; chance is 0.01."""
    paths = sorted(SAMPLES.rglob("*.png"))
    images = evaluation.embed_images(paths, embedder, Settings(), lambda *_: None)
    assert len(images.kept) == len(paths)
    names = embedder.embed_texts([path.stem.replace("-", " ") for path in paths])
    measured = evaluation.retrieve(names, images.rows, range(len(paths)), gallery=0)
    assert measured["recall@5"] >= 0.5


def test_sample_images_are_many_small_and_of_many_kinds() -> None:
    images = list(SAMPLES.rglob("*.png"))
    kinds = Counter(path.parent.name for path in images)
    named = ["animals", "food", "vehicles", "tools", "buildings", "people", "nature", "symbols"]
    assert len(images) >= 400
    assert sum(path.stat().st_size for path in images) <= 5_000_000
    assert min(kinds[kind] for kind in named) >= 25
    assert len({path.stem for path in images}) == len(images)


def test_photos_are_named_by_their_nearest_prompt() -> None:
    photos = data("imagenette2-224") / "val"
    options = ("--names", str(NAMES), "--limit", "200", "--json")
    done = cli("evaluate", str(photos), *options, HF_HUB_OFFLINE="1")
    report = json.loads(done.stdout)
    assert report["images"] == 200
    assert report["top1"] >= 0.85
    assert report["any_of_5"] >= 0.85


def test_captions_find_their_photos() -> None:
    """The command runs in this process, which has loaded the model already."""
    captions = data("flickr8k") / "captions.csv"
    options = ("--gallery", "100", "--limit", "100", "--json")
    done = CliRunner().invoke(app, ["evaluate", str(captions), *options], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["recall@1"] < report["recall@5"] < report["recall@10"]
    assert report["recall@10"] >= 0.5


def test_evaluate_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("a,b\n1,2\n")
    for source in (tmp_path, tmp_path / "captions.csv", tmp_path / "nowhere"):
        done = cli("evaluate", str(source), HF_HUB_OFFLINE="1")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


def test_odd_texts_and_images_get_finite_unit_vectors_whatever_else_is_in_the_batch(
    embedder: ClipEmbedder,
) -> None:
    texts = ["", "a dog", "word " * 10_000, "日本の教会", "🐕", "\x01\x02"]
    images = [np.full((*size, 3), (255, 0, 0), np.uint8) for size in ((1, 1), (3, 400), (176, 176))]
    pixels = np.stack([embedder.preprocess.apply(image) for image in images])
    for together, alone in (
        (embedder.embed_texts(texts), [embedder.embed_texts([text])[0] for text in texts]),
        (
            embedder.embed_images(pixels),
            [embedder.embed_images(picture[None])[0] for picture in pixels],
        ),
    ):
        assert np.isfinite(together).all()
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert np.allclose(together, np.stack(alone), atol=1e-4)
