"""A stream as numbered lines. No line gets into memory beyond the limit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MOST_BYTES = 1_000_000
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Mark:
    """A place between two lines: bytes and lines before it."""

    offset: int = 0
    lines: int = 0

    @classmethod
    def read(cls, cursor: str) -> "Mark":
        offset, _, lines = cursor.partition(":")
        return cls(int(offset), int(lines)) if cursor else cls()

    def __str__(self) -> str:
        return f"{self.offset}:{self.lines}"


@dataclass(frozen=True)
class Line:
    """`raw`: with its end; None where it was too long. `after`: the mark behind it."""

    raw: bytes | None
    after: Mark

    @property
    def number(self) -> int:
        return self.after.lines

    @property
    def name(self) -> str:
        return f"line {self.number}"


def lines(file: BinaryIO, mark: Mark) -> Iterator[Line]:
    """From where the file stands, which is `mark`."""
    while raw := file.readline(MOST_BYTES + 1):
        size = len(raw)
        kept: bytes | None = raw
        if size > MOST_BYTES:
            kept, size = None, size + _rest(file, raw)
        mark = Mark(mark.offset + size, mark.lines + 1)
        if kept and mark.lines == 1:
            kept = kept.removeprefix(BOM)
        yield Line(kept, mark)


def _rest(file: BinaryIO, raw: bytes) -> int:
    """Read on to the line's end; how many bytes that were."""
    size = 0
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MOST_BYTES)
        size += len(raw)
    return size
