"""Models of open_clip, against open_clip's own preprocessing, tokenizer and model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.settings import Limits, Settings
from clipfleet.workers.embedding.converted import converted_model
from clipfleet.workers.embedding.hub import require_model
from clipfleet.workers.embedding.openvino_clip import OpenVinoEmbedder, Tokenizer
from support import models, open_clip_folders, webserver
from support.models import clip_embedder, data

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
TEXTS = [
    "two dogs in the snow", "", "a", "It\u2019s a \u201cCAF\xc9\u201d &amp; more", "Ein M\xe4dchen",
    "\u72ac\u306e\u5199\u771f", "word " * 200, "full_width \uff21\uff22, 12:30!", "a  \n\t b",
    "<end_of_text> and <start_of_text>",
]  # fmt: skip
Runtime = Literal["torch", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "openvino")
KINDS = ("clip", "siglip", "xlm_roberta")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("open_clip")
    return {kind: getattr(open_clip_folders, kind)(top / kind) for kind in KINDS}


@pytest.fixture(scope="module", params=[(kind, run) for kind in KINDS for run in RUNTIMES])
def pair(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Embedder, Path]:
    kind, runtime = request.param
    return models.embedder(folders[kind], runtime), folders[kind]


@cache
def theirs(folder: Path) -> tuple[Any, Any, Any]:
    """The model, the transform and the tokenizer as open_clip loads them."""
    open_clip = open_clip_folders.library()
    tower = folder / "xlm-roberta-base"
    text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    more = {"text_cfg": {**text, "hf_model_name": str(tower), "hf_model_pretrained": False}}
    model, transform = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", **(more if tower.is_dir() else {})
    )
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def photos(count: int = 12) -> list[Path]:
    return sorted((data("flickr8k") / "images").iterdir())[:count]


def ours(embedder: Embedder, paths: Sequence[Path]) -> Embeddings:
    edge = embedder.preprocess.edge()
    images = [decode(path.read_bytes(), Limits(), edge=edge).image for path in paths]
    return embedder.embed_images(np.stack([embedder.preprocess.apply(image) for image in images]))


def test_photos_get_the_embeddings_of_open_clip(pair: tuple[Embedder, Path]) -> None:
    import torch

    embedder, folder = pair
    model, transform, _ = theirs(folder)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in photos()])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True).numpy()
    cosines = (ours(embedder, photos()) * expected).sum(axis=1)
    assert cosines.min() >= 0.999
    assert np.median(cosines) >= 0.9999


def test_texts_get_the_embeddings_of_open_clip(pair: tuple[Embedder, Path]) -> None:
    import torch

    embedder, folder = pair
    model, _, tokenizer = theirs(folder)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    assert np.allclose(embedder.embed_texts(TEXTS), expected, atol=1e-4)
    assert (expected @ expected.T).min() < 0.99, "texts that all look alike prove nothing"


def test_a_text_that_is_too_long_is_known(pair: tuple[Embedder, Path]) -> None:
    embedder, folder = pair
    tokenizer = theirs(folder)[2]
    texts = ["dog " * count for count in range(1, 90)]
    longer = tokenizer(texts, context_length=200)
    counts = (longer != longer[0, -1]).sum(dim=1)  # the last token of a short text is padding
    expected = [int(count) > tokenizer.context_length for count in counts]
    assert {True, False} == set(expected)
    assert embedder.cut_texts(texts) == expected
    assert embedder.cut_texts(["", "&amp;" * 40, "\u72ac" * 100]) == [False, False, True]
    assert embedder.cut_texts([]) == []


def test_a_cpu_runs_them_on_openvino(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert isinstance(models.embedder(folder, "openvino"), OpenVinoEmbedder)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        (64, {"resize_mode": "shortest"}),
        (63, {"resize_mode": "shortest", "interpolation": "bilinear"}),
        (64, {"resize_mode": "longest", "fill_color": 127}),
        ((48, 80), {"resize_mode": "shortest"}),
        ((48, 80), {"resize_mode": "squash", "interpolation": "bilinear"}),
        ((80, 48), {"resize_mode": "longest"}),
    ],
)
@pytest.mark.parametrize("shape", [(300, 201), (201, 300), (97, 98), (50, 70), (64, 64), (340, 90)])
def test_pixels_are_those_of_open_clip(
    size: int | tuple[int, int], pixels: dict[str, Any], shape: tuple[int, int]
) -> None:
    open_clip = open_clip_folders.library()
    from clipfleet.workers.embedding.of_open_clip import preprocess_of

    config = open_clip.transform.PreprocessCfg(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, **pixels)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    with Image.open(photos(1)[0]) as photo:
        image = photo.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    expected = (transform(image).numpy() * 255).transpose(1, 2, 0)
    seen = preprocess_of(config).apply(np.asarray(image))
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= 3
    assert np.abs(seen - expected).mean() <= 0.3


SPECIAL = st.sampled_from(
    [
        "<start_of_text>", "<END_OF_TEXT>", "&amp;", "&#39;s", "\u2019ll", "\ufb01", "\xc2\xa0",
        "_", "'RE", "1\xbd",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """For each kind of cleaning, open_clip's tokenizer and ours without it."""
    open_clip = open_clip_folders.library()
    from clipfleet.workers.embedding.of_open_clip import _Texts

    pairs = []
    simple = open_clip.tokenizer.SimpleTokenizer
    kinds = [simple(clean=clean) for clean in ("lower", "whitespace", "canonicalize")]
    kinds += [theirs(folders[kind])[2] for kind in ("siglip", "xlm_roberta")]
    for number, tokenizer in enumerate(kinds):
        path = tmp_path_factory.mktemp("tokens") / f"{number}.json"
        vocabulary = _Texts(open_clip, tokenizer).vocabulary()
        vocabulary.backend.save(str(path))
        arguments = (path, ["input_ids"], vocabulary.cleaning, vocabulary.pattern)
        pairs.append((tokenizer, Tokenizer(*arguments)))
    return pairs


