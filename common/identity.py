"""The identity of an image (primary key), its content hash, and the checks of text values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ID_BYTES = 2_048
NAMESPACE_BYTES = 256
DEFAULT_NAMESPACE = "default"
CONTENT_DIGITS, BYTES_DIGITS = 32, 20  # of a content hash, and of its first half
UPLOAD = "upload:"  # begins the URI of an uploaded image


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


def bytes_hash(data: bytes, model: str, *, exif: bool = False) -> str:
    """The first half of a content hash: what the embedding depends on, as 20 hex digits.

    Args:
        data: the bytes of the file.
        model: the model that embeds them.
        exif: whether fields of their EXIF become metadata.
    """
    return _digest(data, model.encode(), b"exif" if exif else b"")[:BYTES_DIGITS]


def details_hash(label: str, metadata: Mapping[str, Any], uri: str = "") -> str:
    """The second half of a content hash: what a job says of an image, as 12 hex digits.

    Args:
        label: its label; "": none.
        metadata: its metadata, without fields of its EXIF.
        uri: where it came from. An upload has another one each time, which does not count.
    """
    canonical = json.dumps(metadata, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    place = "" if uri.startswith(UPLOAD) else uri
    parts = (text.encode("utf-8", "backslashreplace") for text in (label, canonical, place))
    return _digest(*parts)[: CONTENT_DIGITS - BYTES_DIGITS]


def has_same_bytes(content_hash: str, other: str) -> bool:
    """Whether two content hashes are of the same bytes and model. An unknown one, "", is of none.

    Hashes of earlier releases are of everything together, and so equal to no other here.
    """
    return bool(content_hash) and content_hash[:BYTES_DIGITS] == other[:BYTES_DIGITS]


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
