"""Sources in a bucket, on a server that speaks S3."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import fsspec
import httpx
import pytest
from PIL import Image

from clipfleet import Job
from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable
from clipfleet.common.errors import Unavailable, Unreadable
from clipfleet.common.settings import Settings
from clipfleet.testing import MemoryService
from clipfleet.workers.sources import Source
from clipfleet.workers.sources import bucket as paging
from clipfleet.workers.storage.items import read_item
from support import services, stack
from support.archives import KINDS, packed
from support.chaos import many_photos
from support.images import encoded
from support.mirror_harness import picture
from support.s3 import S3, s3_server
from support.source_helpers import items, listed, resumes_everywhere, source, storage_at, why_not
from support.worker_harness import storage_of


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


def test_patterns_stand_for_objects_of_a_bucket(s3: S3, tmp_path: Path) -> None:
    photos = {"1.jpg": b"1", "2.jpg": b"2"}
    shards = {f"shards/{n:02}.tar": packed("a.tar", photos) for n in (0, 1, 10)}
    others = {
        "2024-a/1.jpg": b"1",
        "2024-b/deep/2.jpg": b"2",
        "2024-b/x.mov": b"x",
        "2023/3.jpg": b"3",
    }
    s3.fill("patterns", {**shards, **others, "shards/.hidden.tar": b"x"})

    def of(kind: str, uri: str) -> Source:
        return source(tmp_path, {"type": kind, "uri": f"s3://patterns/{uri}"})

    for uri in ("shards/*.tar", "**/*.tar", "shards/{00..01}.tar", "*/[01]*.tar"):
        listing = items(of("archive", uri))
        count = 2 if "{" in uri else 3
        assert len({item.id for item in listing}) == 2 * count
        assert not [item for item in listing if item.problem]
        resumes_everywhere(of("archive", uri))
    *listing, missing = items(of("archive", "shards/{00..02}.tar"))
    assert (len(listing), missing.id) == (4, "s3://patterns/shards/02.tar")
    names = [item.id for item in items(of("bucket", "2024-*"))]
    assert names == ["s3://patterns/2024-a/1.jpg", "s3://patterns/2024-b/deep/2.jpg"]
    resumes_everywhere(of("bucket", "2024-*"))
    resumes_everywhere(of("bucket", "**/*.jpg"))
    assert "no file matches s3://patterns/no/*.tar" in why_not(of("archive", "no/*.tar"))


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


def test_many_blobs_are_deleted_with_one_request(s3: S3) -> None:
    s3.fill("blobs", {"other": b"x"})
    blobs = Blobs("s3://blobs/clipfleet")
    keys = [f"thumbnails/{n:02x}/{n}" for n in range(30)]
    for key in keys:
        blobs.put(key, io.BytesIO(b"x"))
    seen = len(s3.requests())
    blobs.delete_all([*keys, *(f"no/such/{n}" for n in range(30))])
    assert s3.requests()[seen:] == ["POST /blobs?delete"]
    for key in keys:
        with pytest.raises(BlobGone):
            blobs.get(key, 1)
    assert fsspec.filesystem("s3").cat_file("blobs/other") == b"x"


def test_a_service_deletes_thumbnails_with_one_request_and_says_when_the_bucket_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    photos = many_photos(tmp_path / "photos", 20)
    with s3_server(tmp_path / "s3") as passing:
        passing.fill("blobs", {"other": b"x"})
        with MemoryService(blobs="s3://blobs/clipfleet") as service, service.client() as client:
            for name in ("first", "second"):
                stack.finished(client, client.index(name, photos).id)
            seen = len(passing.requests())
            deleted = httpx.post(f"{service.url}/v1/collections/first/delete", json={"all": True})
            assert deleted.json() == {"deleted": 20, "more": False}
            assert passing.requests()[seen:] == ["POST /blobs?delete"]
            passing.process.terminate()
            passing.process.wait()
            url = f"{service.url}/v1/collections/second/delete"
            refused = httpx.post(url, json={"all": True}, timeout=60)
            assert refused.status_code == 503
            assert "the blob store cannot be" in refused.json()["detail"]


def test_blobs_that_a_request_for_many_leaves_are_deleted_one_by_one(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.fill("blobs", {"other": b"x"})
    blobs, filesystem = Blobs("s3://blobs/clipfleet"), fsspec.filesystem("s3")
    keys = [f"left/{n}" for n in range(5)]

    def unknown(*_: Any, **__: Any) -> None:
        raise OSError("A header you provided implies functionality that is not implemented")

    def refusing(*_: Any, **__: Any) -> dict[str, Any]:
        return {"Errors": [{"Key": f"clipfleet/{key}", "Code": "SlowDown"} for key in keys]}

    for answer in (unknown, refusing):
        for key in keys:
            blobs.put(key, io.BytesIO(b"x"))
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "call_s3", answer)
            blobs.delete_all(keys)
        for key in keys:
            with pytest.raises(BlobGone):
                blobs.get(key, 1)


def test_a_blob_store_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_server(tmp_path / "s3") as passing:
        passing.fill("blobs", {"other": b"x"})
        blobs = Blobs("s3://blobs/clipfleet")
        blobs.put("key", io.BytesIO(b"x"))
        storage = storage_of(Settings(), blobs)
        assert read_item("blob:key", storage) == b"x"
        passing.process.terminate()
        passing.process.wait()
        calls: list[Callable[[], Any]] = [
            lambda: blobs.put("key", io.BytesIO(b"x")),
            lambda: blobs.get("key", 1),
            lambda: blobs.delete_all(["key", "other"]),
        ]
        for call in calls:
            with pytest.raises(BlobsUnavailable, match="the blob store cannot be"):
                call()
        with pytest.raises(BlobsUnavailable, match="the blob store cannot be read"):
            read_item("blob:key", storage)


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


def test_a_bucket_is_mirrored_and_unchanged_objects_are_not_fetched(s3: S3) -> None:
    images = {f"top/{n}.png": picture(n) for n in range(20)}
    s3.fill("mirrored", images)
    with MemoryService(blobs="s3://mirrored/clipfleet") as service, service.client() as client:

        def mirror(**options: Any) -> Job:
            return client.index("c", "s3://mirrored/top", mirror=options, wait=True)

        def fetched(since: int) -> list[str]:
            return [line for line in s3.requests()[since:] if line.startswith("GET /mirrored/top/")]

        assert mirror().done == 20
        s3.fill("mirrored", {"top/new.png": picture(100), "top/4.png": picture(101)})
        fsspec.filesystem("s3").rm_file("mirrored/top/3.png")
        seen = len(s3.requests())
        job = mirror()
        assert (job.done, job.skipped, job.replaced) == (2, 18, 1)
        assert {line.partition("?")[0] for line in fetched(seen)} == {
            "GET /mirrored/top/new.png", "GET /mirrored/top/4.png",
        }  # fmt: skip
        assert list(client.iter_missing(job)) == ["s3://mirrored/top/3.png"]
        ids = {image_id.removeprefix("s3://mirrored/") for image_id in client.iter_ids("c")}
        assert ids == {*images, "top/new.png"} - {"top/3.png"}
        seen = len(s3.requests())
        assert mirror().skipped == 20
        assert fetched(seen) == []
        client.delete_collection("c")
        assert service.parts.blobs.keys_below("snapshots") == []


def test_shards_have_the_objects_of_a_bucket(s3: S3, tmp_path: Path) -> None:
    pictures = {path.name: path.read_bytes() for path in many_photos(tmp_path, 3).iterdir()}
    s3.fill("exported", {f"top/{name}": data for name, data in pictures.items()})
    with MemoryService() as service, service.client() as client:
        assert client.index("photos", "s3://exported/top", wait=True).done == 3
        fsspec.filesystem("s3").rm(f"exported/top/{min(pictures)}")
        done = client.export_images("photos", tmp_path / "out", format="webdataset")
    assert (done.images, done.reasons) == (2, {"not there any more": 1})
    with tarfile.open(tmp_path / "out" / "photos-000000.tar") as tar:
        images = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
        assert {image.read() for image in images if image} == {
            data for name, data in pictures.items() if name != min(pictures)
        }


def a_photo(shade: int) -> bytes:
    return encoded(Image.new("RGB", (32, 24), (shade, 20 * shade, 0)), "PNG")


def s3_event(key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    described = {"bucket": {"name": "followed"}, "object": {"key": quote_plus(key)}}
    return {"eventName": name, "s3": described}


def test_a_bucket_is_followed_by_its_events(s3: S3) -> None:
    """Repeated, late and wrong events end in what the bucket has."""
    s3.fill("followed", {f"top/cats/a {n}+é.jpg": a_photo(n) for n in range(3)})
    fs = fsspec.filesystem("s3")
    fs.pipe_file("followed/other/x.jpg", a_photo(9))
    with MemoryService(source_buckets=["s3://followed"]) as service, service.client() as client:
        client.create_collection("photos")
        path = f"{service.url}/v1/collections/photos/sources/bucket"
        source = {"type": "bucket", "uri": "s3://followed/top", "label_from_folder": True}

        def send(*events: dict[str, Any]) -> Any:
            answer = httpx.post(f"{path}/events", json={"Records": events}, trust_env=False)
            assert answer.status_code == 202, answer.text
            return answer.json()

        def shown() -> Any:
            return httpx.get(path, trust_env=False).json()

        def settled() -> bool:
            state = shown()
            return bool(not state["running"] and not state["waiting_keys"])

        assert httpx.put(path, json={"source": source}, trust_env=False).status_code == 201
        client.run_source("photos", "bucket", wait=True)
        assert client.collection("photos").count == 3
        before = client.image("photos", "s3://followed/top/cats/a 1+é.jpg")

        fs.rm_file("followed/top/cats/a 0+é.jpg")
        fs.pipe_file("followed/top/new.jpg", a_photo(7))
        answer = send(
            s3_event("top/cats/a 0+é.jpg"),  # late: it was removed after that
            s3_event("top/new.jpg", "ObjectRemoved:Delete"),  # late: it was created after that
            s3_event("top/new.jpg"),
            s3_event("top/cats/a 1+é.jpg"),
            s3_event("other/x.jpg"),
            s3_event("top/never.jpg", "ObjectRemoved:Delete"),
        )
        assert (answer["accepted"], answer["ignored"]) == (5, 1)
        services.eventually(settled, 60, "the events")
        assert shown()["last_run"]["cause"] == "events"
        assert set(client.iter_ids("photos")) == {
            f"s3://followed/top/{name}" for name in ("cats/a 1+é.jpg", "cats/a 2+é.jpg", "new.jpg")
        }
        assert client.image("photos", "s3://followed/top/new.jpg").label == "top"
        unchanged = client.image("photos", "s3://followed/top/cats/a 1+é.jpg")
        assert unchanged.indexed_at == before.indexed_at
        job = client.job(shown()["last_run"]["job"])
        assert (job.state, job.done, job.skipped, job.failed) == ("succeeded", 1, 3, 0)
        assert sum(job.remarks.values()) == 2
        assert httpx.get(f"{path}x", trust_env=False).status_code == 404


def test_events_of_a_bucket_that_cannot_be_read_are_kept(s3: S3) -> None:
    s3.fill("closed", {"a.jpg": a_photo(1)})
    fs = fsspec.filesystem("s3")
    with MemoryService(source_buckets=["s3://closed"]) as service, service.client() as client:
        client.create_collection("photos")
        client.register_source("photos", "bucket", "s3://closed")
        client.run_source("photos", "bucket", wait=True)
        fs.rm("closed", recursive=True)
        client.notify_source("photos", "bucket", ["a.jpg", "b.jpg"])
        services.eventually(lambda: client.source("photos", "bucket").problem, 60, "the refusal")
        source = client.source("photos", "bucket")
        assert source.problem == (
            "its last job failed: s3://closed cannot be listed: there is no such bucket or object"
        )
        assert source.last_run
        assert (source.last_run.state, source.waiting_keys) == ("failed", 2)
        assert client.collection("photos").count == 1  # nothing was taken for gone
        s3.fill("closed", {"b.jpg": a_photo(2)})
        services.eventually(lambda: client.source("photos", "bucket").problem is None, 60, "it")
        assert list(client.iter_ids("photos")) == ["s3://closed/b.jpg"]
