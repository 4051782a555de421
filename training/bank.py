"""All texts that describe training pictures, as vectors, each in several prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.encoding import embed_texts
from training.records import Kind, Record
from training.student import TextTower
from training.texts import prompts

WORDINGS = 3
"""Prompts a name is put into; a caption or a keyword phrase is the same in all of them."""


@dataclass(frozen=True)
class Bank:
    """Texts and their vectors float32 [wordings, texts, 384]."""

    texts: tuple[str, ...]
    vectors: Tensor

    def places(self) -> dict[str, int]:
        """Map a text to its place."""
        return {text: place for place, text in enumerate(self.texts)}


def gather(records: Sequence[Record], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Map every text to its wordings: ImageNet's names, then what the records say."""
    wordings = {name: _wordings(name, prompts(Kind.PHOTO)) for name in names}
    for record in records:
        plain = record.source == "flickr8k"
        for text in record.texts:
            templates = ("{}",) if plain or ", " in text else prompts(record.kind)
            wordings.setdefault(text, _wordings(text, templates))
    return wordings


def _wordings(text: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Put a text into templates, repeated until there are enough."""
    return tuple(templates[number % len(templates)].format(text) for number in range(WORDINGS))


def embed(wordings: dict[str, tuple[str, ...]], tower: TextTower, tokenizer: Any) -> Bank:
    """Embed every wording of every text once."""
    flat = sorted({wording for group in wordings.values() for wording in group})
    place = {wording: number for number, wording in enumerate(flat)}
    vectors = embed_texts(flat, tower, tokenizer)
    rows = [[place[group[number]] for group in wordings.values()] for number in range(WORDINGS)]
    return Bank(tuple(wordings), torch.stack([vectors[row] for row in rows]))
