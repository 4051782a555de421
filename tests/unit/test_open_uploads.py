"""Uploads in several requests: each step may be repeated, belongs to its caller, and ends."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clipfleet.common.errors import Unavailable
from clipfleet.testing import MemoryService
from clipfleet.workers.planner.housekeeper import DAY_S, Housekeeper
from clipfleet.workers.sources.inline import UploadInParts
from support.gateway_harness import World

UPLOADS = "/v1/collections/acme/uploads"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, blobs=str(tmp_path / "blobs"))


def opened(world: World, key: str = "write", **body: Any) -> str:
    answer = world.ask(f"POST {UPLOADS}", key, json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{UPLOADS}/{answer.json()['id']}"
    return str(answer.json()["id"])


def sent(
    world: World, upload: str, files: dict[str, bytes], key: str = "write", **form: str
) -> httpx.Response:
    parts = [("files", (name, data, "image/png")) for name, data in files.items()]
    return world.ask(f"POST {UPLOADS}/{upload}/images", key, files=parts, data=form)


def started(world: World, upload: str, key: str = "write", **body: Any) -> httpx.Response:
    return world.ask(f"POST {UPLOADS}/{upload}/job", key, json=body)


def files_of(folder: Path, upload: str) -> int:
    return sum(path.is_file() for path in (folder / "blobs" / "uploads" / upload).rglob("*"))


def test_what_is_sent_twice_is_in_once(world: World, tmp_path: Path) -> None:
    upload = opened(world)
    for _ in range(2):
        answer = sent(world, upload, {"a": b"1", "b": b"22"})
        assert (answer.json()["images"], answer.json()["bytes"]) == (2, 3)
    assert files_of(tmp_path, upload) == 3  # with the list of its items
    assert sent(world, upload, {"b": b"22", "c": b"3"}).json()["images"] == 3
    known = world.ask(f"POST {UPLOADS}/{upload}/known", "write", json={"ids": ["c", "d"]}).json()
    digest = hashlib.blake2b(b"3", digest_size=16).hexdigest()
    assert known == {"received": [digest, None], "stored": [None, None]}


def test_the_job_starts_once_and_the_upload_is_over(world: World) -> None:
    upload = opened(world, namespace="of mine", on_existing="replace", exif=True)
    sent(world, upload, {"a": b"1"}, label="x")
    body: Any = {"images": 1, "left_out": {".mov": 2, "": 1, "odd": 3}, "name": "~/Pictures"}
    first, again = started(world, upload, **body), started(world, upload, **body)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"] == upload
    new = world.parts.ledger.job(upload).new
    assert (new.namespace, new.on_existing, new.exif) == ("of mine", "replace", True)
    assert new.source["notes"] == {".mov": 2, ".": 1, ".*": 3}
    assert first.json()["source"] == "~/Pictures (uploaded)"
    for answer in (sent(world, upload, {"b": b"1"}), world.ask(f"GET {UPLOADS}/{upload}", "write")):
        assert answer.status_code == 404
        assert "has become a job" in answer.json()["detail"]
    assert world.parts.unfinished.older(-1, 10) == []


def test_a_job_does_not_start_without_images_that_were_lost(world: World) -> None:
    upload = opened(world)
    sent(world, upload, {"a": b"1"})
    refused = started(world, upload, images=2)
    assert refused.status_code == 409
    assert "has 1 images, not 2" in refused.json()["detail"]
    assert sent(world, upload, {"b": b"1"}).status_code == 200
    assert started(world, upload, images=2).status_code == 202


@pytest.mark.parametrize("key", ["admin", "acme-write"])
def test_an_upload_belongs_to_its_key_and_its_collection(world: World, key: str) -> None:
    upload = opened(world)
    assert sent(world, upload, {"a": b"1"}, key).status_code == 404
    assert started(world, upload, key).status_code == 404
    for call in ("GET ", "DELETE "):
        assert world.ask(f"{call}{UPLOADS}/{upload}", key).status_code == 404
    other = f"/v1/collections/other/uploads/{upload}"
    assert world.ask(f"GET {other}", "write").status_code == 404
    assert world.ask(f"POST {other}/known", "write", json={"ids": ["a"]}).status_code == 404
    started(world, upload)
    assert started(world, upload, key).status_code == 404  # also once it is a job


def test_an_upload_is_deleted_by_its_caller_or_after_a_day(world: World, tmp_path: Path) -> None:
    upload = opened(world, key="write")
    sent(world, upload, {"a": b"1"})
    assert world.ask(f"DELETE {UPLOADS}/{upload}", "write").status_code == 204
    assert files_of(tmp_path, upload) == 0
    abandoned = opened(world)
    sent(world, abandoned, {"a": b"1"})
    parts = world.parts
    parts.unfinished._clock = lambda: 1e12 + DAY_S  # type: ignore[attr-defined]
    Housekeeper("p", parts.ledger, parts.unfinished, parts.blobs, 0).tidy()
    assert files_of(tmp_path, abandoned) == 0
    assert world.ask(f"GET {UPLOADS}/{abandoned}", "write").status_code == 404


def test_files_stay_when_it_is_not_known_whether_they_were_added(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, unfinished = opened(world), world.parts.unfinished
    add = unfinished.add

    def add_and_lose_the_answer(*args: Any) -> None:
        add(*args)
        raise Unavailable("Redis has not answered in time")

    with monkeypatch.context() as faults:
        faults.setattr(unfinished, "add", add_and_lose_the_answer)
        assert sent(world, upload, {"a": b"1"}).status_code == 503
    assert sent(world, upload, {"a": b"1"}).json()["images"] == 1
    assert files_of(tmp_path, upload) == 2  # with the list of its items
    new = started(world, upload, images=1).json()
    source = UploadInParts({"images": 1}, world.parts.blobs, new["id"])
    (listed,) = source.stream("")
    with world.parts.blobs.open(listed.item.read.removeprefix("blob:")) as file:
        assert file.read() == b"1"


def test_files_go_when_the_upload_is_over_before_they_are_added(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, unfinished = opened(world), world.parts.unfinished
    add = unfinished.add

    def close_and_add(*args: Any) -> None:
        unfinished.close(upload)
        add(*args)

    monkeypatch.setattr(unfinished, "add", close_and_add)
    assert sent(world, upload, {"a": b"1"}).status_code == 404
    assert files_of(tmp_path, upload) == 0


@pytest.mark.parametrize(
    ("items", "status", "reason"),
    [
        ([{"id": "a", "problem": ""}], 422, "problem"),
        ([{"problem": "gone"}], 422, "needs an id"),
        ([{"id": "a", "content_hash": "zz"}], 422, "content_hash"),
        ([{"id": "a"}], 422, "1 items for 0 files"),
        ([], 422, "files: Field required"),
    ],
)
def test_a_part_that_is_wrong_adds_nothing(
    world: World, tmp_path: Path, items: list[Any], status: int, reason: str
) -> None:
    upload = opened(world)
    form = {"items": json.dumps(items)}
    parts = [("none", ("", b"", "text/plain"))]
    answer = world.ask(f"POST {UPLOADS}/{upload}/images", "write", files=parts, data=form)
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert files_of(tmp_path, upload) == 0
    assert world.ask(f"GET {UPLOADS}/{upload}", "write").json()["images"] == 0


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService() as service:
        yield service


def png(red: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (20, 20), (red, 1, 2)).save(target, "PNG")
    return target.getvalue()


def test_an_image_that_was_not_sent_must_still_be_as_it_was(
    service: MemoryService, tmp_path: Path
) -> None:
    for name in ("kept.png", "deleted.png"):
        (tmp_path / name).write_bytes(png(1))
    with service.client() as client, httpx.Client(base_url=service.url) as http:
        client.upload("mine", sorted(tmp_path.glob("*.png")), wait=True)
        upload = http.post("/v1/collections/mine/uploads", json={}).json()["id"]
        at, ids = f"/v1/collections/mine/uploads/{upload}", ["kept.png", "deleted.png"]
        stored = http.post(f"{at}/known", json={"ids": ids}).json()["stored"]
        items = [
            {"id": name, "content_hash": content_hash}
            for name, content_hash in zip(ids, stored, strict=True)
        ]
        items += [{"id": "unread.png", "problem": "the file cannot be read"}, {"id": "new.png"}]
        files = {"files": ("new", png(9))}
        http.post(f"{at}/images", data={"items": json.dumps(items)}, files=files)
        client.delete_image("mine", "deleted.png")
        http.post(f"{at}/job")
        job = client.wait(upload)
        assert (job.done, job.skipped, job.failed) == (1, 1, 2)
        reasons = {failure.id: failure.reason for failure in client.failures(job).failures}
    assert reasons.keys() == {"deleted.png", "unread.png"}
    assert "upload it again" in reasons["deleted.png"]
