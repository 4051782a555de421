"""The packaged model as users load it: by the auto classes, from its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

BATCH = 32


class Encoder:
    """Model, tokenizer and image processor loaded fresh from a folder."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load in float32, without remote code; channels last, where convolutions run faster."""
        self.model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.model.to(memory_format=torch.channels_last)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.processor: Any = cast("Any", AutoImageProcessor).from_pretrained(folder)
        self.device = device

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 [n, 384], unit length."""
        parts = [self._texts(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        return torch.cat(parts)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Embed one batch of texts."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        features: Tensor = self.model.get_text_features(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        ).pooler_output
        return normalize(features, dim=-1).cpu()

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed one batch of RGB images: float32 [n, 384], unit length."""
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        features: Tensor = self.model.get_image_features(pixels.to(self.device)).pooler_output
        return normalize(features, dim=-1).cpu()
