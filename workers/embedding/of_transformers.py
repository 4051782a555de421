"""Models of transformers.

Any dual encoder that `AutoModel` loads with `get_image_features` and `get_text_features` is taken:
CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), SigLIP 2 with a fixed size, vision-text dual
encoders.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from safetensors import SafetensorError

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.workers.embedding.converted import NotConverted
from clipfleet.workers.embedding.encoder import DualEncoder, Vocabulary
from clipfleet.workers.embedding.hub import first_line, unusable
from clipfleet.workers.embedding.layout import source_of
from clipfleet.workers.embedding.libraries import torch, transformers
from clipfleet.workers.embedding.texts import Cleaning, cleaner

MAX_TOKENS = 512  # tokenizers without a limit report 10^30


def load(name: str, dtype: Any) -> DualEncoder:
    """Load a model on the CPU.

    Args:
        name: a folder or an id of the hub.
        dtype: the torch dtype of its weights.

    Raises:
        StartupError: the model cannot be used.
    """
    model, processor, tokenizer = _load(name, dtype)
    texts = _Texts(model, tokenizer)
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    normalises = processor.do_normalize
    return DualEncoder(
        model=model,
        preprocess=preprocess_of(processor),
        scale=scale,
        mean=processor.image_mean if normalises else (0.0, 0.0, 0.0),
        std=processor.image_std if normalises else (1.0, 1.0, 1.0),
        pixels=_pixels_by(processor),
        tokenize=texts.tokens,
        cuts=texts.cuts,
        vocabulary=texts.vocabulary,
    )


def preprocess_of(processor: Any) -> Preprocess:
    """The resizing and cropping of a transformers image processor, before it normalises.

    Raises:
        StartupError: the processor's size is of an unknown form.
    """
    if getattr(processor, "max_num_patches", None):
        raise StartupError(
            "the model takes images of any shape in patches (NaFlex), which clipfleet does not "
            "support; choose one with a fixed size, such as google/siglip2-base-patch16-224"
        )
    size, crop = dict(processor.size), getattr(processor, "crop_size", None)
    cropped = dict(crop) if crop and getattr(processor, "do_center_crop", False) else {}
    resample = int(getattr(processor, "resample", Image.Resampling.BICUBIC))
    shortest = size.get("shortest_edge")
    if shortest is None and not {"height", "width"} <= size.keys():
        raise StartupError(f"the model's image processor has a size of an unknown form: {size}")
    if shortest is None:
        return Preprocess(height=size["height"], width=size["width"], resample=resample)
    side = {"height": shortest, "width": shortest}
    return Preprocess(shortest=shortest, resample=resample, **(cropped or side))


class _Texts:
    """The tokenizer of a model, with the arguments that the model was trained with.

    SigLIP was trained on texts in lower case, padded to full length, without a mask for what is
    padded: it looks at the padding, and its embedding is that of the last place. The tokenizer of
    SigLIP 2 does not make texts lower case, and some tokenizers give a mask. Other models may pad
    to the longest text.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        text = getattr(model.config, "text_config", model.config)
        positions = getattr(text, "max_position_embeddings", MAX_TOKENS)
        self._tokenizer = tokenizer
        self._limit = min(tokenizer.model_max_length, positions, MAX_TOKENS)
        self._is_siglip = model.config.model_type.startswith("siglip")
        of_its_own = type(tokenizer).__name__.startswith("SiglipTokenizer")
        self._cleaning: Cleaning = "lower" if self._is_siglip and not of_its_own else ""
        self._clean = cleaner(self._cleaning)

    def tokens(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """The arguments of `get_text_features` for these texts."""
        tokens = self._tokenizer(
            [self._clean(text) for text in texts],
            return_tensors="pt",
            padding="max_length" if self._is_siglip else "longest",
            truncation=True,
            max_length=self._limit,
        )
        return {"input_ids": tokens["input_ids"]} if self._is_siglip else tokens

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads."""
        cleaned = [self._clean(text) for text in texts]
        rows = self._tokenizer(cleaned, truncation=False, padding=False, verbose=False)
        return [len(row) > self._limit for row in rows["input_ids"]]

    def vocabulary(self) -> Vocabulary:
        tokenizer, cleaning = self._tokenizer, self._cleaning
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if type(tokenizer).__name__ == "SiglipTokenizer" and tokenizer.do_lower_case:
            backend, cleaning = _sentencepiece(tokenizer), "siglip"
        if backend is None:
            raise NotConverted(f"its tokenizer, {type(tokenizer).__name__}, is written in Python")
        backend.enable_truncation(self._limit, direction=tokenizer.truncation_side)
        backend.enable_padding(
            direction=tokenizer.padding_side,
            pad_id=tokenizer.pad_token_id,
            pad_type_id=tokenizer.pad_token_type_id,
            pad_token=tokenizer.pad_token,
            length=self._limit if self._is_siglip else None,
        )
        return Vocabulary(backend, cleaning)


def _sentencepiece(tokenizer: Any) -> Any:
    """The tokenizer of SigLIP, which is written in Python, for the package tokenizers."""
    from tokenizers import processors

    converters = importlib.import_module("transformers.convert_slow_tokenizer")
    backend = converters.SpmConverter(tokenizer).converted()
    end = tokenizer.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return backend


def _load(name: str, dtype: Any) -> tuple[Any, Any, Any]:
    source = source_of(name)
    try:
        try:  # of the cache alone: the hub may be silent, and is asked about each file
            (model, info), processor, tokenizer = _pretrained(source, dtype, local_files_only=True)
        except OSError:
            (model, info), processor, tokenizer = _pretrained(source, dtype, local_files_only=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unusable(name, first_line(error)) from error
    except ImportError as error:  # such as sentencepiece, of tokenizers that are written in Python
        raise StartupError(f"model {name!r} needs another package: {_packages(error)}") from error
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise StartupError(
                f"model {name!r} is a {type(model).__name__} without {method}: choose a CLIP, "
                "SigLIP or other dual encoder"
            )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("logit_"))
    if missing:
        raise StartupError(
            f"the weights of model {name!r} are not complete: {len(missing)} are missing, such as "
            f"{missing[0]}"
        )
    return model, processor, tokenizer


def _pretrained(source: str, dtype: Any, *, local_files_only: bool) -> tuple[Any, Any, Any]:
    """The model with what was missing of it, the image processor and the tokenizer."""
    options = {"local_files_only": local_files_only}
    model = transformers.AutoModel.from_pretrained(
        source, dtype=dtype, output_loading_info=True, **options
    )
    processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    return model, processor, transformers.AutoTokenizer.from_pretrained(source, **options)


def _packages(error: ImportError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else first_line(error)


def _pixels_by(processor: Any) -> Any:
    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"])

    return pixels
