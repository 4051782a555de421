"""Some keys of a bucket or a folder, as events name them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import BucketSource
from clipfleet.common.ledger import GONE
from clipfleet.workers.sources import is_local, open_source
from clipfleet.workers.sources.base import SourceError
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.sources.keys import KEPT, PAGE, REMOVED, Keys, keys_of_bucket
from support.source_helpers import items, resumes_everywhere, storage_at, why_not


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/b"):
        fs.rm("/b", recursive=True)


def of_bucket(*keys: str, uri: str = "memory://b/top") -> Any:
    request = BucketSource.model_construct(uri=uri, label_from_folder=True)
    return keys_of_bucket(request, [*keys], storage_at(Path("/nowhere")))


def of_folder(folder: Path, *keys: str) -> Any:
    of = {"type": "folder", "path": str(folder), "label_from_folder": True}
    return open_source({"type": "keys", "of": of, "keys": [*keys]}, storage_at(folder), "j")


def test_keys_of_a_bucket_are_as_its_listing_has_them_or_gone(memory: Any) -> None:
    memory.pipe_file("/b/top/cats/a b.jpg", b"x")
    source = of_bucket("top/cats/a b.jpg", "top/gone.jpg", "top/cats")
    there, gone, folder = items(source)
    assert (there.id, there.label) == ("memory://b/top/cats/a b.jpg", "cats")
    assert there.read == "fs:memory://b/top/cats/a b.jpg"
    assert (gone.id, gone.uri, gone.read) == (*["memory://b/top/gone.jpg"] * 2, GONE)
    assert folder.read == GONE
    assert source.notes.take() == {REMOVED: 2}
    resumes_everywhere(of_bucket("top/cats/a b.jpg", *(f"top/{n}.jpg" for n in range(PAGE + 5))))


def test_keys_of_a_source_that_had_the_name_before_are_left_out(memory: Any) -> None:
    for name in ("top/a.jpg", "topmost/b.jpg", "c.jpg"):
        memory.pipe_file(f"/b/{name}", b"x")
    below = items(of_bucket("c.jpg", "top/a.jpg", "topmost/b.jpg", "topmost/gone.jpg"))
    assert [item.id for item in below] == ["memory://b/top/a.jpg"]


def test_what_is_gone_may_be_kept(memory: Any) -> None:
    memory.pipe_file("/b/top/b.jpg", b"x")
    of = BucketSource.model_construct(uri="memory://b/top", label_from_folder=True)
    keys = ["top/a.jpg", "top/b.jpg", "top/c.jpg"]
    source = keys_of_bucket(of, keys, storage_at(Path("/nowhere")), removes=False)
    assert [item.id for item in items(source)] == ["memory://b/top/b.jpg"]
    assert source.notes.take() == {KEPT: 2}


def test_nothing_is_gone_from_a_bucket_that_cannot_be_listed(memory: Any) -> None:
    assert "no such bucket" in why_not(of_bucket("none/a.jpg", uri="memory://none/top"))
    memory.pipe_file("/b/top/a.jpg", b"x")

    def denied(_: str) -> bool:
        raise Unreadable("the bucket denies access")

    request = BucketSource.model_construct(uri="memory://b/top", label_from_folder=False)
    listing = Bucket(request, storage_at(Path("/nowhere")))
    source = Keys(["top/a.jpg"], listing.item_of_key, denied, listing.require)
    (item,) = items(source)
    assert item.problem == "the bucket denies access"


def test_keys_of_a_folder_are_as_its_listing_has_them_or_gone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    (photos / "cats" / "a.jpg").write_bytes(b"x")
    (photos / "link.jpg").symlink_to("/etc/passwd")
    (photos / "folder.jpg").mkdir()
    source = of_folder(
        photos, "cats/a.jpg", "cats/gone.jpg", "no/b.jpg", "cats/a.jpg/c.jpg", "folder.jpg",
        "link.jpg",
    )  # fmt: skip
    there, *gone, link = items(source)
    assert (there.id, there.label) == (str(photos / "cats" / "a.jpg"), "cats")
    assert there.read == f"file:{photos / 'cats' / 'a.jpg'}"
    assert [item.read for item in gone] == [GONE] * 4
    assert link.problem
    assert "outside the folders that may be indexed" in link.problem
    resumes_everywhere(of_folder(photos, "cats/a.jpg", "cats/gone.jpg"))


def test_files_below_a_link_to_a_folder_are_neither_indexed_nor_gone(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    there, *linked = items(of_folder(tmp_path, "real/deep/a.jpg", "link/deep/a.jpg", "link/b.jpg"))
    assert there.read == f"file:{tmp_path / 'real' / 'deep' / 'a.jpg'}"
    for item in linked:
        assert item.read != GONE
        assert item.problem
        assert "below a link to a folder" in item.problem


def test_nothing_is_gone_from_a_folder_that_is_empty_or_missing(tmp_path: Path) -> None:
    assert "cannot be read" in why_not(of_folder(tmp_path / "missing", "a.jpg"))
    (tmp_path / "empty").mkdir()
    assert "since a disk may be missing" in why_not(of_folder(tmp_path / "empty", "a.jpg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_file_in_a_folder_that_may_not_be_read_is_not_gone(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    (item,) = items(of_folder(tmp_path, "locked/a.jpg"))
    assert item.problem
    assert "Permission denied" in item.problem


def test_only_buckets_and_folders_have_keys(tmp_path: Path) -> None:
    of = {"type": "urls", "urls": ["https://example.com/a.jpg"]}
    with pytest.raises(SourceError, match="no keys of a source of type 'urls'"):
        open_source({"type": "keys", "of": of, "keys": []}, storage_at(tmp_path), "j")


def test_whether_keys_are_local() -> None:
    assert is_local({"type": "keys", "of": {"type": "folder", "path": "/p"}})
    assert not is_local({"type": "keys", "of": {"type": "bucket", "uri": "s3://b"}})
