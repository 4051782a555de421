"""Images in a folder of the planner's machine."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipfleet.common.auth.source_access import OwnData, SourceAccess, SourceRefused
from clipfleet.common.errors import reason_of
from clipfleet.common.http.sources import FolderSource
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.workers.sources import signatures
from clipfleet.workers.sources.base import Listed, SourceError, ending_of
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.scratch import Entry, in_order

Entries: TypeAlias = "Iterator[Listed | Entries]"  # what `Folder._entries` returns
FILE, LINK, FOLDER, OTHER = range(4)


class Place:
    """A folder below the top.

    Args:
        folder: its path.
        cursor: the beginning of the cursors of its entries: its path below the top, quoted.

    Attributes:
        prefix: the beginning of the paths of its entries.
    """

    def __init__(self, folder: str, cursor: str = "") -> None:
        self.folder, self.cursor = folder, cursor
        self.prefix = folder if folder.endswith(os.sep) else folder + os.sep


class Folder:
    """The images below a folder, in the order of their names.

    Links to folders are not followed. The service's own data below the folder is left out.

    Args:
        signed: whether items have signatures, for which each file is looked at.
    """

    def __init__(self, source: FolderSource, access: SourceAccess, *, signed: bool = False) -> None:
        self._source, self._access, self.notes = source, access, Notes()
        self._signed = signed

    def stream(self, after: str) -> Iterator[Listed]:
        top = self._top()
        stack = [self._entries(Place(top), _parts(after), at_top=True)]
        while stack:
            for entry in stack[-1]:
                if isinstance(entry, Listed):
                    yield entry
                else:
                    stack.append(entry)
                    break
            else:
                stack.pop()

    def count(self) -> int:
        """Count the images. Unlike `stream`, this does not sort them."""
        images, folders = 0, [self._top()]
        while folders:
            folder = folders.pop()
            with suppress(OSError, SourceRefused), self._scanned(folder) as entries:
                for name, kind in self._counted(entries, ()):
                    if kind == FOLDER:
                        folders.append(os.path.join(folder, os.fsdecode(name)))
                    elif kind != OTHER:
                        images += 1
        return images

    def nothing_found(self) -> str:
        suffixes = " ".join(sorted(SUFFIXES))
        return f"no images in {printable(self._source.path)} (looked for {suffixes})"

    def is_empty(self) -> bool:
        """Whether there is nothing in the folder. SourceError when it cannot be read."""
        top = self._top()
        try:
            with self._scanned(top) as entries:
                return next(entries, None) is None
        except (OSError, SourceRefused) as error:
            raise SourceError(_why_unread(top, error)) from error

    def is_file(self, path: str) -> bool:
        """Whether a path is a file that the job may see."""
        try:
            return os.path.isfile(self._access.require_real(self._access.require_path(path)))
        except (SourceRefused, ValueError):
            return False

    def file(self, path: str) -> Item:
        """The item of one image in the folder."""
        problem = self._problem(path) if os.path.islink(path) else None
        return self._item(path, os.path.basename(os.path.dirname(path)), problem)

    def _top(self) -> str:
        try:
            top = self._access.require_path(self._source.path)
            self._access.require_real(top)
        except SourceRefused as error:
            raise SourceError(error.detail) from error
        except ValueError as error:  # a NUL in the path
            raise SourceError(f"{printable(self._source.path)} cannot be read: {error}") from error
        return top

    def _entries(
        self,
        place: "Place",
        begin: tuple[bytes, ...],
        *,
        at_top: bool = False,
        was_listed: bool = False,
    ) -> "Iterator[Listed | Entries]":
        """The images in one folder, sorted by name, and in their place the entries of folders.

        Args:
            begin: the parts of the cursor below this folder.
            at_top: raise SourceError if the folder cannot be read, instead of listing a problem.
            was_listed: the problem of this folder is the item at the cursor.
        """
        try:
            with self._scanned(place.folder) as scanned:
                # The folder is read whole before the first entry comes out.
                entries = in_order(self._counted(scanned, begin, signed=self._signed))
                first = next(entries, None)
        except (OSError, SourceRefused) as error:
            if at_top:
                raise SourceError(_why_unread(place.folder, error)) from error
            if not was_listed and not isinstance(error, OwnData):
                self.notes.gap()
                above = os.path.basename(os.path.dirname(place.folder))
                item = self._item(place.folder, above, _why_unread("the folder", error))
                yield Listed(item, place.cursor.removesuffix("/"))
            return
        label = os.path.basename(place.folder)
        for name, number in chain([first] if first else [], entries):
            kind, signature = number & 3, number >> 2
            path = place.prefix + os.fsdecode(name)
            if kind == FOLDER:
                same = begin[:1] == (name,)
                rest = begin[1:] if same else ()
                below = Place(path, f"{place.cursor}{quote_from_bytes(name)}/")
                yield self._entries(below, rest, was_listed=same and not rest)
            elif kind == OTHER:
                self.notes.leave_out(ending_of(os.fsdecode(name)))
            else:
                problem = self._problem(path) if kind == LINK else None
                cursor = place.cursor + quote_from_bytes(name)
                yield Listed(self._item(path, label, problem), cursor, signature)

    @contextmanager
    def _scanned(self, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """The entries of a folder, unsorted. OSError or SourceRefused if it cannot be read."""
        descriptor = self._access.open_folder(folder)
        try:
            with os.scandir(descriptor) as entries:
                yield entries
        finally:
            os.close(descriptor)

    def _counted(
        self,
        entries: Iterable[os.DirEntry[str]],
        begin: tuple[bytes, ...],
        *,
        signed: bool = False,
    ) -> Iterator[Entry]:
        """(name, kind) of the files and folders after the cursor, without hidden ones.

        Args:
            signed: return 4 * signature + kind for files.
        """
        for entry in entries:
            name = os.fsencode(entry.name)
            if name.startswith(b".") or (begin and name < begin[0]):
                continue
            if entry.is_dir(follow_symlinks=False):
                if self._source.recursive:
                    yield name, FOLDER
            elif (name,) == begin:
                continue
            elif ending_of(entry.name) in SUFFIXES:
                kind = LINK if entry.is_symlink() else FILE
                yield name, (signatures.of_entry(entry) << 2) + kind if signed else kind
            else:
                yield name, OTHER

    def _problem(self, link: str) -> str | None:
        try:
            self._access.require_real_link(link)
        except SourceRefused as error:
            return f"the link {error.problem}"
        return None

    def _item(self, path: str, folder: str, problem: str | None) -> Item:
        problem, shown = problem or id_problem(path), printable(path)
        label = printable(folder) if self._source.label_from_folder else ""
        return Item(id=shown, uri=shown, read=f"file:{shown}", label=label, problem=problem)


def _why_unread(folder: str, error: OSError | SourceRefused) -> str:
    if isinstance(error, SourceRefused):
        return f"{printable(folder)} {error.problem}"
    if isinstance(error, NotADirectoryError):
        return f"{printable(folder)} is not a folder"
    return f"{printable(folder)} cannot be read: {reason_of(error)}"


def _parts(cursor: str) -> tuple[bytes, ...]:
    return tuple(unquote_to_bytes(cursor).split(os.fsencode(os.sep))) if cursor else ()
