"""Zips and folders of any size: the order stays that of earlier releases, and memory does not
grow."""

import io
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.archives.zip_directory import Directory
from clipfleet.common.http.sources import FolderSource
from clipfleet.workers.sources import Folder, scratch
from clipfleet.workers.sources import zip as zips
from clipfleet.workers.sources.samples import SEVERAL
from clipfleet.workers.sources.scratch import ScratchUnavailable, in_order
from support.archives import archive, data_of, names, packed
from support.source_helpers import (
    access_to,
    items,
    listed,
    memory_peak,
    resumes_everywhere,
    source,
    why_not,
)

NAME = st.sampled_from(["a", "b", "d/a", "d/b", "é", "c.v1", "d/c.v1", "c.v2"])
SUFFIX = st.sampled_from([".jpg", ".png", ".txt", ".json", ".md"])
MEMBERS = st.lists(st.builds(str.__add__, NAME, SUFFIX), max_size=20, unique=True)


def by_family(members: list[str]) -> list[str]:
    """The images in the order that the cursors of earlier releases use."""
    families: dict[str, list[str]] = {}
    for name in members:
        folder, _, last = name.rpartition("/")
        families.setdefault(f"{folder}/{last.partition('.')[0]}", []).append(name)
    return [
        name
        for family in families.values()
        for name in family
        if name.endswith((".jpg", ".png"))
    ]  # fmt: skip


