"""Models of open_clip: `hf-hub:OWNER/NAME`, and folders with `open_clip_config.json`.

Only this file imports open_clip, which is part of the extra `open-clip`. Weights, preprocessing and
tokenizer are the library's own; it reads them by the names that it has for hubs and folders.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from safetensors import SafetensorError

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.workers.embedding.converted import NotConverted
from clipfleet.workers.embedding.encoder import DualEncoder, Vocabulary
from clipfleet.workers.embedding.hub import EXTRA, first_line, unusable
from clipfleet.workers.embedding.layout import (
    FOLDER,
    OPEN_CLIP_CONFIG,
    model_folder,
    source_of,
    weight_files,
)
from clipfleet.workers.embedding.libraries import torch
from clipfleet.workers.embedding.texts import Cleaning

CLEANINGS: dict[str, Cleaning] = {
    "lower": "open_clip:lower",
    "whitespace": "open_clip:whitespace",
    "canonicalize": "open_clip:canonicalize",
}


class Towers(torch.nn.Module):
    """A model of open_clip with the methods of a dual encoder of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        return self.model.encode_image(pixel_values)

    def get_text_features(self, input_ids: torch.Tensor) -> Any:
        return self.model.encode_text(input_ids)


def load(name: str, dtype: Any) -> DualEncoder:
    """Load a model on the CPU.

    Args:
        name: `hf-hub:OWNER/NAME`, a folder, or `local-dir:` and a folder.
        dtype: the torch dtype of its weights.

    Raises:
        StartupError: the model cannot be used, or the extra is not installed.
    """
    source = source_of(name)
    folder = Path(source) if Path(source).is_dir() else None
    open_clip = _library(name)
    precision = {torch.float16: "pure_fp16", torch.bfloat16: "pure_bf16"}.get(dtype, "fp32")
    try:
        address = f"{FOLDER}{own}" if (own := folder or _cached(name)) else source
        model, transform = open_clip.create_model_from_pretrained(
            address, precision=precision, **(_own_towers(folder) if folder else {})
        )
        tokenizer = open_clip.get_tokenizer(address)
        config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    except Exception as error:  # unpickling alone raises a dozen kinds
        raise _unusable(name, error, folder) from error
    texts = _Texts(open_clip, tokenizer)
    return DualEncoder(
        model=Towers(model),
        preprocess=preprocess_of(config),
        scale=1 / 255,
        mean=_three(config.mean),
        std=_three(config.std),
        pixels=lambda image: transform(image)[None],
        tokenize=texts.tokens,
        cuts=texts.cuts,
        vocabulary=texts.vocabulary,
    )


def preprocess_of(config: Any) -> Preprocess:
    """How a `PreprocessCfg` of open_clip resizes and crops, before it normalises."""
    size = config.size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    resample = Image.Resampling.BICUBIC
    if config.interpolation == "bilinear":
        resample = Image.Resampling.BILINEAR
    mode = config.resize_mode or "shortest"
    if mode == "squash":
        return Preprocess(height=height, width=width, resample=resample)
    shape = {"v": 2, "height": height, "width": width, "crop": "nearest"}
    if mode == "longest":
        return Preprocess(**shape, resample=resample, sides="fit", fill=config.fill_color)
    if height == width:
        return Preprocess(**shape, resample=resample, shortest=height)
    return Preprocess(**shape, sides="cover")  # open_clip takes no other filter here


class _Texts:
    """The tokenizer of a model."""

    def __init__(self, open_clip: ModuleType, tokenizer: Any) -> None:
        self._tokenizer, self._module = tokenizer, open_clip.tokenizer

    def tokens(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """The arguments of `get_text_features` for these texts."""
        return {"input_ids": self._tokenizer(list(texts))}

    def cuts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, self._module.SimpleTokenizer):
            counts = [len(tokenizer.encode(text)) + 2 for text in texts]  # with begin and end
        elif inner := getattr(tokenizer, "tokenizer", None):
            cleaned = [tokenizer.clean_fn(text) for text in texts]
            rows = inner(cleaned, truncation=False, padding=False, verbose=False)
            counts = [len(row) for row in rows["input_ids"]]
        else:
            return [False] * len(texts)
        return [count > tokenizer.context_length for count in counts]

    def vocabulary(self) -> Vocabulary:
        tokenizer = self._tokenizer
        if isinstance(tokenizer, self._module.SimpleTokenizer):
            if tokenizer.reduction_fn is not None:
                raise NotConverted("its tokenizer leaves out words at random")
            return Vocabulary(_simple(tokenizer), self._cleaning(), tokenizer.pat.pattern)
        inner = getattr(tokenizer, "tokenizer", None)
        backend = getattr(inner, "backend_tokenizer", None)
        if backend is None or inner is None:
            raise NotConverted(f"its tokenizer, {type(inner or tokenizer).__name__}, needs Python")
        if tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
            raise NotConverted("its tokenizer changes tokens in Python")
        limit = tokenizer.context_length
        backend.enable_truncation(limit, direction=inner.truncation_side)
        backend.enable_padding(
            direction=inner.padding_side,
            pad_id=inner.pad_token_id,
            pad_token=inner.pad_token,
            length=limit,
        )
        return Vocabulary(backend, self._cleaning())

    def _cleaning(self) -> Cleaning:
        for name, cleaning in CLEANINGS.items():
            if self._tokenizer.clean_fn is self._module.get_clean_fn(name):
                return cleaning
        raise NotConverted("its tokenizer cleans texts in a way of its own")


