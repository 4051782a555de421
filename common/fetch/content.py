"""The body of a response: decoded, limited in size, and checked for web pages."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.memory import FREE, require_memory

PIECE_BYTES = 1 << 16
# Content-Encodings that leave the bytes as they are. Servers, and objects in buckets, have names
# there that are no encodings.
UNCHANGED = ("", "identity", "none", "utf-8", "utf8", "binary", "8bit", "7bit", "aws-chunked")
ZLIB_HEADER_BYTES = 2
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<")


class CutShort(Exception):
    """The body is shorter than its Content-Length, or its compressed data is incomplete."""


def header(response: httpcore.Response, name: bytes) -> str:
    """The value of a header of a response; "" when there is none."""
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace").strip()
    return ""


def content(response: httpcore.Response, limit_bytes: int | None = None) -> Iterator[bytes]:
    """The body of a response in pieces, decoded.

    Args:
        limit_bytes: the size at most, before and after decoding; None: no limit. No more than this
            is held in memory.

    Raises:
        Unreadable: the body is too large, or its encoding is not supported.
    """
    length = header(response, b"content-length")
    if limit_bytes is not None and length.isdigit() and int(length) > limit_bytes:
        raise Unreadable(f"the file has {length} bytes; the limit is {limit_bytes}")
    if limit_bytes is not None and length.isdigit():
        require_memory(int(length))
    raw = _counted(response.iter_stream(), limit_bytes)
    named = header(response, b"content-encoding").lower().split(",")
    encodings = [encoding for name in named if (encoding := name.strip()) not in UNCHANGED]
    match encodings:
        case []:
            return raw
        case ["gzip" | "x-gzip"]:
            return _counted(_gunzipped(raw), limit_bytes)
        case ["deflate"]:
            return _counted(_inflated(raw), limit_bytes)
    names = ", ".join(encodings)[:40]
    raise Unreadable(f"the server sent it in an encoding that was not requested ({names})")


def refuse_page(data: bytes, response: httpcore.Response) -> None:
    """Raise Unreadable for a web page, to give a better reason than the decoder.

    The decoder decides what an image is, whatever the Content-Type.
    """
    content_type = header(response, b"content-type").lower()
    markup = _MARKUP if content_type.startswith(("text/html", "application/xhtml")) else _PAGE
    if markup.match(data[:1_000]):
        raise Unreadable("the server answered with a web page, not an image")


def _counted(pieces: Iterable[bytes], limit_bytes: int | None) -> Iterator[bytes]:
    seen = 0
    for piece in pieces:
        seen += len(piece)
        if limit_bytes is not None and seen > limit_bytes:
            raise Unreadable(f"the file has more than {limit_bytes} bytes, which is the limit")
        if limit_bytes is not None and seen > FREE:  # a body without a Content-Length
            require_memory(limit_bytes)
        yield piece


def _gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip with any number of members, PIECE_BYTES at a time at most."""
    unzip = zlib.decompressobj(wbits=31)
    begun = False
    for piece in pieces:
        rest = piece
        while rest:
            begun = True
            try:
                yield from _decompressed(unzip, rest)
            except zlib.error as error:
                raise Unreadable("the server sent damaged gzip") from error
            rest = unzip.unused_data
            if unzip.eof:
                unzip, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise CutShort("the gzip is incomplete")


def _inflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress deflate, with the header of zlib or, as some servers send it, without."""
    unzip: Any = None
    begin = b""
    for piece in pieces:
        data = begin + piece
        if unzip is None and len(data) < ZLIB_HEADER_BYTES:
            begin = data
            continue
        if unzip is None:
            has_header = data[0] & 15 == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
            unzip = zlib.decompressobj(wbits=15 if has_header else -15)
            begin = b""
        try:
            yield from _decompressed(unzip, data)
        except zlib.error as error:
            raise Unreadable("the server sent damaged deflate") from error
    if begin or (unzip is not None and not unzip.eof):
        raise CutShort("the deflate is incomplete")


def _decompressed(unzip: Any, data: bytes) -> Iterator[bytes]:
    while True:
        out = unzip.decompress(data, PIECE_BYTES)
        if out:
            yield out
        data = unzip.unconsumed_tail
        if unzip.eof or (not data and len(out) < PIECE_BYTES):
            return


class Body(io.RawIOBase):
    """Pieces as a file that can be read once, from the beginning to the end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
