"""Training examples for joint tuning: cached activations with their texts, and batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import features
from training.catalogue import training_only, views
from training.records import Record

SHARES = {"flickr8k": 0.3, "caltech101": 0.15, "imagenet-sample": 0.15, "imagenette": 0.08}
"""Shares of a batch; drawings share the rest in proportion to their numbers."""


@dataclass(frozen=True)
class Examples:
    """Activations float16 [n, 192, g, g], the texts of each, and batch weights [n].

    ``positives`` [n, 5] holds places in the bank, repeated where a picture has fewer texts.
    """

    activations: Tensor
    positives: Tensor
    is_photo: Tensor
    weights: Tensor

    def __len__(self) -> int:
        """Count examples."""
        return len(self.positives)


def gather(pictures: dict[str, list[Record]], places: dict[str, int], work: Path) -> Examples:
    """Load every cached view of every training picture."""
    parts = [
        _source(records, number, places, work)
        for source, records in pictures.items()
        for number in range(views(source))
        if training_only(records) and _complete(records, number, work)
    ]
    return _joined(parts)


def _complete(records: Sequence[Record], number: int, work: Path) -> bool:
    """Say whether one view of a source is wholly on disk."""
    count = len(records) if number == 0 else sum(not record.held for record in records)
    return features.available(work, records[0].source, number, count)


def _source(records: list[Record], number: int, places: dict[str, int], work: Path) -> Examples:
    """Load one view of one source's training pictures."""
    activations = features.load(work, records[0].source, number)
    chosen = training_only(records)
    if number == 0:
        activations = activations[[not record.held for record in records]]
    texts = torch.tensor([_five(record, places) for record in chosen])
    photo = torch.tensor([record.kind == "photo" for record in chosen])
    share = SHARES.get(records[0].source, 0.0) / views(records[0].source)
    weights = torch.full((len(chosen),), share / len(chosen), dtype=torch.double)
    return Examples(activations, texts, photo, weights)


def _five(record: Record, places: dict[str, int]) -> list[int]:
    """Return five places of a picture's texts, its texts repeated in turn."""
    own_places = [places[text] for text in record.texts]
    return [own_places[number % len(own_places)] for number in range(5)]


def _joined(parts: Sequence[Examples]) -> Examples:
    """Join sources and give the drawings their share of the weights."""
    weights = torch.cat([part.weights for part in parts])
    drawn = weights == 0
    weights[drawn] = (1 - sum(SHARES.values())) / max(1, int(drawn.sum()))
    return Examples(
        torch.cat([part.activations for part in parts]),
        torch.cat([part.positives for part in parts]),
        torch.cat([part.is_photo for part in parts]),
        weights / weights.sum(),
    )


def batches(examples: Examples, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield places of ``steps`` random batches, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.multinomial(examples.weights, size, generator=generator)
