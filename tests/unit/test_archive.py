"""Archives: which sidecar files belong to an image, where reading resumes, what damage does."""

import io
import tarfile
import tempfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.http.sources import ArchiveSource
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.copies import Copies
from support.archives import KINDS, archive, data_of, names, packed
from support.source_helpers import (
    Web,
    items,
    listed,
    memory_peak,
    resumes_everywhere,
    source,
    storage_at,
)

PHOTOS = {f"d/{n}.jpg": bytes([n]) * (500 + n) for n in range(12)}


@pytest.mark.parametrize("name", KINDS)
def test_every_image_is_read_as_it_was_packed(tmp_path: Path, name: str) -> None:
    image_source = archive(
        tmp_path, PHOTOS | {"README.md": b"no image", "d/.hidden.jpg": b"x"}, name
    )
    images = items(image_source)
    assert names(images) == list(PHOTOS)
    assert images[0].id == images[0].uri == f"{tmp_path / name}#d/0.jpg"
    assert {image.id.partition("#")[2]: data_of(tmp_path, image) for image in images} == PHOTOS
    resumes_everywhere(image_source)


@pytest.mark.parametrize("name", KINDS)
def test_one_from_the_web_is_read_as_well(tmp_path: Path, name: str) -> None:
    url = f"https://h.org/{name}"
    web = Web({url: packed(name, PHOTOS)}, cuts=1)
    image_source = source(tmp_path, {"type": "archive", "uri": url}, web)
    images = items(image_source)
    assert images[0].id == f"{url}#d/0.jpg"
    assert {image.id.partition("#")[2]: data_of(tmp_path, image, web) for image in images} == PHOTOS
    resumes_everywhere(image_source)


@pytest.mark.parametrize("name", KINDS)
def test_one_in_a_bucket_is_read_as_well(tmp_path: Path, name: str) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/archives/{name}", packed(name, PHOTOS))
    where = storage_at(tmp_path)
    request = ArchiveSource.model_construct(uri=f"memory://archives/{name}")
    image_source = Archive(request, where, Copies(where, "job"), {})
    images = items(image_source)
    assert {image.id.partition("#")[2]: data_of(tmp_path, image) for image in images} == PHOTOS
    resumes_everywhere(image_source)


@pytest.mark.parametrize("name", KINDS)
def test_captions_labels_and_metadata_lie_beside_their_images(tmp_path: Path, name: str) -> None:
    image_source = archive(
        tmp_path,
        {
            "x/1.jpg": b"1",
            "x/1.txt": "  ein Hündchen\n".encode(),
            "x/1.json": b'{"year": 1999, "width": 3, "caption": "old", "n": null}',
            "x/1.cls": b"7\n",
            "x/2.json": b'{"label": "cat"}',
            "x/2.seg.png": b"2",
            "y/1.jpg": b"3",
            "README.txt": b"hello",
        },
        name,
    )
    first, second, third = items(image_source)
    assert (first.label, first.metadata) == ("7", {"year": 1999, "caption": "ein Hündchen"})
    assert (second.label, second.metadata) == ("cat", {})
    assert (third.label, third.metadata) == ("", {})
    resumes_everywhere(image_source)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("sidecar", "data", "reason"),
    [
        ("1.json", b"{", "not JSON"),
        ("1.json", b"[1]", "not a JSON object"),
        ("1.json", b"[" * 20_000, "not JSON"),
        ("1.txt", b"\xff\xfe", "UTF-8"),
        ("1.txt", b"x" * 40_000, "40000 bytes"),
        ("1.json", b'{"label": true}', "label must be text, not bool"),
        ("1.json", b'{"label": ["cat", "dog"]}', "label must be text, not list"),
        ("1.json", b'{"label": {"name": "cat"}}', "label must be text, not dict"),
    ],
)
def test_an_image_with_a_bad_sidecar_fails_alone(
    tmp_path: Path, name: str, sidecar: str, data: bytes, reason: str
) -> None:
    image_source = archive(tmp_path, {"1.jpg": b"1", sidecar: data, "2.jpg": b"2"}, name)
    first, second = items(image_source)
    assert reason in (first.problem or "")
    assert second.problem is None


