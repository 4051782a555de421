"""Converts a model for OpenVINO, and compares the result with torch.

    python -m clipfleet.workers.embedding.convert MODEL PRECISION FOLDER

Writes the model and its record into the folder. A model that cannot be converted gets a record with
the reason. Exits 78, with the reason as JSON, when the model cannot be used at all.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.clip import ClipEmbedder
from clipfleet.workers.embedding.converted import (
    RECORD,
    ConvertedModel,
    Failure,
    NotConverted,
    Precision,
    sizes,
)
from clipfleet.workers.embedding.encoder import Vocabulary
from clipfleet.workers.embedding.libraries import torch
from clipfleet.workers.embedding.openvino_clip import (
    IMAGE,
    TEXT,
    TOKENIZER,
    OpenVinoEmbedder,
    Tokenizer,
)

SAMPLES = Path(str(files("clipfleet"))) / "samples"
MAX_SAMPLES, NOISE = 200, 8
FEW_SAMPLES = 24  # enough to see that numbers are equal; ViT-L/14 takes 2 s for each
MIN_COSINE = 0.9999  # of float32 with torch's float32; other formats are the operator's choice
TEXTS = (
    "a photo of a dog", "", "Two people, walking: 12:30 in the RAIN!", "ein Mädchen mit Hut",
    "犬の写真", "🐶 on a\n\tbeach", "word " * 200, "a", "x" * 300,
    "It\u2019s &lt;b&gt; \u201cCAF\xc9\u201d &amp;amp; full_width \uff21\uff22 \ufb01",
    "<end_of_text>!<start_of_text><eos>",
)  # fmt: skip


class ImageTower(torch.nn.Module):
    """Pixels, uint8 [n, height, width, 3], to unit vectors [n, dim]."""

    def __init__(self, embedder: ClipEmbedder) -> None:
        super().__init__()
        self.model = embedder.model
        self.shape = (embedder.preprocess.height, embedder.preprocess.width)
        self.factor, self.offset = embedder.factor, embedder.offset

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = self.shape
        rows = pixels.reshape(-1, height, width * 3).to(torch.float32)
        images = (rows * self.factor + self.offset).reshape(-1, height, width, 3)
        return _unit(self.model.get_image_features(pixel_values=images.permute(0, 3, 1, 2)))


class TextTower(torch.nn.Module):
    """Tokens to unit vectors [n, dim].

    Args:
        names: the names of the model's arguments, in the order of the inputs.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:
        return _unit(self.model.get_text_features(**dict(zip(self.names, tokens, strict=True))))


def _unit(features: Any) -> torch.Tensor:
    vectors: torch.Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(vectors, dim=-1)


def convert(model: str, precision: Precision, folder: Path) -> ConvertedModel:
    """Convert a model into a folder, and compare its embeddings with torch's.

    Raises:
        NotConverted: the model cannot be converted, or has other embeddings afterwards.
        StartupError: the model cannot be used.
    """
    embedder = ClipEmbedder(Settings(model=model, device="cpu", dtype="float32"))
    count = FEW_SAMPLES if precision == "float32" else MAX_SAMPLES
    images = [*_sample_images(count), *_noise()]
    pixels = np.stack([embedder.preprocess.apply(image) for image in images])
    expected = embedder.embed_images(pixels)
    expected_texts = embedder.embed_texts(TEXTS)
    inputs, vocabulary = _save_tokenizer(embedder, folder / TOKENIZER)
    _replace_pooling(embedder.model)
    torch.backends.mha.set_fastpath_enabled(False)  # it has no operators that can be traced
    image_model, text_model = _image_model(embedder, pixels[:2]), _text_model(embedder, inputs)
    if precision == "int8":
        image_model, text_model = _quantized(image_model, text_model, pixels[:-NOISE])
    openvino.save_model(image_model, folder / IMAGE, compress_to_fp16=False)
    openvino.save_model(text_model, folder / TEXT, compress_to_fp16=False)
    record = ConvertedModel(
        precision=precision,
        preprocess=embedder.preprocess,
        dim=embedder.dim,
        inputs=inputs,
        cleaning=vocabulary.cleaning,
        pattern=vocabulary.pattern,
        files=sizes(folder),
    )
    result = OpenVinoEmbedder(folder, record)
    rows, text_rows = result.embed_images(pixels), result.embed_texts(TEXTS)
    cosine = float(min((rows * expected).sum(1).min(), (text_rows * expected_texts).sum(1).min()))
    if precision == "float32" and not cosine >= MIN_COSINE:
        raise NotConverted(
            f"an embedding of OpenVINO and one of torch have a cosine similarity of {cosine:.4f}"
        )
    return record.model_copy(
        update={"cosine": cosine, "nearest": nearest(expected[:-NOISE], rows[:-NOISE])}
    )


