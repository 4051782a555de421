"""What came back: decoded, counted, and looked at whether it is a web page."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.memory import FREE, require_memory

PIECE = 1 << 16
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<")


class CutShort(Exception):
    """It ended before its end."""


def header(response: httpcore.Response, name: bytes) -> str:
    """ "" where there is none."""
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace").strip()
    return ""


def content(response: httpcore.Response, limit_bytes: int | None = None) -> Iterator[bytes]:
    """The body in pieces. Nothing beyond the limit, before decoding or after, gets into memory."""
    length = header(response, b"content-length")
    if limit_bytes is not None and length.isdigit() and int(length) > limit_bytes:
        raise Unreadable(f"the file has {length} bytes; the limit is {limit_bytes}")
    if limit_bytes is not None and length.isdigit():
        require_memory(int(length))
    raw = _counted(response.iter_stream(), limit_bytes)
    encoding = header(response, b"content-encoding").lower()
    if encoding in ("", "identity"):
        return raw
    if encoding in ("gzip", "x-gzip"):
        return _counted(_unzipped(raw), limit_bytes)
    raise Unreadable(f"the server sent it in an encoding that was not asked for ({encoding[:40]})")


def refuse_page(data: bytes, response: httpcore.Response) -> None:
    """A hint for people; what an image is, the decoder says, whatever the server calls it."""
    said = header(response, b"content-type").lower()
    markup = _MARKUP if said.startswith(("text/html", "application/xhtml")) else _PAGE
    if markup.match(data[:1_000]):
        raise Unreadable("the server answered with a web page, not an image")


def _counted(pieces: Iterable[bytes], limit_bytes: int | None) -> Iterator[bytes]:
    seen = 0
    for piece in pieces:
        seen += len(piece)
        if limit_bytes is not None and seen > limit_bytes:
            raise Unreadable(f"the file has more than {limit_bytes} bytes, which is the limit")
        if limit_bytes is not None and seen > FREE:  # of one that did not say its length
            require_memory(limit_bytes)
        yield piece


def _unzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip, one member after the other, never more than PIECE at a time: a bomb does not go off."""
    unzip = zlib.decompressobj(wbits=31)
    begun = False
    for piece in pieces:
        left = piece
        while left:
            begun = True
            try:
                yield from _drawn(unzip, left)
            except zlib.error as error:
                raise Unreadable("the server sent damaged gzip") from error
            left = unzip.unused_data
            if unzip.eof:
                unzip, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise CutShort("the gzip ends before its end")


def _drawn(unzip: Any, data: bytes) -> Iterator[bytes]:
    while True:
        out = unzip.decompress(data, PIECE)
        if out:
            yield out
        data = unzip.unconsumed_tail
        if unzip.eof or (not data and len(out) < PIECE):
            return


class Body(io.RawIOBase):
    """Pieces as a file that can be read once, from its beginning to its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size
