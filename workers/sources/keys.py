"""Some keys of a bucket or of a folder, as events name them. What is gone is removed.

Whether a key exists is looked up now, whatever the event said: events may be late, repeated, or in
another order. What a bucket or a folder itself says decides.
"""

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clipfleet.common.auth.source_access import SourceRefused
from clipfleet.common.errors import Unreadable, reason_of
from clipfleet.common.http.sources import BucketSource, FolderSource
from clipfleet.common.identity import printable
from clipfleet.common.ledger import GONE, Item
from clipfleet.workers.sources.base import Listed, SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.folder import Folder
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import Storage

THREADS = 16  # look-ups of one job at once
PAGE = 64  # keys that are looked up together
REMOVED = "keys that are gone from the source, whose images were removed"
KEPT = "keys that are gone from the source, whose images were kept"


class Keys:
    """Some keys of a source. The cursor is the number of keys that were listed.

    Args:
        keys: the keys.
        item: the item of a key.
        exists: whether there is such an object or file. It may raise Unreadable or Unavailable.
        require: raises SourceError when the source as a whole cannot be read, so that nothing is
            taken for gone.
        removes: whether images of keys that are gone are removed; otherwise they are left out.
    """

    def __init__(
        self,
        keys: list[str],
        item: Callable[[str], Item],
        exists: Callable[[str], bool],
        require: Callable[[], None],
        *,
        removes: bool = True,
    ) -> None:
        self._keys, self._item, self._exists = keys, item, exists
        self._require, self.notes, self._removes = require, Notes(), removes

    def stream(self, after: str) -> Iterator[Listed]:
        self._require()
        with ThreadPoolExecutor(THREADS, "keys") as threads:
            for start in range(int(after or 0), len(self._keys), PAGE):
                items = threads.map(self._look_up, self._keys[start : start + PAGE])
                for number, item in enumerate(items, start + 1):
                    if item.read == GONE:
                        self.notes.remark(REMOVED if self._removes else KEPT)
                        if not self._removes:
                            continue
                    yield Listed(item, str(number))

    def count(self) -> int:
        return len(self._keys)

    def nothing_found(self) -> str:
        return ""  # all of them are gone, and their images are kept

    def _look_up(self, key: str) -> Item:
        item = self._item(key)
        if item.problem:
            return item
        try:
            is_there = self._exists(key)
        except Unreadable as error:
            return item.model_copy(update={"problem": str(error)})
        return item if is_there else item.model_copy(update={"read": GONE})


def keys_of_bucket(
    source: BucketSource, keys: list[str], storage: Storage, *, removes: bool = True
) -> Keys:
    """Some objects of a bucket.

    Keys that are not below its prefix are left out: they were of another source of this name.
    """
    bucket = Bucket(source, storage)
    functions = (bucket.item_of_key, bucket.exists, bucket.require)
    return Keys([*filter(bucket.has, keys)], *functions, removes=removes)


def keys_of_folder(
    source: FolderSource, keys: list[str], storage: Storage, *, removes: bool = True
) -> Keys:
    """Some files of a folder, by their paths below it.

    A folder without any entry is not read: it may be one on which nothing is mounted now.
    """
    folder = Folder(source, storage.access)

    def path_of(key: str) -> str:
        return os.path.join(source.path, key)

    def item(key: str) -> Item:
        return folder.file(path_of(key))

    def exists(key: str) -> bool:
        if _is_below_link(source.path, key):
            raise Unreadable("it is below a link to a folder, and those are not followed")
        try:
            mode = os.stat(storage.access.require_real(path_of(key))).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except SourceRefused as error:
            raise Unreadable(f"the file {error.problem}") from error
        except OSError as error:
            raise Unreadable(f"the file cannot be looked up: {reason_of(error)}") from error
        return stat.S_ISREG(mode)

    def require() -> None:
        if folder.is_empty():
            raise SourceError(
                f"{printable(source.path)} is empty; nothing is removed because of events, since "
                "a disk may be missing"
            )

    return Keys(keys, item, exists, require, removes=removes)


def _is_below_link(folder: str, key: str) -> bool:
    """Whether a folder between the top and the file is a link: the listing has no such file."""
    above = os.path.dirname(key)
    while above and not os.path.islink(os.path.join(folder, above)):
        above = os.path.dirname(above)
    return bool(above)


def open_keys(source: BucketSource | FolderSource, raw: dict[str, Any], storage: Storage) -> Keys:
    """Open the keys of a source that the gateway stored."""
    keys, removes = [str(key) for key in raw["keys"]], bool(raw.get("removes", True))
    if isinstance(source, BucketSource):
        return keys_of_bucket(source, keys, storage, removes=removes)
    return keys_of_folder(source, keys, storage, removes=removes)
