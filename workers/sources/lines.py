"""Splits a stream into numbered lines; longer lines than the limit are not held in memory."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_LINE_BYTES = 1_000_000
BOM = b"\xef\xbb\xbf"


class Mark(NamedTuple):
    """A position between two lines.

    Attributes:
        offset: the number of bytes before it.
        lines: the number of lines before it.
    """

    offset: int = 0
    lines: int = 0

    @classmethod
    def read(cls, cursor: str) -> "Mark":
        """The mark that a cursor describes; "" is the beginning."""
        offset, _, lines = cursor.partition(":")
        return cls(int(offset), int(lines)) if cursor else cls()

    def __str__(self) -> str:
        return f"{self.offset}:{self.lines}"


class Line(NamedTuple):
    """A line of a stream.

    Attributes:
        raw: the line with its end; None if it was too long.
        after: the position after the line.
    """

    raw: bytes | None
    after: Mark

    @property
    def number(self) -> int:
        return self.after.lines

    @property
    def name(self) -> str:
        return f"line {self.number}"


def lines(file: BinaryIO, mark: Mark) -> Iterator[Line]:
    """Lines from the current file position; `mark` must describe that position."""
    while raw := file.readline(MAX_LINE_BYTES + 1):
        size = len(raw)
        kept: bytes | None = raw
        if size > MAX_LINE_BYTES:
            kept, size = None, size + _rest(file, raw)
        mark = Mark(mark.offset + size, mark.lines + 1)
        if kept and mark.lines == 1:
            kept = kept.removeprefix(BOM)
        yield Line(kept, mark)


def _rest(file: BinaryIO, raw: bytes) -> int:
    """Read to the end of the line, and return the number of bytes read."""
    size = 0
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES)
        size += len(raw)
    return size
