"""Several sources as one: lists of them, and those that a pattern stands for."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipfleet.common.auth.source_access import OwnData, SourceAccess, SourceRefused
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.http import uris
from clipfleet.common.http.patterns import Pattern, Wild
from clipfleet.common.http.sources import BucketSource
from clipfleet.common.identity import printable
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import Listed, Source, SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.scratch import in_order
from clipfleet.workers.storage.locations import Storage

FAILED = "\0"  # in place of a cursor within a part: the part could not be read
MAX_COUNTED = 100  # parts whose images are counted
EMPTY = "sources without images"
UNREAD = "folders that cannot be read, in which a pattern looked"
FILE, FOLDER, LINK = range(3)


@dataclass(frozen=True)
class Part:
    """One of several sources.

    Attributes:
        position: sorts it among the others, and finds it again; without blanks.
        name: its path or address.
        open: opens it. It may raise SourceError.
    """

    position: str
    name: str
    open: Callable[[], Source]


class Several:
    """Several sources, one after the other.

    A source that cannot be read, or is damaged, fails as one image with its name. The cursor is the
    position of a part, a blank, and the cursor within the part.

    Args:
        parts: returns the parts, from the one at a position on; from the first one for "".
        name: what they are together.
    """

    def __init__(self, parts: Callable[[str], Iterator[Part]], name: str) -> None:
        self._parts, self._name, self.notes = parts, printable(name), Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        position, _, within = after.partition(" ")
        for part in self._parts(position):
            if part.position != position:
                yield from self._stream(part, "")
            elif within != FAILED:
                yield from self._stream(part, within)

    def _stream(self, part: Part, after: str) -> Iterator[Listed]:
        name, is_empty = printable(part.name), not after
        try:
            source = part.open()
            for item, cursor, signature in source.stream(after):
                is_empty = False
                self.notes.add(source.notes.take())  # counted on the way to this item
                named = item.model_copy(update={"row": f"{item.row} of {name}"})
                yield Listed(named if item.row else item, f"{part.position} {cursor}", signature)
            left_out = source.notes.take()
            self.notes.add(left_out)
            is_empty = is_empty and not left_out
        except SourceError as error:
            self.notes.gap()
            item = Item(id=name, uri=name, read="", problem=str(error))
            yield Listed(item, f"{part.position} {FAILED}")
        else:
            if is_empty:
                self.notes.remark(EMPTY)
                self.notes.gap()

    def count(self) -> int:
        total = 0
        for number, part in enumerate(self._parts("")):
            if number == MAX_COUNTED:
                return 0
            try:
                images = part.open().count()
            except (SourceError, ClipfleetError, OSError):
                images = 1  # which fails
            if not images:
                return 0
            total += images
        return total

    def nothing_found(self) -> str:
        return f"no images in {self._name}"


def in_list(
    records: list[dict[str, Any]], open_: Callable[[dict[str, Any]], Source], name: str
) -> Several:
    """The sources of a list.

    Args:
        records: the sources as the gateway stored them.
        open_: opens one of them.
        name: what they are together.
    """

    def parts(position: str) -> Iterator[Part]:
        for number in range(int(position or 0), len(records)):
            record = records[number]
            place = record.get("path") or record.get("uri") or "a list of URLs"
            yield Part(str(number), place, partial(open_, record))

    return Several(parts, name)


class Matches:
    """What a pattern stands for, as parts of `Several`.

    Args:
        text: the pattern.
        open_: opens a match, given its path or address, and whether it is a folder.
        takes_folders: whether a folder that matches is a source, so that nothing below it matches
            again; otherwise only files match.
        storage: lists folders and buckets, as far as the job may.
    """

    def __init__(
        self,
        text: str,
        open_: Callable[[str, bool], Source],
        takes_folders: bool,
        storage: Storage,
    ) -> None:
        self._pattern, self._open = Pattern(text), open_
        self._takes_folders, self._storage = takes_folders, storage
        self._notes: Notes | None = None

    def source(self) -> Several:
        """The matches as one source."""
        several = Several(self._parts, self._pattern.text)
        self._notes = several.notes
        return several

    def _parts(self, position: str) -> Iterator[Part]:
        first, _, quoted = position.partition(":")
        begin = int(first or 0)
        for number, value in enumerate(self._values()):
            if number < begin:
                continue
            after = os.fsdecode(unquote_to_bytes(quoted)) if number == begin else ""
            has_match = False
            for path, is_folder in self._matches(value, after):
                has_match = True
                yield self._part(number, path, is_folder)
            if not has_match and not after:
                yield self._missing(number, value)

    def _values(self) -> Iterator[str]:
        text = self._pattern.text
        if uris.scheme(text) in ("", "file") and _exists(
            uris.local_path(text), self._storage.access
        ):
            return iter([text])
        return self._pattern.values()

    def _part(self, number: int, path: str, is_folder: bool) -> Part:
        position = f"{number}:{quote_from_bytes(os.fsencode(path))}"
        return Part(position, path, partial(self._open, path, is_folder))

    def _missing(self, number: int, value: str) -> Part:
        what = "no folder or file" if self._takes_folders else "no file"
        problem = f"{what} matches {printable(value)}"
        if self._pattern.count == 1:
            raise SourceError(problem)

        def fails() -> Source:
            raise SourceError(problem)

        return Part(f"{number}:", value, fails)

    def _matches(self, value: str, after: str) -> Iterator[tuple[str, bool]]:
        """(path or address, whether it is a folder) of the matches of a value, in their order."""
        if uris.scheme(value) not in ("", "file"):
            yield from self._remote_matches(value, after)
            return
        path = uris.local_path(value)
        access = self._storage.access
        if not Pattern(path).is_wild or _exists(path, access):  # or it is missing, and says so
            yield path, os.path.isdir(path)
            return
        wild = Wild(os.path.normpath(path))
        yield from self._walk(wild, tuple(os.fsencode(after).split(b"/")) if after else ())

    def _remote_matches(self, value: str, after: str) -> Iterator[tuple[str, bool]]:
        if uris.scheme(value) in ("http", "https") or not Pattern(value).is_wild:
            yield value, False
            return
        wild = Wild(value)
        below = Bucket(BucketSource(uri=wild.base), self._storage)
        base = f"{wild.base}/"
        for url in below.urls(after):
            positions = wild.start()
            for name in url.removeprefix(base).split("/"):
                positions = wild.step(positions, name)
                if self._takes_folders and wild.ends(positions):
                    break
            if wild.ends(positions) and url >= after:
                yield url, False

    def _walk(self, wild: Wild, begin: tuple[bytes, ...]) -> Iterator[tuple[str, bool]]:
        stack = [(wild.base, wild.start(), self._entries(wild.base))]
        while stack:
            folder, positions, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            name, kind = entry
            positions_after = wild.step(positions, os.fsdecode(name), is_link=kind == LINK)
            path = os.path.join(folder, os.fsdecode(name))
            key = tuple(os.fsencode(path).split(b"/"))
            if key < begin[: len(key)]:
                continue
            is_folder = kind == FOLDER or (kind == LINK and os.path.isdir(path))
            ends = wild.ends(positions_after) and (self._takes_folders or not is_folder)
            if ends and key >= begin and self._may_read(path):
                yield path, is_folder
            if not wild.goes_on(positions_after) or (ends and self._takes_folders):
                continue
            if is_folder:
                stack.append((path, positions_after, self._entries(path)))
            elif kind == LINK and not os.path.exists(path):  # perhaps to a disk that is missing
                self._note_unread()

    def _entries(self, folder: str) -> Iterator[tuple[bytes, int]]:
        """(name, kind) of what is in a folder. It is read whole and closed before the first one."""
        try:
            descriptor = self._storage.access.open_folder(folder)
        except OwnData:
            return
        except (OSError, SourceRefused):
            self._note_unread()
            return
        try:
            with os.scandir(descriptor) as entries:
                listed = in_order((os.fsencode(entry.name), _kind(entry)) for entry in entries)
                first = next(listed, None)
        finally:
            os.close(descriptor)
        yield from chain([first] if first else [], listed)

    def _note_unread(self) -> None:
        if self._notes:
            self._notes.remark(UNREAD)
            self._notes.gap()

    def _may_read(self, path: str) -> bool:
        try:
            self._storage.access.require_path(path)
        except SourceRefused:
            return False
        return True


def _kind(entry: "os.DirEntry[str]") -> int:
    if entry.is_symlink():
        return LINK
    return FOLDER if entry.is_dir(follow_symlinks=False) else FILE


def _exists(path: str, access: SourceAccess) -> bool:
    """Whether there is a file or folder of this very name, which the job may see."""
    try:
        return os.path.lexists(access.require_path(path))
    except (SourceRefused, ValueError):
        return False
