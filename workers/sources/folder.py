"""Images in a folder of the planner's machine."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipfleet.common.auth.source_access import OwnData, SourceAccess, SourceRefused
from clipfleet.common.errors import reason_of
from clipfleet.common.http.sources import FolderSource
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import Listed, SourceError
from clipfleet.workers.sources.scratch import Entry, in_order

FILE, LINK, FOLDER = range(3)


class Folder:
    """The images below a folder, in the order of their names.

    Links to folders are not followed. The service's own data below the folder is left out.
    """

    def __init__(self, source: FolderSource, access: SourceAccess) -> None:
        self._source, self._access = source, access

    def stream(self, after: str) -> Iterator[Listed]:
        top = self._top()
        begin = _parts(after)
        for path, problem in self._walk(top, begin):
            cursor = quote_from_bytes(os.fsencode(os.path.relpath(path, top)))
            yield Listed(self._item(path, problem), cursor)

    def count(self) -> int:
        return sum(1 for _ in self._walk(self._top(), ()))

    def nothing_found(self) -> str:
        suffixes = " ".join(sorted(SUFFIXES))
        return f"no images in {printable(self._source.path)} (looked for {suffixes})"

    def _top(self) -> str:
        try:
            top = self._access.require_path(self._source.path)
            self._access.require_real(top)
        except SourceRefused as error:
            raise SourceError(error.detail) from error
        except ValueError as error:  # a NUL in the path
            raise SourceError(f"{printable(self._source.path)} cannot be read: {error}") from error
        return top

    def _walk(self, top: str, begin: tuple[bytes, ...]) -> Iterator[tuple[str, str | None]]:
        """(path, problem) after `begin`, in the order of the paths' parts."""
        stack = [self._entries(top, begin, at_top=True)]
        depth_names: list[bytes] = []
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                if depth_names:
                    depth_names.pop()
                continue
            path, is_folder, problem = entry
            if not is_folder:
                yield path, problem
                continue
            depth_names.append(os.fsencode(os.path.basename(path)))
            same = begin[: len(depth_names)] == tuple(depth_names)
            rest = begin[len(depth_names) :] if same else ()
            stack.append(self._entries(path, rest, was_listed=same and not rest))

    def _entries(
        self,
        folder: str,
        begin: tuple[bytes, ...],
        *,
        at_top: bool = False,
        was_listed: bool = False,
    ) -> Iterator[tuple[str, bool, str | None]]:
        """(path, is a folder, problem) of the images and folders in one folder, sorted by name.

        Args:
            begin: the parts of the cursor below this folder.
            at_top: raise SourceError if the folder cannot be read, instead of listing a problem.
            was_listed: the problem of this folder is the item at the cursor.
        """
        try:
            descriptor = self._access.open_folder(folder)
            try:
                with os.scandir(descriptor) as scanned:
                    # The folder is read whole before the first entry comes out.
                    entries = in_order(self._counted(scanned, begin))
                    first = next(entries, None)
            finally:
                os.close(descriptor)
        except (OSError, SourceRefused) as error:
            if at_top:
                raise SourceError(_why_unread(folder, error)) from error
            if not was_listed and not isinstance(error, OwnData):
                yield folder, False, _why_unread("the folder", error)
            return
        for name, kind in chain([first] if first else [], entries):
            path = os.path.join(folder, os.fsdecode(name))
            yield path, kind == FOLDER, self._problem(path) if kind == LINK else None

    def _counted(
        self, entries: Iterable[os.DirEntry[str]], begin: tuple[bytes, ...]
    ) -> Iterator[Entry]:
        """(name, kind) of the images and folders after the cursor."""
        for entry in entries:
            name = os.fsencode(entry.name)
            if name.startswith(b".") or (begin and name < begin[0]):
                continue
            if entry.is_dir(follow_symlinks=False):
                if self._source.recursive:
                    yield name, FOLDER
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and (name,) != begin:
                yield name, LINK if entry.is_symlink() else FILE

    def _problem(self, link: str) -> str | None:
        try:
            self._access.require_real(link)
        except SourceRefused as error:
            return f"the link {error.problem}"
        return None

    def _item(self, path: str, problem: str | None) -> Item:
        problem = problem or id_problem(path)
        shown = printable(path)
        folder = os.path.basename(os.path.dirname(path))
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
