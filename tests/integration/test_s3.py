"""Sources in a bucket, on a server that speaks S3."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from clipfleet.common.errors import Unavailable, Unreadable
from clipfleet.workers.sources import Source
from clipfleet.workers.sources import bucket as paging
from clipfleet.workers.storage.items import read_item
from support.archives import KINDS, packed
from support.s3 import S3, s3_server
from support.source_helpers import items, listed, resumes_everywhere, source, storage_at, why_not


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def bucket(uri: str) -> Source:
    return source(Path("/nowhere"), {"type": "bucket", "uri": uri, "label_from_folder": True})


def test_a_bucket_is_listed_page_by_page_and_goes_on_at_any_key(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 3)
    names = ["a/1.jpg", "a/2.jpg", "a b/ü#?.png", "b.jpg", "c/d/e.gif", "c/notes.txt", "z.jpg"]
    s3.fill("photos", {f"top/{name}": name.encode() for name in names})
    s3.fill("photos", {"top2/other.jpg": b"x"})
    photos = bucket("s3://photos/top")
    listing = items(photos)
    assert [item.id.removeprefix("s3://photos/top/") for item in listing] == sorted(
        name for name in names if not name.endswith("txt")
    )
    assert [item.label for item in listing] == ["a b", "a", "a", "top", "d", "top"]
    assert read_item(listing[0].read, storage_at(Path("/nowhere"))) == "a b/ü#?.png".encode()
    resumes_everywhere(photos)
    assert photos.count() == 6


def test_a_bucket_that_is_not_there_says_so(s3: S3) -> None:
    assert s3.url
    assert "no such bucket" in why_not(bucket("s3://no-such-bucket-here/x"))
    uri = {"type": "manifest", "uri": "s3://no-such-bucket-here/x.csv"}
    assert "no such bucket" in why_not(source(Path("/nowhere"), uri))


def test_a_manifest_in_a_bucket_names_objects_beside_it(s3: S3, tmp_path: Path) -> None:
    s3.fill("manifests", {"d/m.csv": b"uri,year\na.jpg,1999\n../b.jpg,\n", "d/a.jpg": b"A"})
    manifest = source(tmp_path, {"type": "manifest", "uri": "s3://manifests/d/m.csv"})
    first, second = items(manifest)
    assert (first.uri, first.metadata) == ("s3://manifests/d/a.jpg", {"year": 1999})
    assert second.uri == "s3://manifests/b.jpg"
    assert read_item(first.read, storage_at(tmp_path)) == b"A"
    resumes_everywhere(manifest)


def test_an_object_without_bytes_is_an_empty_file(s3: S3, tmp_path: Path) -> None:
    s3.fill("empty", {"0.jpg": b"", "1.jpg": b"1", "m.csv": b"", "a.tar": b""})
    storage = storage_at(tmp_path)
    assert [read_item(item.read, storage) for item in items(bucket("s3://empty"))] == [b"", b"1"]
    assert storage.read_part("fs:s3://empty/1.jpg", 1, 10) == b""
    assert items(source(tmp_path, {"type": "manifest", "uri": "s3://empty/m.csv"})) == []
    with pytest.raises(Unreadable, match="no such"):
        storage.read("fs:s3://empty/2.jpg", 10)


def test_a_key_with_dots_as_parts_fails_by_name(s3: S3) -> None:
    s3.fill("dots", {"1.jpg": b"1"})
    fs = fsspec.filesystem("s3")
    for key in ("./x.jpg", "../x.jpg", "a/./y.jpg", "a/../z.jpg", ".hidden/x.jpg"):
        fs.call_s3("put_object", Bucket="dots", Key=key, Body=b"x")
    listing = items(bucket("s3://dots"))
    assert {item.id.removeprefix("s3://dots/"): item.problem for item in listing} == {
        "1.jpg": None,
        **dict.fromkeys(
            ("./x.jpg", "../x.jpg", "a/./y.jpg", "a/../z.jpg"), "it has a part . or .. in its key"
        ),
    }


def test_a_version_of_an_object_is_refused_in_words(s3: S3, tmp_path: Path) -> None:
    s3.fill("versions", {"m.jsonl": b'{"uri": "1.jpg?versionId=x"}\n', "1.jpg": b"1"})
    (item,) = items(source(tmp_path, {"type": "manifest", "uri": "s3://versions/m.jsonl"}))
    assert "?versionId=" in (item.problem or "")


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_in_a_bucket_is_read_where_it_lies(s3: S3, tmp_path: Path, name: str) -> None:
    photos = {f"{n}.jpg": bytes([n]) * 3_000 for n in range(5)}
    s3.fill("archives", {name: packed(name, photos)})
    archive = source(tmp_path, {"type": "archive", "uri": f"s3://archives/{name}"})
    listing = items(archive)
    assert listing[0].id == f"s3://archives/{name}#0.jpg"
    assert [read_item(item.read, storage_at(tmp_path)) for item in listing] == list(photos.values())
    resumes_everywhere(archive)


def test_a_server_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, pauses between them included
    with s3_server(tmp_path / "s3") as passing:
        passing.fill("photos", {"1.jpg": b"1"})
        photos = source(tmp_path, {"type": "bucket", "uri": "s3://photos"})
        (item,) = items(photos)
        passing.process.terminate()
        passing.process.wait()
        with pytest.raises(Unavailable, match="the bucket does not answer"):
            listed(photos)
        with pytest.raises(Unavailable, match="the bucket does not answer"):
            read_item(item.read, storage_at(tmp_path))
