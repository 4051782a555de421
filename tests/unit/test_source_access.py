"""What jobs may read: roots and buckets, but never the service's own data under any name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clipfleet.common.auth.source_access import (
    OwnData,
    OwnPlaces,
    SourceAccess,
    SourceRefused,
    access_of,
    grant_of_service,
)
from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.http.source_grants import BucketPlace, SourceGrant
from clipfleet.common.http.sources import BucketSource
from clipfleet.common.http.uris import BadUri
from clipfleet.common.settings import Settings
from clipfleet.workers.sources import SourceError, open_source
from clipfleet.workers.sources.bucket import Bucket
from clipfleet.workers.storage.locations import Storage
from support.containment import hindrance
from support.source_helpers import access_to, items
from support.worker_harness import storage_of


def read(access: SourceAccess, path: Path) -> bytes:
    with open(access.open_file(str(path)), "rb") as file:
        return file.read()


def refusal(do: Callable[[], Any]) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        do()
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file below it. Next to the root is a folder `outside` with another file."""
    folder = tmp_path / "root"
    for name in ("root/sub", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (folder / "sub" / "a.jpg").write_bytes(b"inside")
    (tmp_path / "outside" / "a.jpg").write_bytes(b"OUTSIDE")
    return folder


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("s3://b/prod", True),
        ("s3://b/prod/", True),
        ("s3://b/prod/x/1.jpg", True),
        ("S3://b/prod/1.jpg", True),
        ("s3://b/production/1.jpg", False),
        ("s3://b/PROD/1.jpg", False),
        ("s3://b", False),
        ("s3://b//prod/1.jpg", False),
        ("s3://b2/prod/1.jpg", False),
        ("gs://b/prod/1.jpg", False),
        ("gcs://g/1.jpg", True),
        ("abfs://c@account.dfs.core.windows.net/photos/1.jpg", True),
        ("az://c/other/1.jpg", False),
    ],
)
def test_a_bucket_is_allowed_part_by_part(url: str, allowed: bool) -> None:
    access = access_to(buckets=("s3://b/prod", "gs://g", "az://c/photos"))
    if allowed:
        assert access.require_bucket(url) == url
        return
    detail = refusal(lambda: access.require_bucket(url)).detail
    assert detail.startswith(repr(url))
    assert "(s3://b/prod, gs://g, az://c/photos); CLIPFLEET_SOURCE_BUCKETS lists them" in detail


@pytest.mark.parametrize(
    "url",
    [
        "s3://b/prod/../x.jpg",
        "s3://b/prod/./x.jpg",
        "s3://b/prod/%2e%2E/x.jpg",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/mine/x.jpg",
        "s3://s3://b/x.jpg",
        "s3://b%2Fprod/x.jpg",
        "s3:///x.jpg",
    ],
)
def test_a_bucket_is_named_in_one_way(url: str) -> None:
    with pytest.raises(BadUri):
        access_to(buckets=None).require_bucket(url)


