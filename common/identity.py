"""The identity of an image (primary key), its content hash, and the checks of text values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ID_BYTES = 2_048
NAMESPACE_BYTES = 256
DEFAULT_NAMESPACE = "default"


def primary_key(namespace: str, image_id: str) -> str:
    """The primary key of an image: 32 hex digits for one id in one namespace.

    It is blake2b over length-prefixed parts: ("a", "bc") and ("ab", "c") differ.
    """
    return _digest(namespace.encode(), image_id.encode())


class KeyMaker:
    """Makes many primary keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        raw = namespace.encode()
        self._begun = hashlib.blake2b(len(raw).to_bytes(8, "big") + raw, digest_size=16)

    def digest(self, image_id: str) -> bytes:
        """The 16 bytes of `primary_key`."""
        raw, digest = image_id.encode(), self._begun.copy()
        digest.update(len(raw).to_bytes(8, "big") + raw)
        return digest.digest()


def content_hash(data: bytes, metadata: Mapping[str, Any], model: str) -> str:
    """32 hex digits that change when the bytes, the metadata or the model changes."""
    canonical = json.dumps(metadata, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return _digest(data, canonical.encode(), model.encode())


def id_problem(image_id: str) -> str | None:
    """Why a string cannot be an id of an image; None when it can."""
    return text_problem("id", image_id, ID_BYTES)


def namespace_problem(namespace: str) -> str | None:
    """Why a string cannot be a namespace; None when it can."""
    return text_problem("namespace", namespace, NAMESPACE_BYTES)


def text_problem(what: str, text: str, limit_bytes: int, *, empty: bool = False) -> str | None:
    """Why a string cannot be stored: too long, empty, not UTF-8, or with a NUL; None when it can.

    Args:
        what: the name of the field, for the text.
        text: the string.
        limit_bytes: its size at most, bytes of UTF-8.
        empty: whether it may be empty.
    """
    if text.isascii() and 0 < len(text) <= limit_bytes and "\0" not in text:
        return None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"{what} is not valid UTF-8"
    if not size and not empty:
        return f"{what} is empty"
    if size > limit_bytes:
        return f"{what} has {size} bytes, the limit is {limit_bytes}"
    return f"{what} contains a NUL character" if "\0" in text else None


def printable(text: str) -> str:
    """The text with escapes in place of everything that is not valid UTF-8, as in file names."""
    return text.encode("utf-8", "backslashreplace").decode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
