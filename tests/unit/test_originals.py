"""The original file of an image over HTTP: what is returned, how, and to whom."""

import io
import os
import re
import resource
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clipfleet.api.originals.archives import Archives
from clipfleet.common.errors import Unavailable
from clipfleet.testing import MemoryService
from support.images import encoded, halves
from support.in_process import InProcess
from support.webserver import body, site

KEYS: dict[str, dict[str, Any]] = {
    "admin-key": {"name": "admin"},
    "a-write": {"name": "aw", "scopes": ["write"], "collections": ["a"]},
    "a-read": {"name": "ar", "scopes": ["read"], "collections": ["a"]},
    "b-read": {"name": "br", "scopes": ["read"], "collections": ["b"]},
    "other-root": {"name": "or", "scopes": ["read"], "roots": []},
}


class Place:
    """A service with a folder that it may read."""

    def __init__(self, service: MemoryService, root: Path) -> None:
        self.service, self.root = service, root

    def index(self, collection: str, source: Any, **options: Any) -> list[str]:
        """Index a source as the key `admin-key`; return the ids."""
        with self.service.client("admin-key") as client:
            job = client.index(collection, source, wait=True, **options)
            assert job.state == "succeeded", job.error
            return list(client.iter_ids(collection))

    def get(
        self,
        collection: str,
        image_id: str,
        key: str = "admin-key",
        *,
        what: str = "original",
        method: str = "GET",
        headers: dict[str, str] | None = None,
        **params: Any,
    ) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.service.url}/v1/collections/{collection}/images/{what}",
            params={"id": image_id, **params},
            headers={"Authorization": f"Bearer {key}", **(headers or {})},
            trust_env=False,
        )

    def problem(self, *args: Any, **options: Any) -> tuple[int, str]:
        answer = self.get(*args, **options)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["detail"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("root").resolve()
    options: dict[str, Any] = {"fetch": {"allowed_networks": ["127.0.0.1/32"]}}
    own = {"name": "own", "scopes": ["write"], "roots": [str(root / "own")]}
    with MemoryService(api_keys={**KEYS, "own": own}, source_roots=[root], **options) as service:
        yield Place(service, root)


def picture(path: Path, kind: str = "JPEG", width: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(halves(width, width // 2), kind))
    return path


@pytest.fixture(scope="module")
def cat(place: Place) -> Path:
    """An indexed file."""
    path = picture(place.root / "cats" / "cat #1 é.jpg", width=3_000)
    place.index("a", path.parent)
    return path


@pytest.mark.parametrize(
    ("kind", "suffix", "media_type"),
    [
        ("JPEG", ".jpg", "image/jpeg"), ("PNG", ".png", "image/png"), ("GIF", ".gif", "image/gif"),
        ("WEBP", ".webp", "image/webp"), ("BMP", ".bmp", "image/bmp"),
        ("AVIF", ".avif", "image/avif"),
        ("TIFF", ".tif", "image/tiff"), ("HEIF", ".heic", "image/heic"),
        ("PNG", ".jpg", "image/png"),
    ],
)  # fmt: skip
def test_the_file_itself_is_returned_with_the_type_of_its_content(
    place: Place, kind: str, suffix: str, media_type: str
) -> None:
    folder = place.root / f"kind-{kind}-{suffix[1:]}"
    path = picture(folder / f"x{suffix}", kind)
    assert str(path) in place.index("kinds", folder)
    answer = place.get("kinds", str(path))
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["content-disposition"].startswith(f'inline; filename="x{suffix}"')
    assert answer.headers["content-length"] == str(path.stat().st_size)


def test_a_download_is_called_as_the_file(place: Place, cat: Path) -> None:
    header = place.get("a", str(cat), download=True).headers["content-disposition"]
    assert header == (
        "attachment; filename=\"cat #1 _.jpg\"; filename*=UTF-8''cat%20%231%20%C3%A9.jpg"
    )


@pytest.mark.parametrize(
    ("ranges", "begin", "end"),
    [("0-9", 0, 10), ("10-", 10, None), ("-7", -7, None), ("5-99999999", 5, None)],
)
def test_a_range_is_answered_with_that_part(
    place: Place, cat: Path, ranges: str, begin: int, end: int | None
) -> None:
    data = cat.read_bytes()
    answer = place.get("a", str(cat), headers={"Range": f"bytes={ranges}"})
    assert (answer.status_code, answer.content) == (206, data[begin:end])
    first = begin % len(data)
    last = first + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"


@pytest.mark.parametrize(
    "ranges", ["bytes=9-3", "lines=1-2", "bytes=0-1,4-5", "bytes=x", "bytes=-"]
)
def test_a_range_that_is_not_understood_is_ignored(place: Place, cat: Path, ranges: str) -> None:
    answer = place.get("a", str(cat), headers={"Range": ranges})
    assert (answer.status_code, answer.content) == (200, cat.read_bytes())


@pytest.mark.parametrize("ranges", ["bytes=99999999-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(place: Place, cat: Path, ranges: str) -> None:
    answer = place.get("a", str(cat), headers={"Range": ranges})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{cat.stat().st_size}"
    assert answer.json()["type"] == "urn:problem:clipfleet:range-not-satisfiable"


def test_what_a_client_has_is_not_sent_again(place: Place, cat: Path) -> None:
    seen = place.get("a", str(cat)).headers
    for known in (
        {"If-None-Match": seen["etag"]},
        {"If-None-Match": f'"x", W/{seen["etag"]}'},
        {"If-Modified-Since": seen["last-modified"]},
    ):
        answer = place.get("a", str(cat), headers=known)
        assert (answer.status_code, answer.content) == (304, b"")
    part = {"Range": "bytes=0-4"}
    for same in (seen["etag"], seen["last-modified"]):
        assert place.get("a", str(cat), headers={**part, "If-Range": same}).status_code == 206
    for other in ('"other"', "Thu, 01 Jan 1998 00:00:00 GMT", "nonsense"):
        assert place.get("a", str(cat), headers={**part, "If-Range": other}).status_code == 200
    old = {"If-Modified-Since": "Thu, 01 Jan 1998 00:00:00 GMT"}
    assert place.get("a", str(cat), headers=old).status_code == 200


def test_head_tells_the_same_without_the_bytes(place: Place, cat: Path) -> None:
    head, answer = place.get("a", str(cat), method="HEAD"), place.get("a", str(cat))
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "last-modified", "accept-ranges"):
        assert head.headers[name] == answer.headers[name]


def test_a_changed_file_has_another_tag(place: Place) -> None:
    path = picture(place.root / "changed" / "x.png", "PNG")
    place.index("changed", path.parent)
    before = place.get("changed", str(path)).headers["etag"]
    path.write_bytes(encoded(halves(80, 40), "PNG"))
    answer = place.get("changed", str(path), headers={"If-None-Match": before})
    assert (answer.status_code, answer.content) == (200, path.read_bytes())


def test_a_large_file_is_sent_in_pieces(place: Place) -> None:
    path = picture(place.root / "large" / "x.jpg")
    place.index("large", path.parent)
    size = 400_000_000
    with path.open("r+b") as file:
        file.truncate(size)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    url = f"{place.service.url}/v1/collections/large/images/original"
    headers = {"Authorization": "Bearer admin-key"}
    with httpx.stream(
        "GET", url, params={"id": str(path)}, headers=headers, trust_env=False, timeout=60
    ) as answer:
        assert sum(map(len, answer.iter_raw())) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
    assert place.get("large", str(path), headers={"Range": "bytes=-3"}).content == bytes(3)


def test_a_file_that_is_gone_or_no_image_any_more_is_named(place: Place) -> None:
    path = picture(place.root / "gone" / "x.jpg")
    place.index("gone", path.parent)
    for content in (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", b"<html>", b""):
        path.write_bytes(content)
        assert place.problem("gone", str(path)) == (410, f"the file '{path}' is no image any more")
    path.unlink()
    assert place.problem("gone", str(path)) == (410, f"the file '{path}' is not there any more")
    path.mkdir()
    assert place.problem("gone", str(path))[0] == 410
    path.rmdir()
    os.mkfifo(path)
    assert place.problem("gone", str(path))[0] == 410
    status, detail = place.problem("gone", "/nope.jpg")
    assert (status, detail) == (404, "there is no image '/nope.jpg' in the collection")


def test_a_link_that_leads_outside_since_is_not_followed(place: Place, tmp_path: Path) -> None:
    path = picture(place.root / "swapped" / "deep" / "x.jpg")
    place.index("swapped", path.parent)
    secret = picture(tmp_path / "deep" / "x.jpg")
    path.unlink()
    path.symlink_to(secret)
    assert place.problem("swapped", str(path))[0] == 403
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(secret.parent)  # the folder instead of the file
    assert place.problem("swapped", str(path))[0] == 403


def test_a_link_leads_no_further_than_the_key_of_the_job(place: Place) -> None:
    path, others = picture(place.root / "own" / "x.jpg"), picture(place.root / "others" / "y.jpg")
    with place.service.client("own") as client:
        job = client.index("linked", path.parent, wait=True)
    assert job.done == 1
    assert place.get("linked", str(path)).status_code == 200
    path.unlink()
    path.symlink_to(others)
    assert place.problem("linked", str(path))[0] == 403


def test_a_key_gets_originals_of_its_collections_and_roots_alone(place: Place, cat: Path) -> None:
    for key in ("a-read", "a-write"):
        assert place.get("a", str(cat), key).status_code == 200
    assert place.problem("a", str(cat), "b-read")[0] == 404
    assert place.problem("a", str(cat), "nobody")[0] == 401
    status, detail = place.problem("a", str(cat), "other-root")
    assert status == 403
    assert "outside the folders" in detail


def test_the_uri_of_a_vector_opens_no_file_for_a_key_that_only_reads(
    place: Place, cat: Path, tmp_path: Path
) -> None:
    outside = picture(tmp_path / "secret.jpg")
    with place.service.client("admin-key") as client:
        client.create_collection("b")
        uris = {
            "file": str(cat), "out": str(outside), "dots": f"{cat.parent}/../../{outside.name}",
            "job": "upload:0000/0", "kept": "blob:uploads/x/0", "own": "/proc/self/environ",
            "web": "https://example.org/x.jpg", "script": "javascript:alert(1)", "plain": "nothing",
        }  # fmt: skip
        vectors = [{"id": name, "values": [1.0] * 64, "uri": uri} for name, uri in uris.items()]
        client.upsert("b", vectors)
    for name in sorted(uris.keys() - {"web"}):
        status, detail = place.problem("b", name, "b-read")
        assert (status, "written as a vector" in detail) == (404, True), name
    statuses = {name: place.get("b", name).status_code for name in uris}
    assert statuses == {
        "file": 200, "out": 403, "dots": 403, "job": 410, "kept": 404, "own": 403, "web": 307,
        "script": 404, "plain": 404,
    }  # fmt: skip
    assert place.get("b", "web", "b-read").headers["location"] == "https://example.org/x.jpg"


def test_an_upload_is_kept_as_long_as_its_job(place: Place, tmp_path: Path) -> None:
    data = encoded(halves(50, 40), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    with place.service.client("admin-key") as client:
        job = client.upload("a", tmp_path / "x.png", ids=["evil.html"], wait=True)
        assert job.done == 1
        answer = place.get("a", "evil.html", "a-read")
        assert (answer.status_code, answer.content) == (200, data)
        assert 'filename="evil.html.png"' in answer.headers["content-disposition"]
        assert place.get("a", "evil.html", headers={"Range": "bytes=3-5"}).content == data[3:6]
        client.delete_job(job)
    status, detail = place.problem("a", "evil.html")
    assert (status, "uploaded file is not there any more" in detail) == (410, True)


def test_an_upload_in_several_requests_has_originals(place: Place, tmp_path: Path) -> None:
    data = picture(tmp_path / "sent" / "in" / "y.png", "PNG").read_bytes()
    (tmp_path / "sent" / "bad.png").write_bytes(b"no image")
    with place.service.client("admin-key") as client:
        job = client.upload_folder("folder", tmp_path / "sent", wait=True)
        assert (job.done, job.failed) == (1, 1)
        answer = place.get("folder", "in/y.png")
        assert (answer.status_code, answer.content) == (200, data)
        assert place.get("folder", "in/y.png", what="preview").status_code == 200
        client.delete_job(job)
    assert place.problem("folder", "in/y.png")[0] == 410


def test_the_uri_of_a_vector_opens_no_upload_into_another_collection(
    place: Place, tmp_path: Path
) -> None:
    path = picture(tmp_path / "mine.png", "PNG")
    with place.service.client("admin-key") as client:
        job = client.upload("a", path, wait=True)
        for name in ("a", "foreign"):
            if name not in {collection.name for collection in client.collections()}:
                client.create_collection(name)
            vector = {"id": "taken", "values": [1.0] * 64, "uri": f"upload:{job.id}/0"}
            client.upsert(name, [vector])
        assert place.get("a", "taken").content == path.read_bytes()
        status, detail = place.problem("foreign", "taken")
        assert (status, "does not belong to this collection" in detail) == (404, True)
        client.delete_image("a", "taken")


def archives(folder: Path, files: dict[str, bytes]) -> dict[str, Path]:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", method) as packed:
            for member, data in files.items():
                packed.writestr(member, data)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def packed(place: Place) -> dict[str, bytes]:
    """Files in archives, by their id."""
    long = f"{'deep/' * 30}ü#1.bmp"
    files = {
        "one/a.png": encoded(halves(60, 40), "PNG"), long: encoded(halves(900, 700), "BMP"),
        "notes.md": b"no image",
    }  # fmt: skip
    ids: dict[str, bytes] = {}
    for path in archives(place.root / "packed #", files).values():
        place.index("packed", path)
        ids |= {f"{path}#{name}": data for name, data in files.items() if name != "notes.md"}
    return ids


def test_members_of_archives_are_read_in_place(place: Place, packed: dict[str, bytes]) -> None:
    assert len(packed) == 6
    for image_id, data in packed.items():
        answer = place.get("packed", image_id)
        assert (answer.status_code, answer.content) == (200, data), image_id
        name = re.split("[/#]", image_id)[-1]
        assert answer.headers["content-type"] in ("image/png", "image/bmp"), name
        for begin, end in ((len(data) - 10, len(data)), (7, 300_000), (0, 1)):
            part = place.get("packed", image_id, headers={"Range": f"bytes={begin}-{end - 1}"})
            assert part.content == data[begin:end], image_id


def test_a_member_that_is_gone_is_named(place: Place) -> None:
    folder = place.root / "repacked"
    paths = archives(folder, {"a.png": encoded(halves(60, 40), "PNG")})
    place.index("repacked", paths["stored"])
    image_id = f"{paths['stored']}#a.png"
    assert place.get("repacked", image_id).status_code == 200
    with zipfile.ZipFile(paths["stored"], "w") as packed:
        packed.writestr("b.png", b"other")
    status, detail = place.problem("repacked", image_id)
    assert (status, detail) == (
        410, f"'a.png' is not in the archive '{paths['stored']}' any more",
    )  # fmt: skip
    paths["stored"].write_bytes(b"nothing that is an archive, but long enough" * 100)
    assert "damaged" in place.problem("repacked", image_id)[1]
    paths["stored"].unlink()
    assert place.problem("repacked", image_id)[0] == 410


def test_a_tar_that_is_packed_as_a_whole_says_what_to_do(place: Place) -> None:
    path = place.root / "whole.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        data = encoded(halves(60, 40), "PNG")
        info = tarfile.TarInfo("a.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    place.index("whole", path)
    status, detail = place.problem("whole", f"{path}#a.png")
    assert (status, "without compression or a zip" in detail) == (404, True)


def test_an_image_of_the_web_is_a_redirect_and_its_archive_a_copy(place: Place) -> None:
    data = encoded(halves(60, 40), "PNG")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("in.png", data)
    routes = {"/x.png": body(data), "/all.zip": body(buffer.getvalue())}
    with site(routes) as server:
        place.index("web", [f"{server.url}/x.png"])
        place.index("web", f"{server.url}/all.zip")
        answer = place.get("web", f"{server.url}/x.png", "other-root")
        assert (answer.status_code, answer.headers["location"]) == (307, f"{server.url}/x.png")
        with place.service.client("other-root") as client:
            assert client.original("web", f"{server.url}/x.png") == data
        assert "Authorization" not in server.seen[-1].headers
    assert place.get("web", f"{server.url}/all.zip#in.png").content == data  # the server is away
    assert place.problem("web", f"{server.url}/x.png", what="preview")[0] == 404


def test_archives_of_the_web_in_a_list_have_copies_of_their_own(place: Place) -> None:
    files = {f"/{n}.zip": encoded(halves(60, 40 + n), "PNG") for n in (1, 2)}
    routes = {}
    for path, data in files.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as zipped:
            zipped.writestr("in.png", data)
        routes[path] = body(buffer.getvalue())
    with site(routes) as server:
        place.index("web-list", [f"{server.url}/1.zip", f"{server.url}/2.zip"])
        place.index("web-braces", f"{server.url}/{{1..2}}.zip")
    for collection in ("web-list", "web-braces"):
        for path, data in files.items():
            answer = place.get(collection, f"{server.url}{path}#in.png")
            assert (answer.status_code, answer.content) == (200, data), answer.text


class AwayOnce:
    """An archive whose store is away for the third read."""

    tag, modified = "away", 0.0

    def __init__(self, data: bytes) -> None:
        self._data, self.size, self.reads = data, len(data), 0

    def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self.reads == 3:
            raise Unavailable("the bucket is away")
        return self._data[offset : offset + size]

    def close(self) -> None:
        """Nothing is open."""


def test_a_search_that_broke_off_begins_anew() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 200_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    listed, opened = AwayOnce(buffer.getvalue()), AwayOnce(buffer.getvalue())
    opened.reads = 3
    handed_out = iter((opened, listed, opened))
    known = Archives()
    with pytest.raises(Unavailable):
        known.member(lambda: next(handed_out), "b.png", "the archive")
    assert known.member(lambda: next(handed_out), "b.png", "the archive").size == 200_000


def test_a_preview_is_a_jpeg_of_a_thousand_pixels(place: Place, cat: Path) -> None:
    answer = place.get("a", str(cat), "a-read", what="preview")
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(answer.content))
    assert image.size == (1_000, 500)
    assert not image.getexif()
    tag = {"If-None-Match": answer.headers["etag"]}
    assert place.get("a", str(cat), what="preview", headers=tag).status_code == 304
    tiff = picture(place.root / "tiffs" / "x.tif", "TIFF", 40)
    place.index("a", tiff.parent)
    small = Image.open(io.BytesIO(place.get("a", str(tiff), what="preview").content))
    assert small.size == (40, 20)


def test_no_preview_is_made_of_what_is_too_large_or_damaged(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", "PNG", 400)
    limits = {"query_pixels": 1_000}
    with MemoryService(limits=limits, fetch={"query_bytes": 5_000}) as service:
        there = Place(service, tmp_path)
        there.index("a", tmp_path)
        status, detail = there.problem("a", str(path), what="preview")
        assert (status, "no preview can be made" in detail) == (422, True)
        path.write_bytes(path.read_bytes()[:50])
        assert there.problem("a", str(path), what="preview")[0] == 422
        path.write_bytes(b"x" * 5_001)
        status, detail = there.problem("a", str(path), what="preview")
        assert (status, "CLIPFLEET_FETCH__QUERY_BYTES" in detail) == (413, True)


def test_both_clients_return_the_bytes(place: Place, cat: Path) -> None:
    with place.service.client("a-read") as client:
        assert client.original("a", str(cat)) == cat.read_bytes()
        assert Image.open(io.BytesIO(client.preview("a", str(cat)))).size == (1_000, 500)


def test_the_command_line_saves_an_original_and_a_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "in" / "x.png", "PNG", 1_200)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with InProcess() as service:
        with service.client() as client:
            client.index("a", path.parent, wait=True)
        run = service.cli("collections", "original", "a", str(path))
        assert (run.returncode, run.stdout) == (0, "x.png\n"), run.stderr
        assert (here / "x.png").read_bytes() == path.read_bytes()
        again = service.cli("collections", "original", "a", str(path))
        assert again.returncode == 2
        assert "--force replaces it" in again.stderr
        run = service.cli("collections", "original", "a", str(path), "--preview", "-o", "y.jpg")
        assert run.returncode == 0, run.stderr
        with Image.open(here / "y.jpg") as image:
            assert image.size == (1_000, 500)
        path.unlink()
        gone = service.cli("collections", "original", "a", str(path), "--force")
        assert (gone.returncode, "not there any more" in gone.stderr) == (1, True)
        assert (here / "x.png").stat().st_size
