"""The embedder on torch."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding import of_open_clip, of_transformers
from clipfleet.workers.embedding.encoder import DualEncoder
from clipfleet.workers.embedding.hub import first_line, require_model
from clipfleet.workers.embedding.layout import is_open_clip
from clipfleet.workers.embedding.libraries import torch
from clipfleet.workers.embedding.passes import Passes, cpu_passes

log = logging.getLogger(__name__)

PASS_SIZES = {"cpu": 8, "mps": 64, "cuda": 256}  # items in one forward pass
SHAPES = ((400, 300), (301, 400))  # images on which our pixels are compared with the library's
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
        encoder: the model as its library loaded it.
        model: its torch module, on the device.
        factor: with `offset` the normalisation, each for one row of pixels: row * factor + offset.
        offset: see `factor`.
    """

    def __init__(self, settings: Settings) -> None:
        require_model(settings.model)
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        load = of_open_clip.load if is_open_clip(settings.model) else of_transformers.load
        self.encoder = encoder = load(settings.model, dtype)
        # NHWC: the carried model's convolutions are fast on a CPU only in this format (model card).
        self.model = encoder.model.to(device, memory_format=torch.channels_last).eval()
        self._placement = {"device": device, "dtype": dtype}
        size = settings.embed_batch or PASS_SIZES.get(device.type, 32)
        self._passes = Passes(size, cpu_passes() if device.type == "cpu" else 1)
        if device.type == "cpu":
            torch.set_num_threads(1)
        self._pins = device.type == "cuda"
        self.batch = self._passes.batch * (CUDA_PASSES if self._pins else 1)
        self.preprocess = encoder.preprocess
        self.factor, self.offset = _normalisation(encoder, device)
        _require_same_pixels(self)
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
        return self.encoder.cuts(texts) if texts else []

    @torch.inference_mode()
    def _image_batch(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        count = len(pixels)
        if self._compiled and 1 < count < self._passes.size:  # each shape is compiled separately
            pixels = np.resize(pixels, (self._passes.size, *pixels.shape[1:]))
        return _unit(self._features(pixel_values=self.normalised(pixels)))[:count]

    @torch.inference_mode()
    def _text_batch(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.encoder.tokenize(texts)
        placed = {name: part.to(self._placement["device"]) for name, part in tokens.items()}
        return _unit(self.model.get_text_features(**placed))

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


def _normalisation(encoder: DualEncoder, device: Any) -> tuple[Any, Any]:
    """(factor, offset), each for one row of pixels.

    The model's input is row * factor + offset, which equals (row * scale - mean) / std.
    """
    mean, std = np.array(encoder.mean), np.array(encoder.std)
    rows = (
        np.tile(three, encoder.preprocess.width).astype(np.float32)
        for three in (encoder.scale / std, -mean / std)
    )
    factor, offset = (torch.from_numpy(row).to(device) for row in rows)
    return factor, offset


def _require_same_pixels(embedder: ClipEmbedder) -> None:
    """Compare our pixels with those of the model's own library, for images of several shapes.

    Processors differ in ways that their settings do not show, and wrong pixels raise no error: they
    only make results worse.
    """
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    for size in SHAPES:
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        theirs = embedder.encoder.pixels(image)
        pixels = np.stack([embedder.preprocess.apply(np.asarray(image))])
        ours = embedder.normalised(pixels).float().cpu()
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > 0.05:
            raise StartupError(
                "the model's own preprocessing does something that clipfleet does not support; it "
                "supports resize, centre crop, padding, rescale and normalise"
            )


def _unit(features: Any) -> torch.Tensor:
    vectors = getattr(features, "pooler_output", features).float()
    return torch.nn.functional.normalize(vectors, dim=-1)
