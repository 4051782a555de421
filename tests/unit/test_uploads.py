"""Uploads are written to the blob store as they arrive, a limited number at once, and an upload
that breaks off leaves no files."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.jobs.upload_form import WRITE_BYTES
from clipfleet.common.blobs import Blobs, BlobsUnavailable, BlobWriter
from clipfleet.common.settings import Limits
from support.asgi import Exchange, speak, spoken
from support.gateway_harness import World

UPLOAD = "POST /v1/collections/acme/images"
FORM = {"content_type": "multipart/form-data; boundary=x", "transfer_encoding": "chunked"}
END = b"--x--\r\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


def new_world(folder: Path, blobs: Callable[[str], Blobs] = Blobs, **limits: Any) -> World:
    url = str(folder / "blobs")
    return World(folder, {"blobs": blobs(url)}, blobs=url, limits=Limits(**limits))


def file(name: str, data: bytes = b"bytes") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n"


def field(name: str, text: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()


def upload(world: World, *parts: bytes, key: str = "write", **headers: str) -> Exchange:
    return spoken(world.app, UPLOAD, parts, key, **{**FORM, **headers})


def stored(folder: Path) -> list[int]:
    """The sizes of all files in the blob store."""
    files = sorted((folder / "blobs").glob("uploads/*/*"), key=lambda path: int(path.name))
    return [path.stat().st_size for path in files]


def nothing_is_left(world: World, folder: Path) -> None:
    assert list((folder / "blobs").rglob("uploads/*")) == []
    assert world.parts.unfinished.older(-1, 10) == []


def items(world: World, seen: Exchange) -> list[dict[str, Any]]:
    assert seen.status == 202, seen.content
    whole = world.parts.ledger.whole(seen.headers["location"].rpartition("/")[2])
    stored_items: list[dict[str, Any]] = whole.source["items"]
    return stored_items


def test_an_upload_becomes_a_job(world: World, tmp_path: Path) -> None:
    parts = (file("a.jpg"), field("label", "cat"), file("b.jpg", b"\r\n--y"), field("other", "y"))
    seen = upload(world, *parts, field("namespace", "of mine"), END)
    first, second = items(world, seen)
    assert [first["id"], second["id"]] == ["a.jpg", "b.jpg"]
    assert first["label"] == second["label"] == "cat"  # wherever in the form it is
    job = world.parts.ledger.job(seen.headers["location"].rpartition("/")[2])
    assert job.new.namespace == "of mine"
    assert stored(tmp_path) == [5, 5]
    assert Blobs(str(tmp_path / "blobs")).get(second["read"].removeprefix("blob:"), 9) == b"\r\n--y"
    assert world.parts.unfinished.older(-1, 10) == []


def test_files_are_stored_as_they_come_in(world: World, tmp_path: Path) -> None:
    """The gateway holds at most one piece in memory."""
    sizes: list[list[int]] = []
    data, piece = bytes(1_000_000), bytes(50_000)

    async def parts() -> AsyncIterator[bytes]:
        yield file("a.jpg", data)
        yield file("b.jpg", data)[: -len(data) - 2]
        for _ in range(20):
            sizes.append(stored(tmp_path))
            yield piece
        yield b"\r\n" + END

    assert len(items(world, spoken(world.app, UPLOAD, parts(), "write", **FORM))) == 2
    sent = [n * len(piece) for n in range(20)]
    for seen, had in zip(sizes[1:], sent[1:], strict=True):
        assert seen[0] == len(data)
        assert had - WRITE_BYTES - 2 * len(piece) < seen[1] <= had


@pytest.mark.parametrize(
    ("parts", "status", "reason"),
    [
        ([file("a.jpg"), file("a.jpg")], 422, "two files"),
        ([file("a.jpg"), file("")], 422, "cannot be used as an id"),
        ([file("a.jpg"), field("namespace", "\0")], 422, "namespace"),
        ([file("a.jpg"), field("on_existing", "maybe")], 422, "on_existing"),
        ([file("a.jpg"), field("exif", "maybe")], 422, "exif"),
        ([file("a.jpg"), field("label", "x" * 20_000)], 413, "label"),
        ([file("a.jpg"), file("b.jpg"), file("c.jpg")], 413, "CLIPFLEET_LIMITS__UPLOAD_FILES"),
        ([file("a.jpg"), field("files", "text")], 422, "files"),
        ([file("a.jpg"), b"--x\r\nno form\r\n\r\n"], 400, "form"),
        ([field("label", "x")], 422, "files"),
        ([file("a.jpg"), *[field("other", "x")] * 101], 413, "fields"),
        ([field("items", "[{}]"), file("a.jpg"), file("b.jpg")], 422, "1 items, and more files"),
        ([field("items", "[{}, {}]"), file("a.jpg")], 422, "2 items for 1 files"),
        ([field("items", "[{}, {}, {}]"), file("a.jpg")], 413, "CLIPFLEET_LIMITS__UPLOAD_FILES"),
        ([field("items", '[{"lable": "x"}]'), file("a.jpg")], 422, "did you mean 'label'"),
        ([field("items", '[{"label": 3}]'), file("a.jpg")], 422, "items.0.label"),
        ([field("items", "{"), file("a.jpg")], 422, "not a JSON list"),
        ([file("a.jpg"), field("items", "[{}]")], 422, "before the files"),
        ([field("items", '[{"metadata": {"width": 1}}]'), file("a")], 422, "file 'a': metadata"),
        ([field("items", '[{"id": "a"}, {"id": "a"}]'), file("a"), file("b")], 422, "the id 'a'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_stays(
    tmp_path: Path, parts: list[bytes], status: int, reason: str
) -> None:
    world = new_world(tmp_path, upload_files=2)
    seen = upload(world, *parts, END)
    assert seen.status == status, seen.content
    assert reason in seen.problem["detail"]
    nothing_is_left(world, tmp_path)


def test_an_upload_may_ask_for_the_fields_of_exif(world: World) -> None:
    for parts, exif in ([], False), ([field("exif", "true")], True):
        seen = upload(world, file("a.jpg"), *parts, END)
        job = world.parts.ledger.whole(seen.headers["location"].rpartition("/")[2])
        assert job.exif is exif


def test_a_job_may_ask_for_the_fields_of_exif(world: World) -> None:
    source = {"type": "urls", "urls": ["https://example.org/a.jpg"]}
    for more, exif in ({}, False), ({"exif": True}, True):
        seen = world.ask("POST /v1/collections/acme/jobs", "write", json={"source": source, **more})
        assert seen.status_code == 202, seen.text
        assert world.parts.ledger.whole(seen.json()["id"]).exif is exif


def test_a_form_without_its_end_is_no_upload(world: World, tmp_path: Path) -> None:
    seen = upload(world, file("a.jpg"), file("b.jpg")[:-9])
    assert seen.status == 400
    assert "last boundary" in seen.problem["detail"]
    nothing_is_left(world, tmp_path)


def test_what_is_wrong_is_said_before_the_rest_is_read(world: World) -> None:
    rest = [bytes(100_000)] * 50
    seen = upload(world, file("a.jpg"), file("a.jpg")[:-7], *rest)
    assert seen.status == 422
    assert seen.read < 1_000


def test_no_upload_without_a_form(world: World) -> None:
    for kind in ("application/json", "multipart/mixed; boundary=x", "text/plain"):
        assert upload(world, b"{}", content_type=kind).status == 422
    assert upload(world, b"{}", content_type="multipart/form-data").status == 400


def test_a_client_that_hangs_up_leaves_nothing(world: World, tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield file("a.jpg")
        yield file("b.jpg", bytes(1_000_000))[:-9]
        assert len(stored(tmp_path)) == 2
        raise ConnectionResetError

    spoken(world.app, UPLOAD, parts(), "write", **FORM)
    nothing_is_left(world, tmp_path)


def test_an_upload_that_stalls_leaves_nothing(tmp_path: Path) -> None:
    world = new_world(tmp_path, body_s=0.1)

    async def parts() -> AsyncIterator[bytes]:
        yield file("a.jpg") + file("b.jpg", bytes(1_000_000))[:500]
        await asyncio.Event().wait()

    seen = spoken(world.app, UPLOAD, parts(), "write", **FORM)
    assert seen.status == 408
    nothing_is_left(world, tmp_path)


def test_an_upload_that_takes_too_long_leaves_nothing(tmp_path: Path) -> None:
    world = new_world(tmp_path, upload_s=0.2)

    async def parts() -> AsyncIterator[bytes]:
        yield file("a.jpg", bytes(100_000))[:-9]
        while True:
            await asyncio.sleep(0.001)
            yield b"x"

    seen = spoken(world.app, UPLOAD, parts(), "write", **FORM)
    assert seen.status == 408
    assert "CLIPFLEET_LIMITS__UPLOAD_S" in seen.problem["detail"]
    nothing_is_left(world, tmp_path)


class Full(Blobs):
    """A disk with room for one file."""

    def create(self, key: str) -> BlobWriter:
        if key.endswith("/1"):
            raise BlobsUnavailable("the blob store cannot be written: No space left on device")
        return super().create(key)


def test_a_full_store_is_said_and_the_first_files_go(tmp_path: Path) -> None:
    world = new_world(tmp_path, Full)
    seen = upload(world, file("a.jpg"), file("b.jpg"), END)
    assert seen.status == 503
    assert "No space left" in seen.problem["detail"]
    assert stored(tmp_path) == []
    assert len(world.parts.unfinished.older(-1, 10)) == 1  # a thread might write still


def test_a_file_over_the_limit_fails_alone_and_is_not_kept(tmp_path: Path) -> None:
    world = new_world(tmp_path, image_bytes=1_000)
    seen = upload(world, file("a.jpg", bytes(1_001)), file("b.jpg", bytes(1_000)), END)
    first, second = items(world, seen)
    assert first["problem"] == "the file has 1001 bytes; the limit is 1000"
    assert not second["problem"]
    assert stored(tmp_path) == [1_000]


def test_the_same_upload_under_the_same_key_is_stored_once(world: World, tmp_path: Path) -> None:
    parts = (file("a.jpg"), file("b.jpg"), END)
    first, again = (upload(world, *parts, idempotency_key="k") for _ in range(2))
    assert first.headers["location"] == again.headers["location"]
    assert len(stored(tmp_path)) == 2
    for other in (
        (file("b.jpg"), file("a.jpg"), END),
        (file("a.jpg"), file("b.jpg", b"other"), END),
        (file("a.jpg"), file("b.jpg"), field("label", "x"), END),
        (file("a.jpg"), file("b.jpg"), field("namespace", "x"), END),
    ):
        assert upload(world, *other, idempotency_key="k").status == 409
    assert len(stored(tmp_path)) == 2


def open_files(folder: Path) -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(link.readlink()).startswith(str(folder))
    return count


def test_of_many_unfinished_uploads_few_are_taken(tmp_path: Path) -> None:
    """The first key takes half of the slots, and the next key half of the others."""
    world = new_world(tmp_path, uploads=8)

    async def unfinished() -> AsyncIterator[bytes]:
        yield file("a.jpg", bytes(WRITE_BYTES))
        yield file("b.jpg", bytes(WRITE_BYTES + 100_000))[:-9]
        await asyncio.Event().wait()

    async def scene() -> None:
        keys = ["write"] * 100 + ["acme-write"] * 100
        tasks = [asyncio.create_task(speak(world.app, UPLOAD, unfinished(), key, **FORM))
                 for key in keys]  # fmt: skip
        while len(stored(tmp_path)) < 12 or sum(task.done() for task in tasks) < 194:
            await asyncio.sleep(0.01)
        assert open_files(tmp_path) <= 6
        answers = [task.result() for task in tasks if task.done()]
        assert {answer.status for answer in answers} == {429}
        for answer in answers:
            assert "CLIPFLEET_LIMITS__UPLOADS" in answer.problem["detail"]
            assert int(answer.headers["retry-after"]) > 0
            assert answer.read == 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert open_files(tmp_path) == 0
        again = await speak(world.app, UPLOAD, [file("a.jpg"), END], "write", **FORM)
        assert again.status == 202

    asyncio.run(scene())
    assert len(stored(tmp_path)) == 1


def test_a_form_says_what_each_file_is(world: World) -> None:
    details = '[{"id": "x/1.jpg", "label": "cat", "metadata": {"year": 1}}, {}, {"id": "y/1.jpg"}]'
    parts = (field("items", details), field("label", "all"), file("1.jpg"), file("2.jpg"))
    first, second, third = items(world, upload(world, *parts, file("1.jpg"), END, key="write"))
    assert [item["id"] for item in (first, second, third)] == ["x/1.jpg", "2.jpg", "y/1.jpg"]
    assert [item["label"] for item in (first, second, third)] == ["cat", "all", "all"]
    assert first["metadata"] == {"year": 1}


def test_an_idempotency_key_covers_what_the_form_says_of_files(world: World) -> None:
    parts = (field("items", '[{"label": "cat"}]'), file("1.jpg"), END)
    first = upload(world, *parts, idempotency_key="k")
    again = upload(world, *parts, idempotency_key="k")
    assert first.headers["location"] == again.headers["location"]
    other = upload(world, field("items", "[{}]"), file("1.jpg"), END, idempotency_key="k")
    assert other.status == 409
