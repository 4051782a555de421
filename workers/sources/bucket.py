"""Images below a prefix of a bucket, in the order of their keys."""

from collections.abc import Iterator
from typing import Any

from clipfleet.common.errors import Unreadable
from clipfleet.common.http import uris
from clipfleet.common.http.sources import BucketSource
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.workers.sources import signatures
from clipfleet.workers.sources.base import Listed, SourceError, ending_of
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import BadLocation, Storage, bucket_errors

PAGE = 1_000


class Bucket:
    """The images below a prefix of a bucket. The cursor is the last key.

    S3 is listed page by page from the cursor. Other file systems of fsspec are listed one folder at
    a time, so a single folder has to fit into memory. The service's own blobs below the prefix are
    left out.
    """

    def __init__(self, source: BucketSource, storage: Storage) -> None:
        self._source, self._storage, self.notes = source, storage, Notes()
        self._scheme, _, path = source.uri.partition("://")
        self._bucket, _, prefix = path.partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def stream(self, after: str) -> Iterator[Listed]:
        try:
            for key, signature in self._objects(after):
                if _is_image(key):
                    yield Listed(self._item(key), key, signature)
                else:
                    self.notes.leave_out(ending_of(key.rpartition("/")[2]))
        except BadLocation as error:
            raise SourceError(str(error)) from error
        except Unreadable as error:
            raise SourceError(f"{printable(self._source.uri)} cannot be listed: {error}") from error

    def urls(self, after: str = "") -> Iterator[str]:
        """The addresses of all objects below the prefix, from this one on, without hidden ones.

        Raises:
            SourceError: they cannot be listed.
        """
        first = after.removeprefix(self._url(""))
        if first:
            yield after
        try:
            yield from map(self._url, self._keys(first))
        except Unreadable as error:
            raise SourceError(f"{printable(self._source.uri)} cannot be listed: {error}") from error

    def item(self, url: str) -> Item:
        """The item of an object."""
        return self._item(url.removeprefix(self._url("")))

    def item_of_key(self, key: str) -> Item:
        """The item of an object, by its key in the bucket."""
        return self._item(key)

    def has(self, key: str) -> bool:
        """Whether a key is below the prefix."""
        return key.startswith(self._prefix)

    def exists(self, key: str) -> bool:
        """Whether there is an object with this key. Unreadable when that cannot be known."""
        fs = self._storage.bucket(self._source.uri)
        with bucket_errors():
            try:
                entry = fs.info(f"{self._bucket}/{key}")
            except FileNotFoundError:
                return False
        return bool(entry["type"] != "directory")

    def require(self) -> None:
        """Raise SourceError when the bucket cannot be listed."""
        try:
            next(iter(self._keys("")), None)
        except Unreadable as error:
            raise SourceError(f"{printable(self._source.uri)} cannot be listed: {error}") from error

    def count(self) -> int:
        return sum(map(_is_image, self._keys("")))

    def nothing_found(self) -> str:
        suffixes = " ".join(sorted(SUFFIXES))
        return f"no images below {printable(self._source.uri)}/ (looked for {suffixes})"

    def _keys(self, after: str) -> Iterator[str]:
        return (key for key, _ in self._objects(after))

    def _objects(self, after: str) -> Iterator[tuple[str, int]]:
        """(key, signature) of objects below the prefix, without hidden and the service's own."""
        fs = self._storage.bucket(self._source.uri)
        s3 = uris.scheme(self._source.uri) == "s3"
        objects = self._pages(fs, after) if s3 else self._walk(fs, self._prefix, after)
        return (
            (key, signature)
            for key, signature in objects
            if not _is_hidden(key.removeprefix(self._prefix))
            and not self._storage.access.is_own_object(self._url(key))
        )

    def _pages(self, fs: Any, after: str) -> Iterator[tuple[str, int]]:
        begin = {"StartAfter": after}
        while True:
            with bucket_errors():
                page = fs.call_s3(
                    "list_objects_v2",
                    Bucket=self._bucket,
                    Prefix=self._prefix,
                    MaxKeys=PAGE,
                    **begin,
                )
            entries = page.get("Contents", ())
            for entry in entries:
                yield entry["Key"], signatures.of_object(entry)
            if not page.get("IsTruncated"):
                return
            before, token = begin, page.get("NextContinuationToken")
            if entries:
                begin = {"StartAfter": entries[-1]["Key"]}
            elif token:  # some stores return pages without objects
                begin = {"ContinuationToken": token}
            if begin == before:
                raise Unreadable("its listing breaks off")

    def _walk(self, fs: Any, folder: str, after: str) -> Iterator[tuple[str, int]]:
        """Keys in their order, for which folder names are sorted with their slash."""
        with bucket_errors():
            entries = fs.ls(f"{self._bucket}/{folder}", detail=True)
        named = {self._name(entry, folder): entry for entry in entries}
        for name in sorted(named):
            if name.endswith("/"):
                if name > after or after.startswith(name):
                    yield from self._walk(fs, name, after)
            elif name > after:
                yield name, signatures.of_object(named[name])

    def _name(self, entry: dict[str, Any], folder: str) -> str:
        last = str(entry["name"]).rstrip("/").rpartition("/")[2]
        return f"{folder}{last}/" if entry["type"] == "directory" else f"{folder}{last}"

    def _url(self, key: str) -> str:
        return f"{self._scheme}://{self._bucket}/{key}"

    def _item(self, key: str) -> Item:
        url = printable(self._url(key))
        folder = key.rpartition("/")[0].rpartition("/")[2]
        label = printable(folder) if self._source.label_from_folder else ""
        problem = id_problem(url) or _key_problem(url)
        return Item(id=url, uri=url, read=f"fs:{url}", label=label, problem=problem)


def _key_problem(url: str) -> str | None:
    """Why an object cannot be read because of its key; None when it can."""
    try:
        uris.require_bucket(url)
    except uris.BadUri as error:
        return f"it {error.problem}"
    return None


def _is_image(key: str) -> bool:
    return ending_of(key.rpartition("/")[2]) in SUFFIXES


def _is_hidden(key: str) -> bool:
    """Whether a key below the prefix is hidden, or names no object but a folder."""
    parts = key.split("/")
    return key.endswith("/") or any(
        part.startswith(".") and part not in (".", "..") for part in parts
    )