@effort(max_examples=100, deadline=None)
@given(MEMBERS)
def test_the_images_of_a_zip_come_in_the_order_that_older_cursors_count(members: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = {name: b"{}" for name in members if not name.endswith(".md")}
        image_source = archive(Path(folder), data, "a.zip")
        assert names(items(image_source)) == by_family(list(data))
        assert [entry.cursor for entry in listed(image_source)] == [
            str(n + 1) for n in range(len(items(image_source)))
        ]
        resumes_everywhere(image_source)


def many(folder: Path, members: int) -> dict[str, Any]:
    """Pack a zip of images with a caption each."""
    path = folder / f"{members}.zip"
    with zipfile.ZipFile(path, "w") as out:
        for n in range(members):
            out.writestr(f"photos/{n:09}.jpg", b"x")
            if n % 100 == 0:
                out.writestr(f"photos/{n:09}.txt", b"caption")
    return {"type": "archive", "uri": str(path)}


def test_memory_does_not_grow_with_the_members_of_a_zip(tmp_path: Path) -> None:
    peaks = []
    for members in (2_000, 8_000):
        count, peak = memory_peak(source(tmp_path, many(tmp_path, members)))
        assert count == members
        peaks.append(peak)
    assert (peaks[1] - peaks[0]) / 6_000 < 50, "bytes a member"


def test_memory_does_not_grow_with_images_whose_names_begin_alike(tmp_path: Path) -> None:
    """Names such as `scan.0001.jpg` and `scan.0002.jpg` form one group."""
    peaks = []
    for members in (2_000, 8_000):
        data = {f"scan.{n:06}.jpg": b"x" for n in range(members)}
        count, peak = memory_peak(archive(tmp_path, {**data, "scan.txt": b"c"}, f"{members}.zip"))
        assert count == members
        peaks.append(peak)
    assert (peaks[1] - peaks[0]) / 6_000 < 50, "bytes a member"


def test_of_too_many_captions_an_image_has_the_first(tmp_path: Path) -> None:
    captions = {f"a.w{n:04d}.txt": f"{n}".encode() for n in range(zips.MAX_SIDECARS + 1)}
    image_source = archive(tmp_path, {"a.jpg": b"1", **captions, "b.jpg": b"2"}, "a.zip")
    first, second = items(image_source)
    assert first.metadata == {"caption": "0"}
    assert (second.problem, second.metadata) == (None, {})
    assert image_source.notes.take() == {SEVERAL: 1}


def test_a_zip_with_the_fields_of_zip64_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    data = {f"{n}.jpg": bytes([n]) for n in range(20)}
    raw = packed("a.zip", data)
    assert b"PK\6\6" in raw
    image_source = archive(tmp_path, b"#!/bin/sh\n" + raw, "a.zip")
    assert why_not(image_source).endswith("is neither a tar nor a zip"), "by its first bytes"
    image_source = archive(tmp_path, raw, "a.zip")
    assert [data_of(tmp_path, image) for image in items(image_source)] == list(data.values())
    assert image_source.count() == 20


def test_what_lies_before_a_zip_shifts_its_members_and_a_comment_does_not() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zip_file:
        zip_file.comment = b"PK\5\6 is how it ends"
        zip_file.writestr("1.jpg", b"1")
    plain = Directory.of(io.BytesIO(out.getvalue()))
    before = io.BytesIO(b"x" * 1_000 + out.getvalue())
    shifted = Directory.of(before)
    assert (shifted.begin, shifted.shift) == (plain.begin + 1_000, 1_000)
    (member,) = shifted.members(before)
    assert member.header_offset == 1_000


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[:-30], "File is not a zip file"),
        (lambda raw: raw.replace(b"PK\1\2", b"PK\1\3", 1), "Bad magic number"),
        (lambda raw: raw[:-6] + b"\xff\xff\xff\x7f" + raw[-2:], ""),
        (lambda raw: raw[:-10] + b"\xff\xff\xff\x7f" + raw[-6:], "Bad offset"),
    ],
    ids=["cut off", "directory overwritten", "offset wrong", "size wrong"],
)
def test_a_damaged_directory_is_said_or_its_images_fail(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    raw = packed("a.zip", {"1.jpg": b"1", "2.jpg": b"2"})
    image_source = archive(tmp_path, damage(raw), "a.zip")
    if reason:
        assert f"is damaged: {reason}" in why_not(image_source)
        return
    assert ["damaged" in (image.problem or "") for image in items(image_source)] == [True, True]


def test_the_estimate_of_a_large_zip_reads_its_beginning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "SAMPLE", 202)
    looked: list[str] = []
    real = zips._is_listed

    def counting(info: zipfile.ZipInfo) -> bool:
        looked.append(info.filename)
        return real(info)

    monkeypatch.setattr(zips, "_is_listed", counting)
    assert source(tmp_path, many(tmp_path, 5_000)).count() == 5_000
    assert len(looked) == 202
    assert source(tmp_path, many(tmp_path, 100)).count() == 100


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with the limit of entries in memory set to four."""
    monkeypatch.setattr(scratch, "MAX_IN_MEMORY", 4)
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def test_a_large_folder_comes_in_the_order_of_its_names_and_from_every_cursor(large: Path) -> None:
    odd = ["a\nb.jpg", "ö.jpg", "50%2F.jpg", "z.JPG", "Z.jpg", "a.jpg", "-.png", "😀.gif"]
    for name in [*odd, "m/1.jpg", "m/2.jpg", "m/3.jpg", "m/4.jpg", "m/5.jpg", "n.txt", ".h.jpg"]:
        (large / name).parent.mkdir(exist_ok=True)
        (large / name).touch()
    (large / "link.jpg").symlink_to("/etc/passwd")
    image_source = Folder(FolderSource(path=str(large)), access_to(large))
    seen = [
        (entry.item.id[len(str(large)) + 1 :], entry.item.problem)
        for entry in image_source.stream("")
    ]
    below = [f"m/{n}.jpg" for n in range(1, 6)]
    parts = [name.split("/") for name in [*odd, *below, "link.jpg"]]
    assert [name.split("/") for name, _ in seen] == sorted(
        parts, key=lambda path: [part.encode() for part in path]
    )
    assert [name for name, problem in seen if problem] == ["link.jpg"]
    resumes_everywhere(image_source)
    assert image_source.count() == len(seen)


def test_memory_does_not_grow_with_the_files_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MAX_IN_MEMORY", 100)
    peaks = []
    for files in (1_000, 4_000):
        folder = tmp_path / str(files)
        folder.mkdir()
        for n in range(files):
            (folder / f"{n:09}.jpg").touch()
        count, peak = memory_peak(source(folder, {"type": "folder", "path": str(folder)}))
        assert count == files
        peaks.append(peak)
    assert (peaks[1] - peaks[0]) / 3_000 < 50, "bytes a file"


@given(st.lists(st.tuples(st.binary(max_size=4), st.integers(0, 2)), max_size=30))
def test_what_goes_through_a_file_is_sorted_as_in_memory(entries: list[scratch.Entry]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "MAX_IN_MEMORY", 3)
        names = [name for name, _ in in_order(iter(entries))]
    assert names == sorted(name for name, _ in entries)


def test_a_temporary_folder_that_is_full_is_said_to_be() -> None:
    def write() -> None:
        with scratch.scratch() as database:
            database.execute("PRAGMA max_page_count=3")
            database.execute("CREATE TABLE entry (name BLOB)")
            for _ in range(100):
                database.execute("INSERT INTO entry VALUES (zeroblob(4000))")

    with pytest.raises(ScratchUnavailable, match=r"TMPDIR\): .* is full"):
        write()


def test_a_source_that_is_dropped_midway_leaves_no_file_open(tmp_path: Path) -> None:
    stream: Iterator[Any] = source(tmp_path, many(tmp_path, 50)).stream("")
    assert len(list(islice(stream, 3))) == 3
    del stream  # an open database would be a ResourceWarning, which is an error here
