"""The text teacher: all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), from its wheel.

Training-time only.  A vector is the mean of the last layer over a text's tokens, unit length.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from training.wheels import minilm

BATCH = 64
SHARD = 8192
MAX_TOKENS = 64
WIDTH = 384
LOG = logging.getLogger(__name__)


class Teacher:
    """MiniLM with its tokenizer on one device."""

    def __init__(self, device: str) -> None:
        """Load the model from its wheel."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(minilm())
        self.model: Any = AutoModel.from_pretrained(minilm()).to(device).eval()
        self.device = device

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 [n, 384], unit length, row i for text i."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        rows = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            rows[places] = self._embed_batch([texts[place] for place in places])
        return rows

    def _embed_batch(self, texts: list[str]) -> Tensor:
        """Embed one batch of texts of like length."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        hidden: Tensor = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()


def vectors(texts: Sequence[str], work: Path, device: str) -> Tensor:
    """Embed a corpus, texts met before read from disk: float16 [n, 384]."""
    folder = work / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    known = _known(folder)
    missing = [text for text in texts if text not in known]
    if missing:
        _embed_missing(missing, folder, device)
        known = _known(folder)
    return torch.stack([known[text] for text in texts])


def _known(folder: Path) -> dict[str, Tensor]:
    """Read every shard: text to vector."""
    known: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.pt")):
        shard = torch.load(path, weights_only=True)
        known.update(zip(shard["texts"], shard["vectors"], strict=True))
    return known


def _embed_missing(texts: Sequence[str], folder: Path, device: str) -> None:
    """Embed texts shard by shard, so that an interruption loses one shard at most."""
    teacher = Teacher(device)
    for start in range(0, len(texts), SHARD):
        part = list(texts[start : start + SHARD])
        path = folder / f"{hashlib.blake2b(repr(part).encode(), digest_size=8).hexdigest()}.pt"
        torch.save({"texts": part, "vectors": teacher.embed(part).half()}, path)
        LOG.info("teacher: %d of %d texts", start + len(part), len(texts))
