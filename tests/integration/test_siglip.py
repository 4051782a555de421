"""SigLIP, SigLIP 2 and multilingual towers of transformers, with their published configurations in
small sizes: what happens to a text before the model must be what the model was trained with."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.workers.embedding.openvino_clip import OpenVinoEmbedder
from support import models, vocabularies
from support.models import clip_embedder, data

TEXTS = [
    "a photo of a dog in the snow",
    "Eine Katze",
    "",
    "\u72ac\u306e\u5199\u771f",
    "word " * 200,
    "a",
]
LENGTH = 64
Runtime = Literal["torch", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "openvino")


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """google/siglip2-base-patch16-224: the architecture of SigLIP, the tokenizer of Gemma."""
    folder = tmp_path_factory.mktemp("siglip2")
    vocabularies.gemma(folder)
    return write_siglip(folder, vocabularies.SIZE)


def write_siglip(folder: Path, words: int) -> Path:
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    torch.manual_seed(0)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.SiglipConfig(
        vision_config={**small, "image_size": 64, "patch_size": 16},
        text_config={
            **small,
            "vocab_size": words,
            "max_position_embeddings": LENGTH,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    )
    transformers.SiglipModel(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    processor = transformers.SiglipImageProcessorPil(size=size, resample=2)
    processor.save_pretrained(folder)
    return folder


def theirs(folder: Path, texts: list[str]) -> np.ndarray:
    """As SigLIP was trained: lower case, padded to the full length on the right, and no mask."""
    import torch
    from tokenizers import Tokenizer

    from clipfleet.workers.embedding.libraries import transformers

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for text in texts:
        ids = tokenizer.encode(text.lower()).ids
        ids = ids if len(ids) <= LENGTH else [*ids[: LENGTH - 1], 1]
        rows.append(ids + [0] * (LENGTH - len(ids)))
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder)
        features = model.get_text_features(input_ids=torch.tensor(rows)).pooler_output
    return np.asarray(torch.nn.functional.normalize(features, dim=-1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_texts_of_a_siglip_2_are_prepared_as_in_its_training(
    siglip2: Path, runtime: Runtime
) -> None:
    expected = theirs(siglip2, TEXTS)
    seen = models.embedder(siglip2, runtime).embed_texts(TEXTS)
    assert np.allclose(seen, expected, atol=1e-4)
    assert (expected @ expected.T).min() < 0.99, "texts that all look alike prove nothing"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_case_does_not_count_for_a_siglip_2(siglip2: Path, runtime: Runtime) -> None:
    embedder = models.embedder(siglip2, runtime)
    upper, lower = embedder.embed_texts(["A Photo of a DOG", "a photo of a dog"])
    assert np.allclose(upper, lower, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_tokenizer_that_gives_a_mask_changes_nothing(
    siglip2: Path, tmp_path: Path, runtime: Runtime
) -> None:
    folder = shutil.copytree(siglip2, tmp_path / "model")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    seen = models.embedder(folder, runtime).embed_texts(TEXTS)
    assert np.allclose(seen, theirs(siglip2, TEXTS), atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_photos_of_a_siglip_2_get_the_embeddings_of_its_processor(
    siglip2: Path, runtime: Runtime
) -> None:
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    paths = sorted((data("flickr8k") / "images").iterdir())[:8]
    images = [Image.open(path).convert("RGB") for path in paths]
    processor = transformers.AutoImageProcessor.from_pretrained(siglip2, backend="pil")
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(siglip2)
        inputs = processor(images=images, return_tensors="pt")
        features = model.get_image_features(**inputs).pooler_output
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    embedder = models.embedder(siglip2, runtime)
    pixels = np.stack([embedder.preprocess.apply(np.asarray(image)) for image in images])
    assert (embedder.embed_images(pixels) * expected).sum(axis=1).min() >= 0.999


@pytest.fixture(scope="module")
def siglip1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """google/siglip-base-patch16-224: its tokenizer is written in Python, with sentencepiece."""
    import io

    import sentencepiece

    folder, file = tmp_path_factory.mktemp("siglip1"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(vocabularies.SENTENCES * 20),
        model_writer=file,
        vocab_size=150,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(file.getvalue())
    about = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": LENGTH,
        "model_input_names": ["input_ids"],
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return write_siglip(folder, 150)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_texts_of_a_siglip_are_prepared_as_in_its_training(siglip1: Path, runtime: Runtime) -> None:
    """In lower case without punctuation, and padded with the mark of the end."""
    import sentencepiece
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    texts = ["A photo of a dog, in the SNOW!", "a", "", "un chien " * 80]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(siglip1 / "spiece.model"))
    plain = ["a photo of a dog in the snow", "a", "", ("un chien " * 80).strip()]
    rows = []
    for text in plain:
        ids = pieces.encode(text)[: LENGTH - 1]
        rows.append(ids + [1] * (LENGTH - len(ids)))
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(siglip1)
        features = model.get_text_features(input_ids=torch.tensor(rows)).pooler_output
    expected = torch.nn.functional.normalize(features, dim=-1).numpy()
    embedder = models.embedder(siglip1, runtime)
    assert np.allclose(embedder.embed_texts(texts), expected, atol=1e-4)


def test_images_of_any_shape_are_refused_by_name(siglip2: Path, tmp_path: Path) -> None:
    from clipfleet.workers.embedding.libraries import transformers

    folder = shutil.copytree(siglip2, tmp_path / "model")
    transformers.Siglip2ImageProcessorPil().save_pretrained(folder)
    with pytest.raises(StartupError, match="NaFlex"):
        clip_embedder(folder)


def multilingual(folder: Path) -> Any:
    """A CLIP with the text tower of XLM-RoBERTa, as transformers builds it."""
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        image_size=64, patch_size=16,
    )  # fmt: skip
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, vocabularies.xlm_roberta_config(), projection_dim=32
    )
    model = transformers.VisionTextDualEncoderModel(config).eval()
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=size)
    processor.save_pretrained(folder)
    vocabularies.xlm_roberta(folder)
    return model


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_texts_of_a_multilingual_tower_do_not_see_their_padding(
    tmp_path: Path, runtime: Runtime
) -> None:
    """Its pooling is over the first place, its attention leaves out what is padded."""
    import torch
    from tokenizers import Tokenizer

    model = multilingual(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 512 else [*ids[:511], 2]
        with torch.no_grad():
            features = model.get_text_features(input_ids=torch.tensor([ids]))
        row = getattr(features, "pooler_output", features)[0]
        expected.append(torch.nn.functional.normalize(row, dim=-1).numpy())
    embedder = models.embedder(tmp_path, runtime)
    assert isinstance(embedder, OpenVinoEmbedder) == (runtime == "openvino")
    assert np.allclose(embedder.embed_texts(TEXTS), np.stack(expected), atol=1e-4)


def test_weights_that_lack_a_part_are_refused(siglip2: Path, tmp_path: Path) -> None:
    """Transformers fills what is missing with random numbers, and says so in its log alone."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(siglip2, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    missing = "text_model.head.weight"
    assert weights.pop(missing) is not None
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StartupError, match=f"not complete: 1 are missing, such as {missing}"):
        clip_embedder(folder)


@pytest.mark.parametrize("rest", [0, 1_000, 100_000])
def test_weights_that_were_cut_are_refused(siglip2: Path, tmp_path: Path, rest: int) -> None:
    folder = shutil.copytree(siglip2, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:rest])
    with pytest.raises(StartupError, match="not contain a complete model") as caught:
        clip_embedder(folder)
    assert "\n" not in caught.value.detail


def test_weights_of_another_size_are_refused(siglip2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(siglip2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match="not contain a complete model"):
        clip_embedder(folder)
