"""Buckets through fsspec, here with its file system in memory."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.errors import Unavailable, Unreadable
from clipfleet.common.http.sources import BucketSource
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.storage.items import read_item
from clipfleet.workers.storage.locations import bucket_errors
from support.source_helpers import items, resumes_everywhere, source, storage_at, why_not


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/b"):
        fs.rm("/b", recursive=True)


def fill(*keys: str) -> None:
    fs = fsspec.filesystem("memory")
    for key in keys:
        fs.pipe_file(f"/b/{key}", key.encode())


def bucket(top: str = "memory://b", *, label: bool = False) -> Bucket:
    request = BucketSource.model_construct(uri=top, label_from_folder=label)
    return Bucket(request, storage_at(Path("/nowhere")))


def keys(images: list[Item]) -> list[str]:
    return [item.id.removeprefix("memory://b/") for item in images]


def test_images_come_in_the_order_of_their_keys() -> None:
    fill("b/1.jpg", "b.jpg", "b-c/2.png", "a.gif", "notes.txt", ".git/x.jpg", "b/.x.jpg", "jpg")
    assert keys(items(bucket())) == ["a.gif", "b-c/2.png", "b.jpg", "b/1.jpg"]
    resumes_everywhere(bucket())
    assert bucket().count() == 4
    listing = bucket()
    items(listing)
    assert listing.notes.take() == {".txt": 1, ".": 1}


class Pages:
    """A bucket of S3 that answers with these pages, one after the other.

    moto returns no page without objects. Some stores do, after many deletions.
    """

    def __init__(self, *pages: dict[str, Any]) -> None:
        self._pages, self.begins = [*pages], list[dict[str, str]]()

    def call_s3(self, _: str, *, Bucket: str, Prefix: str, MaxKeys: int, **begin: str) -> Any:  # noqa: N803, ARG002
        self.begins.append(begin)
        return self._pages.pop(0)


def test_a_page_without_objects_is_not_the_end_of_a_listing() -> None:
    first, last = ({"Contents": [{"Key": name, "ETag": "e"}]} for name in ("a.jpg", "b.jpg"))
    empty = {"IsTruncated": True, "NextContinuationToken": "t"}
    pages = Pages({**first, "IsTruncated": True}, empty, {**last, "IsTruncated": False})
    assert [key for key, _ in bucket("s3://b")._pages(pages, "")] == ["a.jpg", "b.jpg"]
    assert pages.begins == [{"StartAfter": ""}, {"StartAfter": "a.jpg"}, {"ContinuationToken": "t"}]
    for broken in (Pages({"IsTruncated": True}), Pages(empty, empty)):
        with pytest.raises(Unreadable, match="its listing breaks off"):
            list(bucket("s3://b")._pages(broken, ""))


def test_a_prefix_is_a_folder() -> None:
    fill("photos/1.jpg", "photos2/2.jpg", "photos/deep/3.jpg")
    for top in ("memory://b/photos", "memory://b/photos/"):
        assert keys(items(bucket(top))) == ["photos/1.jpg", "photos/deep/3.jpg"]
        resumes_everywhere(bucket(top))


def test_an_item_is_read_by_its_url_and_labelled_by_its_folder() -> None:
    fill("cats/a b#c?.jpg")
    (item,) = items(bucket(label=True))
    assert (item.label, item.read) == ("cats", "fs:memory://b/cats/a b#c?.jpg")
    assert read_item(item.read, storage_at(Path("/nowhere"))) == b"cats/a b#c?.jpg"


def test_an_object_that_vanished_fails_alone() -> None:
    fill("a.jpg")
    (item,) = items(bucket())
    fsspec.filesystem("memory").rm("/b/a.jpg")
    with pytest.raises(Unreadable, match="no such bucket or object"):
        read_item(item.read, storage_at(Path("/nowhere")))


def test_no_more_is_read_than_the_limit() -> None:
    fsspec.filesystem("memory").pipe_file("/b/a.jpg", b"x" * 5_000)
    (item,) = items(bucket())
    assert len(read_item(item.read, storage_at(Path("/nowhere"), image_bytes=1_000))) == 1_001


def test_an_empty_bucket_says_what_was_looked_for() -> None:
    fill("notes.txt")
    assert items(bucket()) == []
    assert "no images below memory://b/" in bucket().nothing_found()
    assert "no such bucket" in why_not(bucket("memory://b/none"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.get_filesystem_class("memory")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    reason = why_not(source(Path("/nowhere"), {"type": "bucket", "uri": "gs://b/photos"}))
    assert "needs the package gcsfs" in reason
    assert "pip install 'clipfleet[gs]'" in reason


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ConnectionRefusedError(), Unavailable),
        (TimeoutError(), Unavailable),
        (OSError(16, "SlowDown: reduce your request rate"), Unavailable),
        (PermissionError("Access Denied"), Unreadable),
        (FileNotFoundError(), Unreadable),
        (ValueError("nonsense"), Unreadable),
    ],
)
def test_what_may_pass_is_waited_for_and_the_rest_is_not(error: Exception, ours: type) -> None:
    with pytest.raises(ours), bucket_errors():
        raise error


PART = st.sampled_from(["a", "a b", "A", "b%", "ä", "a-", "a.", "a.jpg"])
TREE = st.sets(st.lists(PART, min_size=1, max_size=3).map("/".join), max_size=10)


@effort(max_examples=60, deadline=None)
@given(TREE)
def test_from_every_cursor_comes_exactly_the_rest(tree: set[str]) -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    names = {f"{key}.png" for key in tree}
    fill("0.png", *names)
    listed_keys = keys(items(bucket()))
    assert listed_keys == sorted({"0.png", *names})
    resumes_everywhere(bucket())