@effort(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=40) | SPECIAL, max_size=8).map(" ".join))
def test_tokens_without_open_clip_are_those_of_open_clip(tokenizers: list[Any], text: str) -> None:
    for their_tokens, our_tokens in tokenizers:
        assert np.array_equal(our_tokens([text])[0], their_tokens([text]).numpy())


LOADED = """
import sys
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.load import load_embedder

embedder = load_embedder(Settings())
assert embedder.embed_texts(["a dog"]).shape == (1, embedder.dim)
heavy = ("torch", "transformers", "torchvision", "open_clip", "timm")
print(type(embedder).__name__, *[name for name in heavy if name in sys.modules])
"""


def loaded(model: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """A process that loads a model as a worker does, and says what it imported."""
    return subprocess.run(
        [sys.executable, "-c", LOADED],
        env={**os.environ, "CLIPFLEET_MODEL": str(model), "CLIPFLEET_DEVICE": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_converted_model_runs_without_open_clip_and_torch(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        models.embedder(folder, "openvino")
        assert loaded(folder).stdout.split() == ["OpenVinoEmbedder"]


def test_a_model_of_transformers_imports_no_open_clip(tiny: Path) -> None:
    seen = loaded(tiny, CLIPFLEET_RUNTIME="torch").stdout.split()
    assert seen[:3] == ["ClipEmbedder", "torch", "transformers"]
    assert not {"open_clip", "timm"} & set(seen)


def hub_cache(folder: Path, home: Path, name: str) -> None:
    """Put a model into the hub's cache as a download does."""
    entry = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, entry / "snapshots" / ("0" * 40))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_of_the_hub_is_loaded_by_its_id(
    folders: dict[str, Path], tmp_path: Path, runtime: Runtime
) -> None:
    hub_cache(folders["clip"], tmp_path, "somebody/some-clip")
    done = loaded(
        "hf-hub:somebody/some-clip",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
        CLIPFLEET_RUNTIME=runtime,
        CLIPFLEET_MODEL_CACHE=str(tmp_path / "converted"),
    )
    assert done.stdout.split()[:1] == [
        {"torch": "ClipEmbedder", "openvino": "OpenVinoEmbedder"}[runtime]
    ], done.stderr[-2000:]


@pytest.mark.parametrize("model", ["hf-hub:nobody/has-this-model", "hf-hub:", "hf-hub:nobody"])
def test_without_the_hub_the_error_is_that_of_other_models(tmp_path: Path, model: str) -> None:
    open_clip_folders.library()
    done = loaded(model, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1", CLIPFLEET_RUNTIME="torch")
    assert done.returncode
    error = done.stderr.strip().splitlines()[-1]
    assert "StartupError" in error
    assert "hub" in error
    if model != "hf-hub:":
        assert "CLIPFLEET_MODEL=/path/to/folder" in error


def test_a_model_in_the_cache_of_the_hub_is_loaded_without_asking_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--somebody--clip"
    shutil.copytree(folders["clip"], repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    with webserver.site({}) as hub:
        done = loaded(
            "hf-hub:somebody/clip",
            HF_HOME=str(tmp_path),
            HF_ENDPOINT=hub.url,
            CLIPFLEET_RUNTIME="torch",
        )
        assert done.stdout.split()[0] == "ClipEmbedder", done.stderr[-2000:]
        assert hub.seen == []


def test_weights_in_a_pickle_are_those_in_safetensors(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pickled = clip_embedder(open_clip_folders.clip(tmp_path, safetensors=False))
    expected = clip_embedder(folders["clip"]).embed_texts(TEXTS)
    assert np.allclose(pickled.embed_texts(TEXTS), expected, atol=1e-6)


def test_half_precision_keeps_the_embeddings(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        whole, half = (clip_embedder(folder, dtype=name) for name in ("float32", "bfloat16"))
        assert (half.embed_texts(TEXTS) * whole.embed_texts(TEXTS)).sum(1).min() > 0.99
        assert (ours(half, photos(4)) * ours(whole, photos(4))).sum(1).min() > 0.99


def test_a_folder_with_both_layouts_is_one_of_transformers_unless_asked(
    tiny: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    both = shutil.copytree(folders["clip"], tmp_path / "both")
    shutil.copytree(tiny, both, dirs_exist_ok=True)
    text = ["a dog"]
    expected = clip_embedder(tiny).embed_texts(text)
    assert np.allclose(clip_embedder(both).embed_texts(text), expected, atol=1e-6)
    seen = clip_embedder(f"local-dir:{both}").embed_texts(text)
    assert np.allclose(seen, clip_embedder(folders["clip"]).embed_texts(text), atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(StartupError) as caught:
        require_model(f"{prefix}{tmp_path}")  # as `clipfleet up` does before it starts anything
    assert caught.value.detail.endswith("pip install 'clipfleet[open-clip]'")


def damaged(folder: Path, what: str) -> str:
    """Damage a copy of a folder; returns what the error must say."""
    weights, config = folder / WEIGHTS, json.loads((folder / CONFIG).read_text())
    model = config["model_cfg"]
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-5_000])
        return "the file of its weights is damaged"
    if what == "noise":
        weights.write_bytes(b"secret of a file " * 1_000)
        return "the file of its weights is damaged"
    if what == "pickle":
        weights.unlink()
        (folder / "open_clip_pytorch_model.bin").write_bytes(b"secret of a file " * 1_000)
        return "the file of its weights is damaged"
    if what == "empty":
        weights.write_bytes(b"")
        return "the file of its weights is damaged"
    if what == "no weights":
        weights.unlink()
        return "it has no open_clip_model.safetensors"
    if what == "no json":
        (folder / CONFIG).write_text("secret of a file")
        return "complete model of open_clip"
    if what == "no model":
        config = {"secret of a file": 1}
    elif what == "dim":
        model["embed_dim"] = 48
    elif what == "width":
        model["text_cfg"]["width"] = 32
    elif what == "layers":
        model["vision_cfg"]["layers"] = 3
    elif what == "unknown":
        model["vision_cfg"]["no_such_argument"] = 3
    (folder / CONFIG).write_text(json.dumps(config))
    words = {"dim": "do not fit", "width": "do not fit", "layers": "lack"}
    return words.get(what, "complete model of open_clip")


DAMAGES = (
    "cut", "noise", "pickle", "empty", "no weights", "no json", "no model", "dim", "width",
    "layers", "unknown",
)  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_makes_no_model_is_refused_by_its_fault(
    folders: dict[str, Path], tmp_path: Path, what: str
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    expected = damaged(folder, what)
    with pytest.raises(StartupError) as caught:
        clip_embedder(folder)
    detail = caught.value.detail
    assert expected in detail
    assert str(folder) in detail
    assert "\n" not in detail
    assert "secret" not in detail


def test_a_text_tower_that_only_the_hub_has_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = shutil.copytree(folders["xlm_roberta"], tmp_path / "model")
    shutil.rmtree(folder / "xlm-roberta-base")
    with pytest.raises(StartupError, match="its text tower needs 'xlm-roberta-base' of the hub"):
        clip_embedder(folder)


def test_another_file_of_weights_is_converted_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    settings = Settings(model=str(folder), device="cpu", model_cache=str(tmp_path / "cache"))
    first, _ = converted_model(settings)
    open_clip_folders.clip(folder, seed=1)
    second, _ = converted_model(settings)
    assert first != second
