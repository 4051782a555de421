"""What one training picture is, and the hash that decides what is held out."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

HELD_VENDOR = "emoji-apple"
"""The vendor whose drawings are never trained on."""


class Kind(StrEnum):
    """How a picture came about: a camera or a drawing program."""

    PHOTO = "photo"
    DRAWING = "drawing"


@dataclass(frozen=True)
class Record:
    """One picture with the texts that describe it, the best one first."""

    source: str
    key: str
    path: Path
    texts: tuple[str, ...]
    kind: Kind
    held: bool


def bucket(source: str, key: str) -> float:
    """Map a picture to [0, 1), evenly and the same on every machine and in every order."""
    digest = hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def is_held(source: str, key: str, share: float) -> bool:
    """Say whether a picture belongs to the held-out ``share`` of its source."""
    return bucket(source, key) < share
