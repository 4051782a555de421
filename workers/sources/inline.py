"""Sources whose items are part of the request: uploads and lists of URLs."""

from collections.abc import Iterator, Sequence
from typing import Any

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import UrlsSource
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import Storage


class Upload:
    """Files that were uploaded over HTTP into the blob store. The cursor is their number."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self._items, self.notes = items, Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        for number in range(int(after or 0), len(self._items)):
            yield Listed(Item.model_validate(self._items[number]), str(number + 1))

    def count(self) -> int:
        return len(self._items)

    def nothing_found(self) -> str:
        return "the upload was empty"


class Urls:
    """Images by URL, which is also the id. The cursor is the number of URLs."""

    def __init__(self, source: UrlsSource, storage: Storage) -> None:
        self._urls, self._storage, self.notes = source.urls, storage, Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        for number in range(int(after or 0), len(self._urls)):
            yield Listed(self._item(self._urls[number]), str(number + 1))

    def _item(self, url: str) -> Item:
        shown = printable(url)
        try:
            read, problem = self._storage.find(shown), id_problem(shown)
        except Unreadable as error:
            read, problem = "", str(error)
        return Item(id=shown, uri=shown, read=read, problem=problem)

    def count(self) -> int:
        return len(self._urls)

    def nothing_found(self) -> str:
        return "the list of URLs was empty"
