"""The model that travels with the code: results make sense, offline, through the whole chain."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from models import data
from PIL import Image
from stack import Up, cli, finished, up

from clipfleet.common.settings import CARRIED_MODEL, Settings, carried_model
from clipfleet.workers.clip import ClipEmbedder

WNIDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("mini"), CARRIED_MODEL, HF_HUB_OFFLINE="1") as running:
        yield running


def test_it_is_small_enough_to_carry() -> None:
    size = sum(path.stat().st_size for path in carried_model().rglob("*"))
    assert size <= 25_000_000


def test_sample_images_answer_to_words_and_to_images(mini: Up) -> None:
    samples = Path(str(files("clipfleet"))) / "samples"
    with mini.client() as client:
        client.create_collection("samples")
        job = finished(client, client.index_folder("samples", samples, label_from_folder=True).id)
        assert (job.state, job.done) == ("succeeded", len(list(samples.rglob("*.png"))))
        for words in ("a guitar", "a strawberry", "a house", "a bicycle", "an umbrella"):
            found = client.search("samples", text=words, top_k=3).matches
            assert words.split()[1] in {Path(match.id).stem for match in found}, words
        piano = samples / "recreation" / "guitar.png"
        (itself, *_) = client.search_image("samples", piano).matches
        assert itself.id == str(piano)


def test_photos_are_named_by_their_nearest_prompt(tmp_path: Path) -> None:
    photos = data("imagenette2-224") / "val"
    names = tmp_path / "names.csv"
    names.write_text("label,name\n" + "".join(f"{key},{name}\n" for key, name in WNIDS.items()))
    done = cli(
        "evaluate",
        str(photos),
        "--names",
        str(names),
        "--limit",
        "200",
        "--json",
        HF_HUB_OFFLINE="1",
    )
    report = json.loads(done.stdout)
    assert report["images"] == 200
    assert report["top1"] >= 0.85
    assert report["any_of_5"] >= 0.85


def test_captions_find_their_photos() -> None:
    captions = data("flickr8k") / "captions.csv"
    done = cli(
        "evaluate",
        str(captions),
        "--gallery",
        "100",
        "--limit",
        "100",
        "--json",
        HF_HUB_OFFLINE="1",
    )
    report = json.loads(done.stdout)
    assert report["recall@1"] < report["recall@5"] < report["recall@10"]
    assert report["recall@10"] >= 0.5


def test_evaluate_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("a,b\n1,2\n")
    for source in (tmp_path, tmp_path / "captions.csv", tmp_path / "nowhere"):
        done = cli("evaluate", str(source), HF_HUB_OFFLINE="1")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


def test_odd_texts_and_images_get_finite_unit_vectors_whatever_else_is_in_the_batch() -> None:
    embedder = ClipEmbedder(Settings(model=CARRIED_MODEL))
    texts = ["", "a dog", "word " * 10_000, "日本の教会", "🐕", "\x01\x02"]
    images = [Image.new("RGB", size, "red") for size in ((1, 1), (400, 3), (176, 176))]
    pixels = np.stack([embedder.pixels(image) for image in images])
    for together, alone in (
        (embedder.embed_texts(texts), [embedder.embed_texts([one])[0] for one in texts]),
        (embedder.embed_images(pixels), [embedder.embed_images(one[None])[0] for one in pixels]),
    ):
        assert np.isfinite(together).all()
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert np.allclose(together, np.stack(alone), atol=1e-4)