@pytest.mark.parametrize(
    ("blobs", "source", "own"),
    [
        ("s3://clipfleet/prod", "s3://clipfleet/prod", True),
        ("s3://clipfleet/prod", "s3://clipfleet/prod/uploads/j/0", True),
        ("s3://clipfleet/prod", "s3://clipfleet//prod//uploads", True),
        ("s3://clipfleet/prod", "s3://clipfleet/production/1.jpg", False),
        ("s3://clipfleet/prod", "s3://clipfleet/pro", False),
        ("s3://clipfleet", "s3://clipfleet/anything", True),
        ("s3://clipfleet", "s3://clipfleet-2/anything", False),
        ("memory://clipfleet/prod", "memory://clipfleet/prod/thumbnails/x", True),
    ],
)
def test_the_blob_store_is_never_a_source(
    monkeypatch: pytest.MonkeyPatch, blobs: str, source: str, own: bool
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    access = access_of(Settings(), Blobs(blobs))
    for source_access in (access, access.within(SourceGrant(buckets=(blobs, source)))):
        if own:
            with pytest.raises(OwnData):
                source_access.require_bucket(source)
        else:
            assert source_access.require_bucket(source) == source
        assert source_access.is_own_object(source) == own


def test_blobs_behind_a_cache_are_the_same_blobs() -> None:
    assert Blobs("simplecache::memory://b/prod").url == "memory://b/prod"
    assert Blobs("file:///x/y").folder == Blobs("/x/y").folder == "/x/y"


@pytest.mark.parametrize(
    ("values", "buckets"),
    [
        ({}, None),
        ({"keys_file": "/k"}, ()),
        ({"open": True}, ()),
        ({"source_buckets": []}, ()),
        ({"source_buckets": ["s3://b"], "keys_file": "/k"}, ("s3://b",)),
    ],
)
def test_without_a_list_all_buckets_are_the_users_and_none_are_others(
    values: dict[str, Any], buckets: Any
) -> None:
    assert grant_of_service(Settings(**values)).buckets == buckets


@pytest.mark.parametrize("bad", ["b", "/data", "https://h/x", "s3://", "s3://b/../c"])
def test_a_list_of_buckets_has_buckets(bad: str) -> None:
    with pytest.raises(ValueError, match=r"bucket|\.\."):
        Settings(source_buckets=[bad])


def test_a_grant_is_less_than_the_service_has_and_the_refusal_names_it_alone(root: Path) -> None:
    other = root.parent / "outside"
    access = access_to(root, other, buckets=("s3://b", "s3://c"))
    mine = access.within(SourceGrant(roots=(str(root),), buckets=("s3://b/mine",)))
    assert read(mine, root / "sub" / "a.jpg") == b"inside"
    for detail in (
        refusal(lambda: mine.require_path(str(other))).detail,
        refusal(lambda: mine.require_bucket("s3://c/x")).detail,
    ):
        assert f"({root})" in detail or "(s3://b/mine)" in detail
        assert "of the API key" in detail
    assert "leads outside" in refusal(lambda: read(mine, other / "a.jpg")).detail
    too_much = access.within(SourceGrant(roots=("/",), buckets=("s3://a", "s3://b")))
    assert "is outside" in refusal(lambda: too_much.require_path("/etc")).detail
    assert "is outside" in refusal(lambda: too_much.require_bucket("s3://a/x")).detail
    assert too_much.require_bucket("s3://b/x")


def test_a_root_of_a_key_that_is_a_link_does_not_lead_out_of_the_service_s(root: Path) -> None:
    (root / "way").symlink_to(root.parent / "outside")
    mine = access_to(root).within(SourceGrant(roots=(str(root / "way"),)))
    assert "leads outside" in refusal(lambda: read(mine, root / "way" / "a.jpg")).detail


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (None, None, None),
        (None, ("/a",), ("/a",)),
        (("/a",), ("/a/b", "/c"), ("/a/b",)),
        (("/a/b", "/c/d"), ("/a", "/c/d"), ("/c/d", "/a/b")),
        (("/a",), ("/ab",), ()),
        ((), ("/a",), ()),
    ],
)
def test_what_two_grants_allow(first: Any, second: Any, both: Any) -> None:
    assert SourceGrant(roots=first).and_only(SourceGrant(roots=second)).roots == both
    urls = [
        None if a is None else tuple(f"s3:/{path}" for path in a) for a in (first, second, both)
    ]
    assert SourceGrant(buckets=urls[0]).and_only(SourceGrant(buckets=urls[1])).buckets == urls[2]


def swapped(monkeypatch: pytest.MonkeyPatch, path: Path, target: Path) -> None:
    """Replace `path` with a link to `target` after it is checked and right before it is opened."""
    real = os.open

    def swap(opened: Any, *args: Any, **kwargs: Any) -> int:
        monkeypatch.setattr(os, "open", real)
        path.rename(path.with_name("gone"))
        path.symlink_to(target)
        return real(opened, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)


def test_a_file_that_is_swapped_for_a_link_in_time_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "sub" / "a.jpg"
    where = storage_of(Settings(source_roots=(root,)))
    swapped(monkeypatch, file, root.parent / "outside" / "a.jpg")
    with pytest.raises(Unreadable):
        where.read(f"file:{file}", 100)
    assert file.is_symlink()