def _simple(tokenizer: Any) -> Any:
    """open_clip's own tokenizer, which is written in Python, for the package tokenizers."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    names = {number: word for word, number in tokenizer.encoder.items()}
    special = [names[number] for number in tokenizer.all_special_ids]
    first, last = names[tokenizer.sot_token_id], names[tokenizer.eot_token_id]
    model = models.BPE(
        vocab=tokenizer.encoder, merges=list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"
    )
    backend = Tokenizer(model)
    backend.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(first, tokenizer.sot_token_id), (last, tokenizer.eot_token_id)],
    )
    backend.enable_truncation(tokenizer.context_length)
    backend.enable_padding(pad_id=0, pad_token=names[0], length=tokenizer.context_length)
    return backend


def _library(name: str) -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        if error.name != "open_clip":
            raise StartupError(f"open_clip cannot be imported: {first_line(error)}") from error
        raise StartupError(f"model {name!r} is one of open_clip, which needs: {EXTRA}") from error
    module: ModuleType = open_clip
    return module


def _cached(name: str) -> Path | None:
    """The folder of a model in the hub's cache that can be loaded without asking the hub, which
    may be silent; None when files may be missing there, such as those of a tokenizer."""
    folder = model_folder(name)
    if folder is None or not weight_files(name, folder):
        return None
    text = _config(folder).get("text_cfg")
    of_the_hub = {"hf_model_name", "hf_tokenizer_name"}
    return folder if isinstance(text, dict) and not of_the_hub & text.keys() else None


def _own_towers(folder: Path) -> dict[str, Any]:
    """Arguments for a text tower of transformers whose configuration is in the model's folder.

    open_clip asks the hub for it. A folder below the model's, with the name that
    `open_clip_config.json` gives to the tower, comes first.
    """
    text = _config(folder).get("text_cfg")
    if not isinstance(text, dict) or not isinstance(text.get("hf_model_name"), str):
        return {}
    own = folder / text["hf_model_name"]
    if not (own / "config.json").is_file():
        return {}
    return {"text_cfg": {**text, "hf_model_name": str(own), "hf_model_pretrained": False}}


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text("utf-8"))
    model = config.get("model_cfg") if isinstance(config, dict) else None
    return model if isinstance(model, dict) else {}


def _unusable(name: str, error: Exception, folder: Path | None) -> StartupError:
    if folder is None:
        return unusable(name, first_line(error))
    reason = first_line(error)
    if isinstance(error, RuntimeError) and "size mismatch" in str(error):
        reason = f"its weights do not fit {OPEN_CLIP_CONFIG}: {_mismatch(error)}"
    elif isinstance(error, RuntimeError) and "Missing key" in str(error):
        reason = f"its weights lack some that {OPEN_CLIP_CONFIG} asks for"
    elif "Required pretrained weights" in str(error):
        reason = "it has no open_clip_model.safetensors or open_clip_pytorch_model.bin"
    elif isinstance(error, AssertionError):
        reason = f"its weights do not fit {OPEN_CLIP_CONFIG}: {reason}"
    elif isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError | IndexError):
        reason = f"the file of its weights is damaged: {reason}"
    elif isinstance(error, OSError | ValueError) and (tower := _absent_tower(folder)):
        reason = (
            f"its text tower needs {tower!r} of the hub, which is not available; put the tower's "
            f"config.json into {name}/{tower}/. {reason}"
        )
    return unusable(name, reason, "of open_clip")


def _mismatch(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return lines[0].removeprefix("size mismatch for ")[:200]


def _absent_tower(folder: Path) -> str:
    """The hub's name of a text tower whose configuration is not in the folder, or ""."""
    try:
        text = _config(folder).get("text_cfg")
    except (OSError, ValueError):
        return ""
    tower = text.get("hf_model_name") if isinstance(text, dict) else None
    return tower if isinstance(tower, str) and not (folder / tower).is_dir() else ""


def _three(value: Any) -> Sequence[float]:
    return (
        [float(part) for part in value] if isinstance(value, list | tuple) else [float(value)] * 3
    )
