"""Sources opened as the planner opens them, for the tests of each kind."""

import io
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from clipfleet.common.auth.source_access import OwnPlaces, SourceAccess
from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits, Settings
from clipfleet.workers.sources import Listed, Source, SourceError, open_source
from clipfleet.workers.storage.locations import Storage
from support.worker_harness import BUCKETS


class Web:
    """The web as these tests need it: pages by URL. `cuts`: how often a page breaks off halfway
    before it comes whole."""

    def __init__(self, pages: Mapping[str, bytes] | None = None, cuts: int = 0) -> None:
        self.pages, self.cuts = dict(pages or {}), cuts
        self.opened = 0

    def get(self, url: str, limit_bytes: int) -> bytes:
        return self._page(url)[: limit_bytes + 1]

    def refusal(self, url: str) -> str:  # noqa: ARG002
        return ""

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        self.opened += 1
        page = self._page(url)
        if not self.cuts:
            yield cast("BinaryIO", _Body(page, breaks=False))
            return
        self.cuts -= 1
        yield cast("BinaryIO", _Body(page[: len(page) // 2], breaks=True))

    def _page(self, url: str) -> bytes:
        if url not in self.pages:
            raise Unreadable("the server answered 404")
        return self.pages[url]


class _Body:
    def __init__(self, data: bytes, *, breaks: bool) -> None:
        self._data, self._breaks = io.BytesIO(data), breaks

    def read(self, size: int) -> bytes:
        data = self._data.read(size)
        if not data and self._breaks:
            raise Unreadable("the connection broke")
        return data


def storage_at(root: Path, web: Web | None = None, **limits: int) -> Storage:
    """A storage whose jobs may read what is below `root`."""
    settings = Settings(source_roots=(root,), limits=Limits(**limits))
    return Storage(settings, Blobs(f"file://{root}/.blobs"), web or Web(), BUCKETS)


def access_to(*roots: Path, buckets: tuple[str, ...] | None = None) -> SourceAccess:
    """To these folders and buckets, and to what lies below; None: to all buckets."""
    grant = SourceGrant(roots=tuple(map(str, roots)), buckets=buckets)
    return SourceAccess(grant, OwnPlaces())


def source(root: Path, raw: dict[str, Any], web: Web | None = None, **limits: int) -> Source:
    return open_source(raw, storage_at(root, web, **limits), "job")


def listed(source: Source, after: str = "") -> list[Listed]:
    return list(source.stream(after))


def items(source: Source) -> list[Item]:
    return [image.item for image in listed(source)]


def resumes_everywhere(source: Source) -> None:
    """From every cursor comes exactly the rest."""
    whole = listed(source)
    for n, image in enumerate(whole):
        assert listed(source, image.cursor) == whole[n + 1 :]


def memory_peak(source: Source) -> tuple[int, int]:
    """How many items a source lists, and the bytes of Python objects that this takes at once."""
    tracemalloc.start()
    try:
        return sum(1 for _ in source.stream("")), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def why_not(source: Source) -> str:
    with pytest.raises(SourceError) as caught:
        listed(source)
    return str(caught.value)


def until_broken(source: Source) -> tuple[list[Listed], str]:
    """What is listed before the source breaks off, and what it says then."""
    seen: list[Listed] = []
    try:
        for image in source.stream(""):
            seen.append(image)
    except SourceError as error:
        return seen, str(error)
    raise AssertionError("it did not break off")


def manifest(
    folder: Path, text: str | bytes, name: str = "m.jsonl", **more: dict[str, str]
) -> Source:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return source(folder, {"type": "manifest", "uri": str(path), **more})
