"""Folders as sources: which files count as images, their order, and where reading resumes."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.errors import Forbidden
from clipfleet.common.http.sources import FolderSource
from clipfleet.common.settings import Settings
from clipfleet.workers.sources import Folder, Listed, SourceError, Upload, open_source
from clipfleet.workers.sources.notes import MAX_KEYS
from support.source_helpers import access_to
from support.worker_harness import storage_of

NOBODY = 65_534


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop the rights of root, for whom file permissions have no effect."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def folder(path: Path, *roots: Path, recursive: bool = True, label: bool = False) -> Folder:
    source = FolderSource(path=str(path), recursive=recursive, label_from_folder=label)
    return Folder(source, access_to(*(roots or (path,))))


def names(path: Path, *roots: Path, after: str = "", recursive: bool = True) -> list[str]:
    entries = folder(path, *roots, recursive=recursive).stream(after)
    return [os.path.relpath(entry.item.id, path) for entry in entries]


def why_not(path: Path | str, *roots: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(Folder(FolderSource(path=str(path)), access_to(*roots)).stream(""))
    return str(caught.value)


def test_images_in_subfolders_come_in_the_order_of_their_names(top: Path) -> None:
    touch(top / "b.jpg", top / "a" / "z.jpg", top / "a" / "b" / "c.png", top / "c" / "a.gif")
    assert names(top) == ["a/b/c.png", "a/z.jpg", "b.jpg", "c/a.gif"]
    assert names(top, recursive=False) == ["b.jpg"]


def test_hidden_files_and_folders_and_other_kinds_do_not_count(top: Path) -> None:
    touch(top / ".a.jpg", top / ".git" / "b.jpg", top / "notes.txt", top / "jpg", top / "a.jpg")
    (top / "folder.jpg").mkdir()
    assert names(top) == ["a.jpg"]
    assert folder(top).count() == 1


def test_files_of_other_kinds_are_counted_by_their_suffix_from_every_cursor(top: Path) -> None:
    touch(*(top / name for name in ("0.PSD", "a.jpg", "b.psd", "b.jpg", "jpg", "x.mov")))
    touch(*(top / "sub" / name for name in ("a.psd", "b.jpg", "c.psd", "d.x" + "x" * 20)))
    touch(top / ".DS_Store", top / ".git" / "a.psd")
    everything = {".psd": 4, ".": 1, ".mov": 1, ".*": 1}
    whole = folder(top)
    cursors = [entry.cursor for entry in whole.stream("")]
    assert whole.notes.take() == everything
    for number, cursor in enumerate(cursors, 1):
        first, rest = folder(top), folder(top)
        for _ in zip(range(number), first.stream(""), strict=False):
            pass
        counts = Counter(first.notes.take())
        list(rest.stream(cursor))
        assert counts + Counter(rest.notes.take()) == everything


def test_a_folder_of_a_million_suffixes_is_counted_by_few(top: Path) -> None:
    touch(*(top / f"a.x{n}" for n in range(100)))
    listing = folder(top)
    assert list(listing.stream("")) == []
    counts = listing.notes.take()
    assert sum(counts.values()) == 100
    assert len(counts) == MAX_KEYS + 1


def test_suffixes_in_capitals_count(top: Path) -> None:
    touch(top / "A.JPG", top / "B.JpEg", top / "C.PNG", top / "d.tar.Webp")
    assert names(top) == ["A.JPG", "B.JpEg", "C.PNG", "d.tar.Webp"]


def test_the_label_is_the_name_of_the_images_own_folder(top: Path) -> None:
    touch(top / "a.jpg", top / "church" / "b.jpg", top / "x" / "dög" / "c.jpg")
    labels = [entry.item.label for entry in folder(top, label=True).stream("")]
    assert labels == ["photos", "church", "dög"]
    assert {entry.item.label for entry in folder(top).stream("")} == {""}


def test_an_item_is_named_and_read_by_its_path(top: Path) -> None:
    touch(top / "a.jpg")
    (entry,) = folder(top).stream("")
    path = str(top / "a.jpg")
    assert (entry.item.id, entry.item.uri, entry.item.read) == (path, path, f"file:{path}")
    assert entry.item.problem is None


def test_links_in_a_circle_end(top: Path) -> None:
    touch(top / "a" / "b.jpg")
    (top / "a" / "round").symlink_to(top)
    (top / "loop.jpg").symlink_to(top / "loop.jpg")
    assert names(top)[0] == "a/b.jpg"
    assert len(names(top)) <= 2


def test_a_link_out_of_the_roots_is_a_problem_and_one_within_is_not(tmp_path: Path) -> None:
    top, outside = tmp_path / "photos", tmp_path / "secret"
    touch(top / "a.jpg", outside / "b.jpg")
    (top / "in.jpg").symlink_to(top / "a.jpg")
    (top / "out.jpg").symlink_to(outside / "b.jpg")
    (top / "whole").symlink_to(outside)
    problems = {os.path.basename(i.item.id): i.item.problem for i in folder(top).stream("")}
    assert problems["a.jpg"] is None
    assert problems["in.jpg"] is None
    assert "outside" in str(problems["out.jpg"])
    assert set(problems) == {"a.jpg", "in.jpg", "out.jpg"}


def test_names_with_newlines_percents_and_unicode_stay_what_they_are(top: Path) -> None:
    odd = ["a\nb.jpg", "50%2F.jpg", "größe 😀.jpg", '"quoted".jpg', "tab\t.jpg", "cafe\u0301.jpg"]
    touch(*(top / name for name in odd))
    assert sorted(names(top)) == sorted(odd)
    assert all(entry.item.problem is None for entry in folder(top).stream(""))


def test_a_name_that_is_not_utf8_is_listed_with_its_problem_and_can_be_resumed_at(
    top: Path,
) -> None:
    for name in (b"\xff1.jpg", b"\xff2.jpg"):
        with open(os.path.join(os.fsencode(top), name), "wb"):
            pass
    touch(top / "good.jpg")
    listed = list(folder(top).stream(""))
    assert [entry.item.problem is None for entry in listed] == [True, False, False]
    assert "\\xff1.jpg" in listed[1].item.id or "\\udcff1.jpg" in listed[1].item.id
    for entry in listed:
        entry.item.model_dump_json().encode()
        entry.cursor.encode("ascii")
    assert list(folder(top).stream(listed[1].cursor)) == listed[2:]


def test_a_path_too_long_for_an_id_is_a_problem_of_that_item_alone(top: Path) -> None:
    deep = top.joinpath(*["d" * 240] * 9)
    touch(deep / "a.jpg", top / "z.jpg")
    first, second = folder(top).stream("")
    assert "limit is 2048" in str(first.item.problem)
    assert second.item.problem is None


@pytest.mark.parametrize("way", ["/../secret", "/./../secret", "/x/../../secret"])
def test_dots_do_not_lead_out_of_the_roots(tmp_path: Path, way: str) -> None:
    top = tmp_path / "photos"
    touch(top / "a.jpg", tmp_path / "secret" / "b.jpg")
    assert "outside" in why_not(f"{top}{way}", top)
    assert names(Path(f"{top}/../photos"), top) == ["a.jpg"]


def test_a_folder_beside_a_root_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a.jpg", tmp_path / "photos-private" / "b.jpg")
    assert "outside" in why_not(tmp_path / "photos-private", tmp_path / "photos")


def test_a_folder_that_is_a_link_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "secret" / "b.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "way").symlink_to(tmp_path / "secret")
    assert "leads outside" in why_not(tmp_path / "photos" / "way", tmp_path / "photos")


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(tmp_path / "link") == ["a.jpg"]


def test_without_roots_nothing_may_be_indexed(top: Path) -> None:
    assert "none is configured" in why_not(top)
    assert "not an absolute path" in why_not("photos", top)


def test_the_roots_are_compared_part_by_part() -> None:
    assert access_to(Path("/a")).require_path("/a/b/../c") == "/a/c"
    assert access_to(Path("/a/")).require_path("/a") == "/a"
    assert access_to(Path("/")).require_path("/x") == "/x"
    for path in ("/ab", "/a/../b", "a/b", "", "../a"):
        with pytest.raises(Forbidden):
            access_to(Path("/a")).require_path(path)
    with pytest.raises(Forbidden):
        access_to(Path("/a")).require_real("/ab")


def test_a_missing_folder_and_a_file_are_named_as_such(top: Path) -> None:
    touch(top / "a.jpg")
    assert "No such file" in why_not(top / "gone", top)
    assert "is not a folder" in why_not(top / "a.jpg", top)


def test_a_path_with_a_nul_is_refused_in_words(top: Path) -> None:
    assert why_not(f"{top}/a\0b", top)


def open_to_all(path: Path) -> Path:
    """Make a folder readable for every user, which pytest's own folders are not."""
    path.chmod(0o755)
    return path