def nearest(expected: Embeddings, rows: Embeddings, count: int = 10) -> float:
    """The share of the `count` nearest other images of each image that are the same in both."""
    sets = []
    for vectors in (expected, rows):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        sets.append(np.argsort(-scores, axis=1)[:, :count])
    same = [len(set(a) & set(b)) for a, b in zip(*sets, strict=True)]
    return float(np.mean(same)) / count


def _sample_images(count: int) -> list[Pixels]:
    paths = sorted(SAMPLES.glob("*/*.png"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def _noise() -> list[Pixels]:
    """Images with large differences between neighbouring pixels."""
    return list(np.random.default_rng(0).integers(0, 256, (NOISE, 300, 400, 3), np.uint8))


def _replace_pooling(model: Any) -> None:
    """Replace average pooling over everything by adaptive pooling, which gives the same numbers.

    EfficientNet pools with a kernel of 1,280 pixels and `ceil_mode`, which OpenVINO refuses.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.AvgPool2d) and child.ceil_mode:
                setattr(module, name, torch.nn.AdaptiveAvgPool2d(1))


def _save_tokenizer(embedder: ClipEmbedder, path: Path) -> tuple[tuple[str, ...], Vocabulary]:
    """Save the tokenizer without its library; returns the names of the text model's inputs, too."""
    expected = {name: part.numpy() for name, part in embedder.encoder.tokenize(TEXTS).items()}
    inputs = tuple(expected)
    vocabulary = embedder.encoder.vocabulary()
    vocabulary.backend.save(str(path))
    tokens = Tokenizer(path, inputs, vocabulary.cleaning, vocabulary.pattern)(TEXTS)
    if any(
        not np.array_equal(expected[name], row) for name, row in zip(inputs, tokens, strict=True)
    ):
        raise NotConverted("its tokenizer has other tokens without its library")
    return inputs, vocabulary


def _image_model(embedder: ClipEmbedder, pixels: Any) -> Any:
    model = embedder.model.to(memory_format=torch.contiguous_format)
    embedder.model = model
    shape = openvino.PartialShape([-1, *pixels.shape[1:]])
    return openvino.convert_model(
        ImageTower(embedder).eval(), example_input=torch.from_numpy(pixels), input=[shape]
    )


def _text_model(embedder: ClipEmbedder, inputs: Sequence[str]) -> Any:
    texts = ["a photo of a dog", "a cat"]
    tokens = embedder.encoder.tokenize(texts)
    tower = TextTower(embedder.model, inputs).eval()
    return openvino.convert_model(tower, example_input=tuple(tokens[name] for name in inputs))


def _quantized(image_model: Any, text_model: Any, pixels: Any) -> tuple[Any, Any]:
    """The models with weights, and for images also activations, of 8 bits."""
    try:
        import nncf
    except ImportError as error:
        raise StartupError("CLIPFLEET_DTYPE=int8 needs: pip install 'clipfleet[int8]'") from error
    calibration = nncf.Dataset([pixels[start : start + 1] for start in range(len(pixels))])
    mixed = nncf.QuantizationPreset.MIXED  # for activations that are not symmetric, as of Swish
    images = nncf.quantize(image_model, calibration, preset=mixed)
    return images, nncf.compress_weights(text_model)


def main() -> None:
    model, precision, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    warnings.filterwarnings("ignore")  # of torch's tracing, about shapes that are constant here
    try:
        record = convert(model, precision, folder)  # type: ignore[arg-type]
    except StartupError as error:
        print(Failure(detail=error.detail).model_dump_json())
        sys.exit(os.EX_CONFIG)
    except NotConverted as error:
        record = ConvertedModel(reason=str(error), files=sizes(folder))
    except (RuntimeError, ValueError, TypeError) as error:  # of OpenVINO's and torch's conversion
        lines = str(error).strip().splitlines() or [type(error).__name__]
        record = ConvertedModel(reason=f"it cannot be converted: {lines[0]}", files=sizes(folder))
    (folder / RECORD).write_text(record.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
