"""Activations of the frozen part of the image tower, once per picture and view, kept on disk."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetModel

from training.pictures import pixels, view
from training.records import Record
from training.vision import stem

BATCH = 64
SHARD = 1024
LOG = logging.getLogger(__name__)


def folder(work: Path, source: str, number: int) -> Path:
    """Return the folder with the shards of one source and view."""
    return work / "features" / f"{source}-view{number}"


def compute(
    records: Sequence[Record], number: int, work: Path, tower: EfficientNetModel, device: str
) -> None:
    """Write the shards of one source and view that are not there yet."""
    target = folder(work, records[0].source, number)
    target.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(records), SHARD):
        path = target / f"{start:06d}.pt"
        if not path.exists():
            _write(path, _activations(records[start : start + SHARD], number, tower, device))
            LOG.info("features %s view %d: %d", records[0].source, number, start + SHARD)


def _write(path: Path, activations: Tensor) -> None:
    """Save a shard so that an interruption leaves none or all of it."""
    part = path.with_suffix(".part")
    torch.save(activations, part)
    part.replace(path)


def load(work: Path, source: str, number: int) -> Tensor:
    """Read one source and view back: float16 [n, 192, g, g], in the order of its records."""
    shards = sorted(folder(work, source, number).glob("*.pt"))
    return torch.cat([torch.load(shard, weights_only=True) for shard in shards])


def available(work: Path, source: str, number: int, count: int) -> bool:
    """Say whether every shard of one source and view is there."""
    shards = list(folder(work, source, number).glob("*.pt"))
    return len(shards) == -(-count // SHARD)


def _activations(
    records: Sequence[Record], number: int, tower: EfficientNetModel, device: str
) -> Tensor:
    """Compute float16 activations [n, 192, g, g]."""
    batches = []
    with torch.inference_mode():
        for batch in _batches(records, number):
            batches.append(stem(tower, batch.to(device)).half().cpu())
    return torch.cat(batches)


def _batches(records: Sequence[Record], number: int) -> Iterator[Tensor]:
    """Decode on one side thread while the tower works: float32 [<=64, 3, s, s]."""
    starts = range(0, len(records), BATCH)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_decoded, records[0:BATCH], number)
        for start in starts:
            batch = ahead.result()
            ahead = pool.submit(_decoded, records[start + BATCH : start + 2 * BATCH], number)
            yield batch


def _decoded(records: Sequence[Record], number: int) -> Tensor:
    """Open and shape a batch of pictures; an empty batch gives an empty tensor."""
    if not records:
        return torch.empty(0)
    return torch.stack([pixels(view(record.path, record.key, number)) for record in records])
