"""Sources whose items are part of the request: uploads and lists of URLs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipfleet.common.blobs import BlobGone, Blobs, using_blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import UrlsSource
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.ledger import Item
from clipfleet.common.ledger.uploads import part_of, parts_of
from clipfleet.workers.sources.base import Listed, SourceError, ending_of
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


class Single:
    """One image, or one file that is none.

    Args:
        name: the path or address.
        item: its item; None for a file that is no image.
    """

    def __init__(self, name: str, item: Item | None) -> None:
        self._name, self._item, self.notes = name, item, Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        if self._item is None:
            self.notes.leave_out(ending_of(self._name.rpartition("/")[2]))
        elif not after:
            yield Listed(self._item, "1")

    def count(self) -> int:
        return 1

    def nothing_found(self) -> str:
        return f"{printable(self._name)} is no image"


class UploadInParts:
    """Files that were uploaded in several requests.

    The blob store has a list of the parts, and the items of each part. The cursor is the number of
    a part and the number of items of it.

    Args:
        source: the source as the gateway stored it.
        blobs: the blob store.
        job_id: the job, which has the id of the upload.
    """

    def __init__(self, source: Mapping[str, Any], blobs: Blobs, job_id: str) -> None:
        self._source, self._blobs, self._job_id = source, blobs, job_id
        self.notes = Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        if not after:
            self.notes.add(self._source.get("notes", {}))
        first, _, begin = after.partition(":")
        skip = int(begin or 0)
        parts: list[str] = self._read(parts_of(self._job_id))
        last_parts = self._last_parts(parts) if self._source.get("resent") else {}
        for number in range(int(first or 0), len(parts)):
            items = self._read(part_of(self._job_id, parts[number]))
            for row in range(skip, len(items)):
                if last_parts.get(items[row]["id"], number) == number:
                    item = Item.model_validate(items[row])
                    yield Listed(item, f"{number}:{row + 1}")
            skip = 0

    def _last_parts(self, parts: Sequence[str]) -> dict[str, int]:
        """The number of the last part that has each id: a later file takes the place of others."""
        return {
            item["id"]: number
            for number, part in enumerate(parts)
            for item in self._read(part_of(self._job_id, part))
        }

    def _read(self, key: str) -> Any:
        try:
            with using_blobs("read"), self._blobs.open(key) as file:
                return json.loads(file.read())
        except BlobGone as error:
            raise SourceError("the blob store has lost the list of the uploaded files") from error

    def count(self) -> int:
        return int(self._source["images"])

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
