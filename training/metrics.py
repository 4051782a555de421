"""Retrieval and classification numbers from unit vectors; the scores are cosines."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

GALLERIES = 20
"""Random galleries that a recall is averaged over when there are more pictures than one holds."""


def accuracy(images: Tensor, prompts: Tensor, labels: Tensor) -> float:
    """Share of images [n, d] whose nearest prompt [c, d] is that of their label [n]."""
    return float(((images @ prompts.T).argmax(1) == labels).float().mean())


def recall(
    texts: Tensor, owners: Tensor, images: Tensor, top: int, gallery: int, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation, over galleries, of the share of texts that find their image.

    ``texts`` [t, d] belong to images ``owners`` [t]; a gallery is ``gallery`` of ``images``
    [n, d] drawn at random, and only texts whose image is in it are used as queries.
    """
    chance = random.Random(seed)
    rounds = GALLERIES if len(images) > gallery else 1
    size = min(gallery, len(images))
    draws = [chance.sample(range(len(images)), size) for _ in range(rounds)]
    shares = torch.tensor([_recall_once(texts, owners, images, top, draw) for draw in draws])
    return float(shares.mean()), float(shares.std(correction=0))


def _recall_once(
    texts: Tensor, owners: Tensor, images: Tensor, top: int, gallery: Sequence[int]
) -> float:
    """Share of a gallery's texts whose image is among the ``top`` nearest."""
    place = torch.full((len(images),), -1)
    place[list(gallery)] = torch.arange(len(gallery))
    in_gallery = place[owners] >= 0
    scores = texts[in_gallery] @ images[list(gallery)].T
    nearest = scores.topk(min(top, len(gallery)), dim=1).indices
    return float((nearest == place[owners[in_gallery]][:, None]).any(1).float().mean())


def neighbour_accuracy(images: Tensor, labels: Tensor, top: int = 5) -> float:
    """Share of images with one of their class among the ``top`` nearest other images."""
    scores = (images @ images.T).fill_diagonal_(-2.0)
    nearest = labels[scores.topk(top, dim=1).indices]
    return float((nearest == labels[:, None]).any(1).float().mean())
