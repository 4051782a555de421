"""Original files of images in a bucket, and in archives there."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

import fsspec
import httpx
import pytest

from clipfleet.testing import MemoryService
from support.images import encoded, halves
from support.s3 import S3, s3_server

PICTURE = encoded(halves(120, 80), "PNG")
LARGE = encoded(halves(700, 500), "BMP")
KEYS: dict[str, dict[str, Any]] = {"all": {}, "none": {"buckets": []}}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def service(s3: S3) -> Iterator[MemoryService]:
    s3.fill("pets", {"a/cat #1.png": PICTURE, "a/large.bmp": LARGE, "all.tar": tar()})
    s3.fill("pets", {"all.zip": zipped()})
    with MemoryService(api_keys=KEYS, source_buckets=["s3://pets"]) as running:
        yield running


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in (("in/cat.png", PICTURE), ("large.bmp", LARGE)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def zipped() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/cat.png", PICTURE)
        archive.writestr("large.bmp", LARGE)
    return target.getvalue()


def get(service: MemoryService, image_id: str, key: str = "all", **headers: str) -> httpx.Response:
    return httpx.get(
        f"{service.url}/v1/collections/pets/images/original",
        params={"id": image_id},
        headers={"Authorization": f"Bearer {key}", **headers},
        trust_env=False,
    )


def test_objects_and_members_are_returned_in_whole_and_in_parts(service: MemoryService) -> None:
    with service.client("all") as client:
        for source in ("s3://pets/a/", "s3://pets/all.tar", "s3://pets/all.zip"):
            client.index("pets", source, wait=True)
        ids = set(client.iter_ids("pets"))
    expected = {"s3://pets/a/cat #1.png": PICTURE, "s3://pets/a/large.bmp": LARGE}
    for archive in ("all.tar", "all.zip"):
        expected |= {f"s3://pets/{archive}#in/cat.png": PICTURE}
        expected |= {f"s3://pets/{archive}#large.bmp": LARGE}
    assert ids == set(expected)
    for image_id, data in expected.items():
        answer = get(service, image_id)
        assert (answer.status_code, answer.content) == (200, data), image_id
        part = get(service, image_id, Range="bytes=100-1299")
        assert (part.status_code, part.content) == (206, data[100:1_300]), image_id
        same = get(service, image_id, **{"If-None-Match": answer.headers["etag"]})
        assert same.status_code == 304, image_id
        assert get(service, image_id, "none").status_code == 403, image_id


def test_an_object_that_is_gone_or_replaced(service: MemoryService) -> None:
    image_id = "s3://pets/a/large.bmp"
    with service.client("all") as client:
        client.index("pets", "s3://pets/a/", wait=True)
    before = get(service, image_id).headers["etag"]
    fs = fsspec.filesystem("s3")
    other = encoded(halves(700, 500).rotate(180), "BMP")
    fs.pipe_file("pets/a/large.bmp", other)
    answer = get(service, image_id, **{"If-None-Match": before})
    assert (answer.status_code, answer.content) == (200, other)
    fs.pipe_file("pets/a/large.bmp", b"<html>")
    assert get(service, image_id).status_code == 410
    fs.rm_file("pets/a/large.bmp")
    gone = get(service, image_id)
    assert (gone.status_code, gone.json()["detail"]) == (
        410, f"the object {image_id!r} is not there any more",
    )  # fmt: skip