def test_a_folder_that_cannot_be_read_fails_the_source_and_a_subfolder_only_itself() -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = open_to_all(Path(directory))
        touch(top / "a.jpg", top / "closed" / "b.jpg", top / "z.jpg")
        (top / "closed").chmod(0)
        try:
            with unprivileged():
                listed = list(folder(top).stream(""))
                reason = why_not(top / "closed", top)
        finally:
            (top / "closed").chmod(0o755)
    assert [os.path.basename(entry.item.id) for entry in listed] == ["a.jpg", "closed", "z.jpg"]
    assert "Permission denied" in str(listed[1].item.problem)
    assert "Permission denied" in reason


def test_a_subfolder_that_cannot_be_read_is_not_listed_again_on_resuming() -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = open_to_all(Path(directory))
        touch(top / "a.jpg", top / "closed" / "b.jpg", top / "z.jpg")
        (top / "closed").chmod(0)
        try:
            with unprivileged():
                listed = list(folder(top).stream(""))
                rest = list(folder(top).stream(listed[1].cursor))
        finally:
            (top / "closed").chmod(0o755)
    assert [os.path.basename(entry.item.id) for entry in rest] == ["z.jpg"]


PART = st.sampled_from(["a", "a b", "a.jpg", "A", "b%", "ä", "a-", "a.", "z\n"])
TREE = st.sets(st.lists(PART, min_size=1, max_size=4).map(tuple), max_size=14)


