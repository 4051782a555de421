"""Patterns in the place of a path or an address: `shards/{000..999}.tar`, `2024-*/**/*.jpg`.

Braces stand for a range of whole numbers, with leading zeros as written, or for alternatives:
`{a,b}`. Each of their values names one source, whether it exists or not. `*`, `?` and `[...]` stand
for characters of one name, and `**` for any number of folders: they name what exists. Braces
without a range or a comma are ordinary characters. A file that has a pattern as its very name is
that file.
"""

import os
import re
from collections.abc import Iterator
from fnmatch import translate
from functools import cached_property
from itertools import product

from clipfleet.common.http import uris

MAX_VALUES = 100_000  # of all braces of one pattern together
MAX_ALTERNATIVES = 1_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,9}))?")
_WILD = re.compile(r"[*?\[]")
ANY_FOLDERS = "**"


class _Range:
    """The values of `first..last..step`, with the zeros of the longer end."""

    def __init__(self, first: str, last: str, step: str | None) -> None:
        begin, end = int(first), int(last)
        size = abs(int(step or 1)) or 1
        self._numbers = (
            range(begin, end + 1, size) if begin <= end else range(begin, end - 1, -size)
        )
        padded = any(re.match(r"-?0\d", text) for text in (first, last))
        self._width = max(len(first), len(last)) if padded else 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self._width}d}" for number in self._numbers)

    @property
    def first(self) -> list[str]:
        return [f"{self._numbers[0]:0{self._width}d}"]


class Pattern:
    """A path or an address that may be a pattern.

    Args:
        text: the path or the address. A web address has braces only: `?` begins its query.

    Raises:
        ValueError: the braces have too many values, or a pattern has the part `..`.
    """

    def __init__(self, text: str) -> None:
        if any(".." in re.split("[/,]", braces[1]) for braces in _BRACES.finditer(text)):
            raise ValueError(f"{uris.short(text)} is a pattern, which may not have the part '..'")
        if not uris.scheme(text) and (_WILD.search(text) or _BRACES.search(text)):
            text = os.path.normpath(text)  # `a/../*.tar`
        self.text = text
        self._is_web = uris.scheme(text) in ("http", "https")
        self._pieces: list[list[str] | _Range] = []
        count, alternatives, end = 1, 1, 0
        for braces in _BRACES.finditer(text):
            values = _values(braces[1])
            if values is None:
                continue
            self._pieces += [[text[end : braces.start()]], values]
            end = braces.end()
            count *= len(values)
            alternatives *= 1 if isinstance(values, _Range) else len(values)
        self._pieces.append([text[end:]])
        if count > MAX_VALUES:
            raise ValueError(
                f"{uris.short(text)} stands for {count} sources; the limit is {MAX_VALUES}"
            )
        if alternatives > MAX_ALTERNATIVES:
            raise ValueError(
                f"{uris.short(text)} has {alternatives} alternatives; the limit is 1000"
            )
        self.count = count
        if self.is_pattern and ".." in text.split("/"):
            raise ValueError(f"{uris.short(text)} is a pattern, which may not have the part '..'")

    @property
    def has_braces(self) -> bool:
        """Whether braces stand for values."""
        return len(self._pieces) > 1

    @property
    def is_wild(self) -> bool:
        """Whether it has `*`, `?` or `[`."""
        return not self._is_web and bool(_WILD.search(self.text))

    @property
    def is_pattern(self) -> bool:
        """Whether it may stand for several sources."""
        return self.has_braces or self.is_wild

    def values(self) -> Iterator[str]:
        """The paths or addresses that the braces stand for, in their order."""
        return map("".join, product(*self._pieces))

    def examples(self) -> Iterator[str]:
        """For each combination of alternatives, the value with the first number of each range."""
        pieces = [piece.first if isinstance(piece, _Range) else piece for piece in self._pieces]
        return map("".join, product(*pieces))


class Wild:
    """A path or a bucket's URL with wildcards and without braces.

    Args:
        text: the path, or the URL.

    Attributes:
        base: the folder or the prefix before the first wildcard, without a slash at its end.
        parts: the parts of the path after it.
    """

    def __init__(self, text: str) -> None:
        root, slashes, rest = text.rpartition("://") if "://" in text else ("", "", text)
        parts = rest.split("/")
        wild = next(number for number, part in enumerate(parts) if _WILD.search(part))
        self.base = root + slashes + "/".join(parts[:wild])
        if not self.base and text.startswith("/"):
            self.base = "/"
        self.parts = [part for part in parts[wild:] if part]

    def start(self) -> frozenset[int]:
        """The positions in `parts` at which a name below `base` may match."""
        return self._closed({0})

    def step(
        self, positions: frozenset[int], name: str, *, is_link: bool = False
    ) -> frozenset[int]:
        """The positions after one more name.

        Args:
            positions: those before it.
            name: the name of a file or a folder.
            is_link: `**` does not follow links to folders.
        """
        after: set[int] = set()
        for position in positions:
            if position == len(self.parts):
                continue
            if self.parts[position] != ANY_FOLDERS:
                if self._matches(position, name):
                    after.add(position + 1)
            elif not name.startswith("."):
                after |= set() if is_link else {position}
                if position == len(self.parts) - 1:
                    after.add(len(self.parts))
        return self._closed(after)

    def ends(self, positions: frozenset[int]) -> bool:
        """Whether what has led to these positions matches the whole pattern."""
        return len(self.parts) in positions

    def goes_on(self, positions: frozenset[int]) -> bool:
        """Whether something below may match."""
        return any(position < len(self.parts) for position in positions)

    def _closed(self, positions: set[int]) -> frozenset[int]:
        """With the positions that `**` reaches by standing for no folder."""
        for position in sorted(positions):
            following = position
            while following < len(self.parts) - 1 and self.parts[following] == ANY_FOLDERS:
                following += 1
                positions.add(following)
        return frozenset(positions)

    def _matches(self, position: int, name: str) -> bool:
        part = self.parts[position]
        if name == part:
            return True
        if name.startswith(".") and not part.startswith("."):
            return False
        return bool(self._expressions[position].fullmatch(name))

    @cached_property
    def _expressions(self) -> list[re.Pattern[str]]:
        return [re.compile(translate(part)) for part in self.parts]


def _values(text: str) -> "list[str] | _Range | None":
    """What braces with this text stand for; None when they are ordinary characters."""
    if numbers := _RANGE.fullmatch(text):
        return _Range(*numbers.groups())
    return text.split(",") if "," in text else None
