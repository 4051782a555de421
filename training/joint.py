"""Stage: tune the last layers of the image tower towards the text tower.

Locked-text tuning, the mirror of LiT (Zhai et al. 2022): the text side is already good, the
image side learns.  Three terms: contrast of a picture with every text of the bank (Radford et
al. 2021, with a bank in place of a batch), contrast of a text with the batch's pictures, and the
ImageNet classifier's own opinion, kept by distillation over the thousand class names so that
what the tower knew is not forgotten (Li & Hoiem 2016).
"""

import copy
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize, softmax
from transformers import EfficientNetModel

from training import examples, vision
from training.bank import WORDINGS, Bank
from training.examples import Examples

BATCH = 128
RATE_TAIL = 1.5e-4
RATE_HEAD = 3e-4
WARM_STEPS = 30
KEEP = 1.0
"""Weight of the ImageNet distillation."""

BACK = 0.5
"""Weight of the text-to-image contrast."""

ALIKE = 0.8
"""Texts closer than this to a picture's own text are not held against the picture."""

RIDGE = 0.05
AVERAGE = 0.99
"""Per-step share of the old weights in the running average that is kept as the result."""

SAVE_EVERY_S = 90
LOG = logging.getLogger(__name__)


class ImageTower(nn.Module):
    """The trained part of the image tower and the projection into the joint space."""

    def __init__(self, tower: EfficientNetModel, width: int) -> None:
        """Start from the ImageNet tower and an empty projection."""
        super().__init__()
        self.tower = tower
        self.projection = nn.Linear(vision.POOLED, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(50.0)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Embed activations [n, 192, g, g]: float32 [n, d], unit length."""
        projected: Tensor = self.projection(vision.tail(self.tower, hidden))
        return normalize(projected, dim=-1)


@dataclass(frozen=True)
class Teaching:
    """Everything a step needs: pictures, texts, and what ImageNet's classifier says.

    ``opinions`` are logits [n, 1000]; ``classes`` [1000] are the places of the class names in the
    bank, where some share a place because ImageNet calls two things "crane".
    """

    pictures: Examples
    bank: Bank
    opinions: Tensor
    classes: Tensor


@torch.inference_mode()
def pooled(tower: EfficientNetModel, activations: Tensor, device: str) -> Tensor:
    """Run the tail over cached activations: float32 [n, 1280] on the CPU."""
    parts = torch.split(activations, 512)
    return torch.cat([vision.tail(tower, part.float().to(device)).cpu() for part in parts])


@torch.inference_mode()
def opinions(known: vision.Pretrained, before: Tensor) -> Tensor:
    """Ask the untouched classifier about pooled features [n, 1280]: float16 logits [n, 1000]."""
    layer = copy.deepcopy(known.classes).cpu()
    logits: Tensor = layer(before)
    return logits.to(torch.float16)


@torch.no_grad()
def begin(model: ImageTower, teaching: Teaching, before: Tensor) -> None:
    """Solve for a first projection by ridge regression on pooled features [n, 1280].

    Targets are the mean vector of a picture's texts, plus, for photos, ConSE's vector (Norouzi
    et al. 2013): class names averaged by the classifier's probabilities.  Rows are scaled to a
    mean length of one, since only directions matter and the optimizer's rate assumes a size.
    """
    pictures, texts = teaching.pictures, teaching.bank.vectors.mean(0)
    targets = normalize(texts[pictures.positives].mean(1), dim=-1)
    named = softmax(teaching.opinions.float(), dim=-1) @ texts[teaching.classes]
    targets = targets + normalize(named, dim=-1) * pictures.is_photo[:, None]
    weighted = before * (pictures.weights[:, None] * len(before)).float()
    gram = before.T @ weighted + RIDGE * len(before) * torch.eye(before.shape[1])
    solved = torch.linalg.solve(gram, weighted.T @ targets).T
    model.projection.weight.copy_(solved / solved.norm(dim=1).mean())


def train(
    model: ImageTower, teaching: Teaching, path: Path, steps: int, seed: int, device: str
) -> ImageTower:
    """Take the steps not yet taken; return the running average of the weights."""
    average = copy.deepcopy(model)
    optimizer = _optimizer(model)
    done = _resume(model, average, optimizer, path)
    saved, losses = time.monotonic(), []
    for step, chosen in enumerate(examples.batches(teaching.pictures, BATCH, steps, seed)):
        if step < done:
            continue
        _schedule(optimizer, step, steps)
        losses.append(_step(model, optimizer, teaching, chosen, step, device))
        _blend(average, model, step)
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(model, average, optimizer, step + 1, path)
            LOG.info("joint: step %d of %d, loss %.4f", step, steps, sum(losses[-40:]) / 40)
            saved = time.monotonic()
    _save(model, average, optimizer, steps, path)
    return average


def _optimizer(model: ImageTower) -> torch.optim.Optimizer:
    """Give the tail a lower rate than the projection; everything else stays fixed."""
    model.requires_grad_(False)
    tail = vision.tail_parameters(model.tower)
    head = [model.projection.weight, model.scale]
    for parameter in [*tail, *head]:
        parameter.requires_grad_(True)
    groups = [{"params": tail, "peak": RATE_TAIL}, {"params": head, "peak": RATE_HEAD}]
    return torch.optim.AdamW(groups, lr=RATE_TAIL, weight_decay=0.02)


def _schedule(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Warm up, then fall along half a cosine."""
    factor = min(1.0, (step + 1) / WARM_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _step(
    model: ImageTower,
    optimizer: torch.optim.Optimizer,
    teaching: Teaching,
    chosen: Tensor,
    step: int,
    device: str,
) -> float:
    """Take one optimizer step on a batch and return the loss."""
    model.eval()
    hidden = teaching.pictures.activations[chosen].float().to(device)
    texts = teaching.bank.vectors[step % WORDINGS].to(device)
    loss = _loss(model, model(hidden), texts, teaching, chosen)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _loss(
    model: ImageTower, vectors: Tensor, texts: Tensor, teaching: Teaching, chosen: Tensor
) -> Tensor:
    """Add up the three terms."""
    positives = teaching.pictures.positives[chosen].to(vectors.device)
    photo = teaching.pictures.is_photo[chosen].to(vectors.device)
    scores = model.scale.exp().clamp(max=100.0) * vectors @ texts.T
    forth = _forth(scores, texts, positives)
    back = _back(scores, texts, positives)
    opinion = softmax(teaching.opinions[chosen].float().to(vectors.device), dim=-1)
    kept = kl_div(
        log_softmax(scores[:, teaching.classes.to(scores.device)], dim=-1),
        opinion,
        reduction="none",
    ).sum(-1)
    return forth + BACK * back + KEEP * (kept * photo).sum() / photo.sum().clamp(min=1)


def _forth(scores: Tensor, texts: Tensor, positives: Tensor) -> Tensor:
    """Contrast each picture with all texts; texts that mean the same do not count."""
    own = normalize(texts[positives].mean(1), dim=-1)
    alike = own @ texts.T > ALIKE
    alike.scatter_(1, positives, False)
    shares = log_softmax(scores.masked_fill(alike, -1e4), dim=-1)
    return -shares.gather(1, positives).mean()


def _back(scores: Tensor, texts: Tensor, positives: Tensor) -> Tensor:
    """Contrast one text of each picture with the batch's pictures."""
    drawn = positives[:, int(torch.randint(positives.shape[1], (1,)))]
    same = texts[drawn] @ texts[drawn].T > ALIKE
    same.fill_diagonal_(False)
    shares = log_softmax(scores[:, drawn].T.masked_fill(same, -1e4), dim=-1)
    return -shares.diagonal().mean()


def _blend(average: ImageTower, model: ImageTower, step: int) -> None:
    """Move the running average towards the present weights, faster at first."""
    keep = min(AVERAGE, (step + 1) / (step + 10))
    with torch.no_grad():
        for old, new in zip(average.parameters(), model.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def _save(
    model: ImageTower,
    average: ImageTower,
    optimizer: torch.optim.Optimizer,
    step: int,
    path: Path,
) -> None:
    """Write the whole state so that an interruption leaves the last whole file."""
    state = {"model": model.state_dict(), "average": average.state_dict(), "step": step}
    torch.save(state | {"optimizer": optimizer.state_dict()}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _resume(
    model: ImageTower, average: ImageTower, optimizer: torch.optim.Optimizer, path: Path
) -> int:
    """Load the last saved state, if any, and return how many steps it had taken."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