@effort(max_examples=120, deadline=None)
@given(TREE)
def test_from_every_cursor_comes_exactly_the_rest(tree: set[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        for parts in tree:
            path = top.joinpath(*parts[:-1], f"{parts[-1]}.jpg")
            if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
                touch(path)
        listed: list[Listed] = list(folder(top).stream(""))
        assert sorted(entry.item.id for entry in listed) == sorted(
            str(path) for path in top.rglob("*.jpg") if path.is_file()
        )
        order = [os.fsencode(os.path.relpath(entry.item.id, top)).split(b"/") for entry in listed]
        assert all(before < after for before, after in pairwise(order))
        assert folder(top).count() == len(listed)
        for n, entry in enumerate(listed):
            assert list(folder(top).stream(entry.cursor)) == listed[n + 1 :]


def test_an_upload_goes_on_where_it_was() -> None:
    items = [{"id": str(n), "uri": "", "read": f"blob:{n}"} for n in range(4)]
    listed = list(Upload(items).stream(""))
    assert [entry.item.id for entry in listed] == ["0", "1", "2", "3"]
    assert list(Upload(items).stream(listed[1].cursor)) == listed[2:]
    assert list(Upload(items).stream(listed[-1].cursor)) == []


def test_an_unknown_kind_of_source_is_refused() -> None:
    with pytest.raises(SourceError, match="unknown kind"):
        open_source({"type": "ftp"}, storage_of(Settings()), "job")