def test_captions_of_a_tar_that_lie_elsewhere_are_not_lost_in_silence(tmp_path: Path) -> None:
    apart = {"images/1.jpg": b"1", "images/2.jpg": b"2", "images/1.txt": b"caption"}
    image_source = archive(tmp_path, apart)
    *images, notice = items(image_source)
    assert names(images) == ["images/1.jpg", "images/2.jpg"]
    assert "tar --sort=name" in (notice.problem or "")
    assert listed(image_source, listed(image_source)[-1].cursor) == []
    in_zip = items(archive(tmp_path, apart, "a.zip"))
    assert in_zip[0].metadata == {"caption": "caption"}


@pytest.mark.parametrize("name", KINDS)
def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path, name: str) -> None:
    """Members are never unpacked to disk, so their names can do no harm."""
    odd = {
        "../../evil.jpg": b"1",
        "/etc/evil.jpg": b"2",
        "new\nline.jpg": b"3",
        "日本 🎉.jpg": b"4",
        "a b#c?.jpg": b"5",
    }
    below = tmp_path / "deep" / "er"
    below.mkdir(parents=True)
    images = items(archive(below, odd, name))
    assert {image.id.partition("#")[2]: data_of(below, image) for image in images} == odd
    assert list(tmp_path.rglob("evil.jpg")) == []


def test_links_and_devices_in_a_tar_do_not_count(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        tar.addfile(info)
    assert names(items(archive(tmp_path, out.getvalue()))) == ["real.jpg"]


def test_an_archive_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    for name in KINDS:
        image_source = archive(tmp_path, {"README.txt": b"x"}, name)
        assert items(image_source) == []
        assert ".jpg" in image_source.nothing_found()


@pytest.mark.parametrize("name", KINDS)
def test_a_member_over_the_limit_fails_alone_without_being_read(tmp_path: Path, name: str) -> None:
    image_source = archive(
        tmp_path, {"1.jpg": b"x" * 5_000, "2.jpg": b"y"}, name, image_bytes=1_000
    )
    first, second = items(image_source)
    assert "5000 bytes; the limit is 1000" in (first.problem or "")
    assert data_of(tmp_path, second) == b"y"


NAME = st.sampled_from(["a", "b", "d/a", "é", "c.v1"])
SUFFIX = st.sampled_from([".jpg", ".png", ".txt", ".json", ".cls", ".md"])
CONTENT = st.lists(st.tuples(st.builds(str.__add__, NAME, SUFFIX), st.just(b"{}")), max_size=12)


@effort(max_examples=60, deadline=None)
@given(CONTENT, st.sampled_from(KINDS))
def test_from_every_cursor_comes_exactly_the_rest(
    content: list[tuple[str, bytes]], name: str
) -> None:
    members = list(dict(content).items())
    with tempfile.TemporaryDirectory() as folder:
        image_source = archive(Path(folder), members, name)
        images = sorted(n for n, _ in members if n.endswith((".jpg", ".png")))
        seen = [item for item in items(image_source) if "--sort" not in (item.problem or "")]
        assert sorted(names(seen)) == images
        if not any("--sort" in (item.problem or "") for item in items(image_source)):
            resumes_everywhere(image_source)


def test_a_large_tar_costs_no_more_memory_per_member_than_a_hash(tmp_path: Path) -> None:
    peaks = []
    for members in (600, 6_000):
        path = tmp_path / f"{members}.tar"
        with tarfile.open(path, "w") as tar:
            for n in range(members):
                tar.addfile(tarfile.TarInfo(f"{n:06}.jpg"))
                tar.members.clear()  # type: ignore[attr-defined]
        count, peak = memory_peak(source(tmp_path, {"type": "archive", "uri": str(path)}))
        assert count == members
        peaks.append(peak)
    per_member = (peaks[1] - peaks[0]) / (6_000 - 600)
    assert per_member < 200, "more than the hash that finds scattered captions"