def test_a_folder_that_is_swapped_for_a_link_in_time_is_neither_read_nor_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is a folder in the path, and opening the file follows it."""
    file = root / "sub" / "deep" / "a.jpg"
    file.parent.mkdir()
    file.write_bytes(b"inside")
    (root.parent / "outside" / "deep").mkdir()
    (root.parent / "outside" / "deep" / "a.jpg").write_bytes(b"OUTSIDE")
    where = storage_of(Settings(source_roots=(root,)))
    with monkeypatch.context() as patch:
        swapped(patch, root / "sub", root.parent / "outside")
        with pytest.raises(Unreadable, match="leads outside the folders"):
            where.read(f"file:{file}", 100)
    (root / "sub").unlink()
    (root / "gone").rename(root / "sub")
    with monkeypatch.context() as patch:
        swapped(patch, root / "sub", root.parent / "outside")
        folder_source = open_source({"type": "folder", "path": str(file.parent)}, where, "job")
        with pytest.raises(SourceError, match="leads outside the folders"):
            list(folder_source.stream(""))


def test_no_descriptor_is_left_open_by_a_refusal(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    swapped(monkeypatch, root / "sub", root.parent / "outside")
    access = access_to(root)
    refusal(lambda: access.open_file(str(root / "sub" / "a.jpg")))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def own(root: Path) -> Path:
    """A blob store with one thumbnail, below the root."""
    store = root / "clipfleet-data" / "blobs"
    (store / "thumbnails").mkdir(parents=True)
    (store / "thumbnails" / "t.jpg").write_bytes(b"their thumbnail")
    return store


def test_the_blob_store_below_a_root_is_left_out(root: Path, own: Path) -> None:
    where = storage_of(Settings(source_roots=(root,)), Blobs(str(own)))
    folder_source = open_source({"type": "folder", "path": str(root)}, where, "job")
    assert [item.id for item in items(folder_source)] == [str(root / "sub" / "a.jpg")]
    assert folder_source.count() == 1
    for inside in (own, own / "thumbnails"):
        inner = open_source({"type": "folder", "path": str(inside)}, where, "job")
        with pytest.raises(SourceError, match="belongs to the service"):
            list(inner.stream(""))


def test_the_blob_store_has_no_second_name(root: Path, own: Path) -> None:
    thumbnail = own / "thumbnails" / "t.jpg"
    (root / "link.jpg").symlink_to(thumbnail)
    (root / "link").symlink_to(own)
    where = storage_of(Settings(source_roots=(root, Path("/"))), Blobs(str(root / "link")))
    for path in (
        thumbnail,
        root / "link.jpg",
        root / "link" / "thumbnails" / "t.jpg",
        root / "sub" / ".." / "clipfleet-data" / "blobs" / "thumbnails" / "t.jpg",
        Path(f"/proc/self/root{thumbnail}"),
        Path(f"/proc/{os.getpid()}/cwd/{os.path.relpath(thumbnail)}"),
    ):
        with pytest.raises(Unreadable, match="belongs to the service"):
            where.read(f"file:{path}", 100)
    folder_source = open_source({"type": "folder", "path": str(root)}, where, "job")
    problems = {os.path.basename(item.id): item.problem for item in items(folder_source)}
    assert problems.keys() == {"a.jpg", "link.jpg"}
    assert "belongs to the service" in str(problems["link.jpg"])


def test_what_the_kernel_shows_of_processes_is_no_source() -> None:
    where = storage_of(Settings(source_roots=(Path("/"),)))
    for path in ("/proc/self/environ", "/proc/self/cmdline", "/dev/fd/../environ", "/sys/kernel"):
        with pytest.raises(Unreadable, match="belongs to the service"):
            where.read(f"file:{path}", 100)


def test_the_keys_file_and_private_folders_are_no_source(root: Path) -> None:
    keys, private = root / "keys.json", root / "private"
    private.mkdir()
    for file in (keys, private / "a.jpg"):
        file.write_text("{}")
    settings = Settings(source_roots=(root,), keys_file=str(keys), private_paths=(private,))
    where = storage_of(settings)
    for file in (keys, private / "a.jpg"):
        with pytest.raises(Unreadable, match="belongs to the service"):
            where.read(f"file:{file}", 100)
        with pytest.raises(Unreadable, match="belongs to the service"):
            where.find(str(file))


MOUNTED = """
import sys
from pathlib import Path
from clipfleet.common.auth.source_access import OwnData, OwnPlaces, SourceAccess
from clipfleet.common.http.source_grants import SourceGrant

root, own = sys.argv[1:]
access = SourceAccess(SourceGrant(roots=(root,)), OwnPlaces(paths=(own,)))
for path in (f"{root}/sub", f"{root}/sub/thumbnails"):
    try:
        access.open_folder(path)
    except OwnData:
        continue
    raise SystemExit(f"{path} was opened")
assert Path(root, "sub", "thumbnails", "t.jpg").read_bytes() == b"their thumbnail"
"""


def test_a_mount_of_the_blob_store_is_no_source(root: Path, own: Path, tmp_path: Path) -> None:
    if why := hindrance(tmp_path):
        pytest.skip(why)
    program = [sys.executable, "-c", MOUNTED, str(root), str(own)]
    script = f'mount --bind "{own}" "{root}/sub" && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    subprocess.run([*command, *program], check=True)


def test_the_blob_store_in_a_bucket_is_left_out_of_its_listing() -> None:
    fs = fsspec.filesystem("memory")
    for key in ("prod/uploads/j/0.jpg", "prod/thumbnails/t.jpg", "production/a.jpg", "b.jpg"):
        fs.pipe_file(f"/shared/{key}", b"x")
    try:
        where = storage_of(Settings(), Blobs("memory://shared/prod"))
        bucket_source = bucket("memory://shared", where)
        assert [item.id for item in items(bucket_source)] == [
            "memory://shared/b.jpg", "memory://shared/production/a.jpg",
        ]  # fmt: skip
        assert bucket_source.count() == 2
        with pytest.raises(Unreadable, match="belongs to the service"):
            where.read("fs:memory://shared/prod/uploads/j/0.jpg", 100)
        inside = bucket("memory://shared/prod", where)
        with pytest.raises(SourceError, match="belongs to the service"):
            list(inside.stream(""))
    finally:
        fs.rm("/shared", recursive=True)


def bucket(uri: str, where: Storage) -> Bucket:
    """A bucket source of `memory://`, which requests cannot name."""
    return Bucket(BucketSource.model_construct(uri=uri, label_from_folder=False), where)


def test_places_of_one_store_are_one() -> None:
    assert BucketPlace.of("gs://b/x") == BucketPlace.of("GCS://b/x/")
    assert BucketPlace.of("az://c/x") == BucketPlace.of("abfs://c@account.dfs.core.windows.net/x")
    assert OwnPlaces().bucket is None
