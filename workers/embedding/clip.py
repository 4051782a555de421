"""The embedder on torch and transformers. Only this file and `convert.py` import them.

It takes any dual encoder that `AutoModel` loads with `get_image_features` and `get_text_features`:
CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023), SigLIP 2, vision-text dual encoders.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.settings import CARRIED_MODEL, Settings, carried_model
from clipfleet.workers.embedding.hub import first_line, no_model, require_model
from clipfleet.workers.embedding.passes import Passes, cpu_passes

log = logging.getLogger(__name__)

MAX_TOKENS = 512  # tokenizers without a limit report 10^30
PASS_SIZES = {"cpu": 8, "mps": 64, "cuda": 256}  # items in one forward pass
CUDA_PASSES = 2  # in one call: the host copies the pixels of the second during the first


class ClipEmbedder:
    """Embeds images and texts with a model that is loaded and warm once the constructor returns.

    Args:
        settings: name the model, the device, the dtype and the batch size.

    Raises:
        StartupError: the model cannot be used; `detail` tells the operator what to change.

    Attributes:
        batch: the number of images that `embed_images` takes best at once.
        preprocess: how images become pixels.
        device: the torch device, such as `cuda:0`.
        dim: the number of values in an embedding.
        model: the model of transformers.
        tokenizer: its tokenizer.
        token_arguments: how the tokenizer pads and truncates.
        factor: with `offset` the normalisation, each for one row of pixels: row * factor + offset.
        offset: see `factor`.
    """

    def __init__(self, settings: Settings) -> None:
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        self.model, processor, self.tokenizer = _load(settings.model, dtype)
        # NHWC: the carried model's convolutions are fast on a CPU only in this format (model card).
        self.model = self.model.to(device, memory_format=torch.channels_last).eval()
        self._placement = {"device": device, "dtype": dtype}
        size = settings.embed_batch or PASS_SIZES.get(device.type, 32)
        self._passes = Passes(size, cpu_passes() if device.type == "cpu" else 1)
        if device.type == "cpu":
            torch.set_num_threads(1)
        self._pins = device.type == "cuda"
        self.batch = self._passes.batch * (CUDA_PASSES if self._pins else 1)
        self.token_arguments = _token_arguments(self.model, self.tokenizer)
        self.preprocess = preprocess_of(processor)
        self.factor, self.offset = _normalisation(processor, self.preprocess.width, device)
        _require_same_pixels(self, processor)
        self.device = str(device)
        self._features, self._compiled = self.model.get_image_features, False
        self.dim = self._warm_up(settings.model)
        if settings.compile:
            self._compile()

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embed pixels [n, height, width, 3]; returns unit vectors [n, dim]."""
        return self._on_host(self._passes.run(self._image_batch, pixels))

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed n texts; returns unit vectors [n, dim]."""
        return self._on_host(self._passes.run(self._text_batch, texts))

    def normalised(self, pixels: NDArray[np.uint8]) -> Any:
        """The model's input [n, 3, height, width]; the pixels move to the device as uint8.

        CUDA copies from pinned memory while the host continues. Torch keeps the pinned memory until
        the copy is done, and uses it again for later calls.
        """
        count, height, width, _ = pixels.shape
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        batch = batch.pin_memory() if self._pins else batch
        batch = batch.to(self._placement["device"], non_blocking=self._pins)
        # Whole rows at once: broadcasting over 3 channels in the last place takes ten times longer.
        rows = batch.view(count, height, width * 3).to(torch.float32)
        rows = rows.mul_(self.factor).add_(self.offset).to(self._placement["dtype"])
        return rows.view(count, height, width, 3).permute(0, 3, 1, 2)

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads."""
        if not texts:
            return []
        tokens = self.tokenizer(list(texts), truncation=False, padding=False, verbose=False)
        limit = self.token_arguments["max_length"]
        return [len(row) > limit for row in tokens["input_ids"]]

    @torch.inference_mode()
    def _image_batch(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        count = len(pixels)
        if self._compiled and 1 < count < self._passes.size:  # each shape is compiled separately
            pixels = np.resize(pixels, (self._passes.size, *pixels.shape[1:]))
        return _unit(self._features(pixel_values=self.normalised(pixels)))[:count]

    @torch.inference_mode()
    def _text_batch(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(texts), return_tensors="pt", **self.token_arguments)
        return _unit(self.model.get_text_features(**tokens.to(self._placement["device"])))

    def _on_host(self, passes: Sequence[torch.Tensor]) -> Embeddings:
        """The rows of all passes. The host waits for the device here, not after each pass."""
        if not passes:
            return np.empty((0, self.dim), np.float32)
        return np.asarray(torch.cat(list(passes)).cpu().numpy(), np.float32)

    def _compile(self) -> None:
        """Compile the model for one image and for a full pass; on failure it runs uncompiled."""
        plain = self._features
        self._features, self._compiled = torch.compile(plain, dynamic=False), True
        try:
            for count in (1, self._passes.size):
                self._image_batch(self._blank(count))
        except Exception as error:
            self._features, self._compiled = plain, False
            log.warning("CLIPFLEET_COMPILE: the model runs uncompiled: %s", first_line(error))

    def _blank(self, count: int) -> NDArray[np.uint8]:
        return np.zeros((count, self.preprocess.height, self.preprocess.width, 3), np.uint8)

    def _warm_up(self, name: str) -> int:
        image, text = self.embed_images(self._blank(1)), self.embed_texts(["a photo"])
        if image.shape != text.shape:
            raise StartupError(
                f"model {name!r} has image embeddings of {image.shape[1]} numbers and text "
                f"embeddings of {text.shape[1]}: not a dual encoder"
            )
        return int(image.shape[1])


def preprocess_of(processor: Any) -> Preprocess:
    """The resizing and cropping of a transformers image processor, before it normalises.

    Raises:
        StartupError: the processor's size is of an unknown form.
    """
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


def _load(name: str, dtype: Any) -> tuple[Any, Any, Any]:
    require_model(name)
    source = str(carried_model()) if name == CARRIED_MODEL else str(Path(name).expanduser())
    if not Path(source).is_dir():
        source = name
    try:
        try:  # of the cache alone: the hub may be silent, and is asked about each file
            model, processor, tokenizer = _pretrained(source, dtype, local_files_only=True)
        except OSError:
            model, processor, tokenizer = _pretrained(source, dtype, local_files_only=False)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(name, error) from error
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise StartupError(
                f"model {name!r} is a {type(model).__name__} without {method}: choose a CLIP, "
                "SigLIP or other dual encoder"
            )
    return model, processor, tokenizer


def _pretrained(source: str, dtype: Any, *, local_files_only: bool) -> tuple[Any, Any, Any]:
    model = transformers.AutoModel.from_pretrained(
        source, dtype=dtype, local_files_only=local_files_only
    )
    options = {"local_files_only": local_files_only}
    processor = transformers.AutoImageProcessor.from_pretrained(source, **options)
    return model, processor, transformers.AutoTokenizer.from_pretrained(source, **options)


def _no_model(name: str, error: Exception) -> StartupError:
    if Path(name).expanduser().is_dir():
        detail = f"the folder {name!r} does not contain a complete model: {first_line(error)}"
        return StartupError(detail)
    return no_model(name, first_line(error))


def _device(name: str) -> Any:
    if name != "auto":
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError, ValueError) as error:
            message = f"CLIPFLEET_DEVICE={name} cannot be used: {first_line(error)}"
            raise StartupError(message) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(name: str, device: Any) -> Any:
    """The dtype of a setting. bf16 is slower than fp32 on most CPUs, and missing on older GPUs."""
    if name in ("float32", "bfloat16", "float16"):
        return getattr(torch, name)
    if name != "auto":
        raise StartupError(
            f"CLIPFLEET_DTYPE={name} is none of auto, float32, bfloat16, float16; int8 needs "
            "CLIPFLEET_RUNTIME=openvino"
        )
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def _token_arguments(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Arguments for the tokenizer.

    SigLIP was trained on texts padded to full length; other models may pad to the longest text.
    """
    text = getattr(model.config, "text_config", model.config)
    positions = getattr(text, "max_position_embeddings", MAX_TOKENS)
    limit = min(tokenizer.model_max_length, positions, MAX_TOKENS)
    padding = "max_length" if model.config.model_type.startswith("siglip") else "longest"
    return {"padding": padding, "truncation": True, "max_length": limit}


def _normalisation(processor: Any, width: int, device: Any) -> tuple[Any, Any]:
    """(factor, offset), each for one row of `width` pixels.

    The model's input is row * factor + offset, which equals (row * scale - mean) / std.
    """
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean, std = np.zeros(3), np.ones(3)
    if processor.do_normalize:
        mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    rows = (np.tile(three, width).astype(np.float32) for three in (scale / std, -mean / std))
    factor, offset = (torch.from_numpy(row).to(device) for row in rows)
    return factor, offset


def _require_same_pixels(embedder: ClipEmbedder, processor: Any) -> None:
    """Compare our pixels with the processor's.

    Processors differ in ways that their settings do not show, and wrong pixels raise no error: they
    only make results worse.
    """
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    theirs = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"])
    ours = (
        embedder.normalised(np.stack([embedder.preprocess.apply(np.asarray(image))])).float().cpu()
    )
    if theirs.shape != ours.shape or (theirs - ours).abs().max() > 0.05:
        raise StartupError(
            f"the model's image processor ({type(processor).__name__}) does something that "
            "clipfleet does not support; it supports resize, centre crop, rescale and normalise"
        )


def _unit(features: Any) -> torch.Tensor:
    vectors = getattr(features, "pooler_output", features).float()
    return torch.nn.functional.normalize(vectors, dim=-1)
