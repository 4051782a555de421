"""The source of a retry: the failures of an earlier job, read page by page from the ledger."""

import os
from collections.abc import Iterator
from itertools import count
from typing import Any

from clipfleet.common.auth.source_access import SourceAccess, SourceRefused
from clipfleet.common.errors import NotFound
from clipfleet.common.http.sources import FolderSource
from clipfleet.common.identity import id_problem
from clipfleet.common.ledger import Failure, Item, Job, Ledger
from clipfleet.common.ledger.failure_parts import FailuresLost
from clipfleet.workers.sources import Folder, Listed, SourceError, parse_known_fields
from clipfleet.workers.sources.notes import Notes

PAGE = 500


class Retry:
    """The failures of an earlier job as a source.

    If the earlier job read a folder, paths that could not be listed then are listed again. Items of
    other sources that could not be listed fail again with the same reason.

    The cursor is the number of failures that were read and, within a folder that is listed again,
    that folder's own cursor.

    Args:
        source: `job` is the earlier job's id; `folder`, if present, its folder source.
    """

    def __init__(self, source: dict[str, Any], ledger: Ledger, access: SourceAccess) -> None:
        self._job_id, self._ledger, self._access = str(source["job"]), ledger, access
        self.notes = Notes()
        folder = source.get("folder")
        self._folder = parse_known_fields(FolderSource, folder) if folder else None

    def stream(self, after: str) -> Iterator[Listed]:
        begin, _, within = after.partition(":")
        for number, failure in self._failures(int(begin or 0)):
            item = failure.item()
            if self._folder and item.problem and os.path.isdir(_path(item)):
                yield from self._list_folder(_path(item), number, within)
            else:
                yield Listed(self._retried(item), str(number + 1))
            within = ""

    def count(self) -> int:
        return self._job().failed

    def nothing_found(self) -> str:
        return "there are no failures to retry"

    def _job(self) -> Job:
        try:
            return self._ledger.job(self._job_id)
        except NotFound as error:
            message = f"job {self._job_id}, whose failures are retried, was deleted"
            raise SourceError(message) from error

    def _failures(self, begin: int) -> Iterator[tuple[int, Failure]]:
        for offset in count(begin, PAGE):
            self._job()  # a deleted job would look like the end of its failures
            page = self._page(offset)
            yield from enumerate(page, offset)
            if len(page) < PAGE:
                return

    def _page(self, offset: int) -> list[Failure]:
        try:
            return self._ledger.failures(self._job_id, PAGE, offset)
        except FailuresLost as error:
            raise SourceError(error.detail) from error

    def _list_folder(self, path: str, number: int, within: str) -> Iterator[Listed]:
        assert self._folder is not None
        folder = Folder(self._folder.model_copy(update={"path": path}), self._access)
        folder.notes = self.notes
        try:
            for listed in folder.stream(within):
                yield Listed(listed.item, f"{number}:{listed.cursor}")
        except SourceError as error:  # this folder fails, not the whole job
            item = Item(id=path, uri=path, read=f"file:{path}", problem=str(error))
            yield Listed(item, str(number + 1))

    def _retried(self, item: Item) -> Item:
        path = _path(item)
        if not (self._folder and item.problem) or id_problem(item.id):
            return item
        try:
            readable = bool(path) and os.path.isfile(self._access.require_real(path))
        except SourceRefused:
            return item
        return item.model_copy(update={"problem": None}) if readable else item


def _path(item: Item) -> str:
    kind, _, path = item.read.partition(":")
    return path if kind == "file" else ""
