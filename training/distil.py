"""Stage: distil the teacher's sentence vectors into the text tower.

The loss is cosine distance plus a relational term: within a batch, the student's similarities
to the teacher's vectors must rank like the teacher's own (Park et al. 2019, by cross entropy).
"""

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import AutoTokenizer

from training import student, vocabulary

WORDS = 7000
BATCH = 128
RATE = 5e-4
WARM_STEPS = 150
TEMPERATURE = 0.07
RELATION = 0.05
CHUNK = 16
"""Batches whose texts are sorted by length together, so that a batch pads little."""

SAVE_EVERY_S = 90
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What the student learns from: texts, tokens and the teacher's vectors."""

    tokens: list[list[int]]
    targets: Tensor


def distil(texts: Sequence[str], targets: Tensor, work: Path, steps: int, device: str) -> None:
    """Train the text tower, or go on where an interrupted run stopped."""
    words = _vocabulary(texts, work)
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "tokenizer")
    tokens = tokenizer(list(texts), truncation=True)["input_ids"]
    tower = student.fresh(words).to(device)
    _train(tower, Lesson(tokens, targets), work / "text-tower.pt", steps, device)


def _vocabulary(texts: Sequence[str], work: Path) -> vocabulary.Vocabulary:
    """Choose the vocabulary, or read the one chosen before."""
    path = work / "vocabulary.json"
    if not path.exists():
        vocabulary.write(vocabulary.chosen(texts, WORDS), path)
    words = vocabulary.read(path)
    vocabulary.write_tokenizer(words, work / "tokenizer")
    return words


def load(work: Path, device: str) -> student.TextTower:
    """Return the distilled text tower."""
    tower = student.fresh(vocabulary.read(work / "vocabulary.json"))
    state = torch.load(work / "text-tower.pt", map_location="cpu", weights_only=True)
    tower.load_state_dict(state["tower"])
    return tower.to(device)


def _train(tower: student.TextTower, lesson: Lesson, path: Path, steps: int, device: str) -> None:
    """Take the steps that are not taken yet, saving now and then."""
    optimizer = torch.optim.AdamW(tower.parameters(), lr=RATE, weight_decay=0.01)
    done = _resume(tower, optimizer, path)
    saved, losses = time.monotonic(), []
    for step, places in _remaining(lesson, done, steps):
        losses.append(_step(tower, optimizer, _batch(lesson, places, device), step / steps, step))
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(tower, optimizer, step + 1, path)
            LOG.info("text tower: step %d of %d, loss %.4f", step, steps, _mean(losses[-100:]))
            saved = time.monotonic()
    _save(tower, optimizer, steps, path)


def _mean(numbers: Sequence[float]) -> float:
    """Average a list that is not empty."""
    return sum(numbers) / len(numbers)


def _remaining(lesson: Lesson, done: int, steps: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the steps from ``done`` on with the texts of each."""
    batches = _batches(lesson)
    for step in range(steps):
        places = next(batches)
        if step >= done:
            yield step, places


def _batches(lesson: Lesson) -> Iterator[list[int]]:
    """Yield batches of texts for ever, shuffled, of like length within a chunk."""
    chance = random.Random(0)
    places = list(range(len(lesson.tokens)))
    while True:
        chance.shuffle(places)
        for start in range(0, len(places), CHUNK * BATCH):
            chunk = sorted(
                places[start : start + CHUNK * BATCH], key=lambda at: len(lesson.tokens[at])
            )
            cuts = [chunk[cut : cut + BATCH] for cut in range(0, len(chunk), BATCH)]
            chance.shuffle(cuts)
            yield from cuts


def _batch(lesson: Lesson, places: list[int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the tokens of some texts: ids [n, t], mask [n, t], the teacher's vectors [n, 384]."""
    rows = [lesson.tokens[place] for place in places]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids.to(device), mask.to(device), lesson.targets[places].float().to(device)


def _step(
    tower: student.TextTower,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    progress: float,
    step: int,
) -> float:
    """Take one optimizer step at the scheduled rate and return the loss."""
    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1.0, (step + 1) / WARM_STEPS) * _decay(progress)
    ids, mask, targets = batch
    loss = _loss(tower(ids, mask), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _decay(progress: float) -> float:
    """Fall from one to a fiftieth along half a cosine."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def _loss(vectors: Tensor, targets: Tensor) -> Tensor:
    """Cosine distance plus the relational term, both averaged over the batch."""
    distance = 1 - (vectors * targets).sum(-1).mean()
    teacher_shares = softmax(targets @ targets.T / TEMPERATURE, dim=-1)
    student_log_shares = log_softmax(vectors @ targets.T / TEMPERATURE, dim=-1)
    return distance + RELATION * kl_div(student_log_shares, teacher_shares, reduction="batchmean")


def _save(
    tower: student.TextTower, optimizer: torch.optim.Optimizer, step: int, path: Path
) -> None:
    """Write tower, optimizer and step so that an interruption leaves the last whole file."""
    part = path.with_suffix(".part")
    state = {"tower": tower.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, part)
    part.replace(path)


def _resume(tower: student.TextTower, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Load the last saved state, if any, and return how many steps it had taken."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    tower.load_state_dict(state["tower"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
