"""Reads xz with bounded memory: a file may ask for a dictionary of gigabytes."""

import io
import lzma
from typing import Any, BinaryIO

MEMORY_BYTES = 128 << 20  # `xz -9` needs 65 MiB
PIECE_BYTES = 1 << 16


class Unxz(io.RawIOBase):
    """The unpacked bytes of an xz file with any number of streams, read once from the beginning.

    Raises:
        lzma.LZMAError: while it is read: it is damaged, or needs more than MEMORY_BYTES.
        EOFError: while it is read: it ends early.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._rest = source, b""
        self._unpacker = self._new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._unpacker.eof:
                self._rest = self._unpacker.unused_data.lstrip(b"\0")
                while not self._rest and (padding := self._read()):
                    self._rest = padding.lstrip(b"\0")
                if not self._rest:
                    return 0
                self._unpacker = self._new()
            elif self._unpacker.needs_input and not self._rest:
                self._rest = self._read()
                if not self._rest:
                    raise EOFError("the xz ends early")
            piece, self._rest = self._rest, b""
            data = self._unpacker.decompress(piece, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self) -> bytes:
        return self._source.read(PIECE_BYTES)

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES)
