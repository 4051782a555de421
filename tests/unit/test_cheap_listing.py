"""What makes listing cheap gives the same as the long way."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.auth.source_access import OwnPlaces, SourceAccess, SourceRefused
from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.http.sources import FolderSource
from clipfleet.common.settings import Settings
from clipfleet.workers.sources import Folder
from clipfleet.workers.sources.tar import Header
from clipfleet.workers.storage.locations import Storage
from support.source_helpers import Web, access_to, listed

OWN = OwnPlaces(("/data/photos/keys.json", "/data/photos/own", "/data/private"))
NAMES_IN_URIS = (
    "a.jpg b.jpg photos own keys.json private data .. . file: localhost s3: http: x: :: one.jpg"
)
PARTS = st.sampled_from(["", *NAMES_IN_URIS.split()])
URIS = st.lists(PARTS, max_size=6).map("/".join)
BASES = (
    "file:/data/photos/m.jsonl file:/data/m.jsonl file:/m.jsonl file:/srv/localhost/m.jsonl "
    "url:http://host/d/m.jsonl fs:s3://bucket/d/m.jsonl"
)


def a_storage() -> Storage:
    roots = ("/data/photos", "/data/one.jpg", "/srv")
    access = SourceAccess(SourceGrant(roots=roots, buckets=("s3://bucket/d",)), OWN)
    return Storage(Settings(), Blobs("file:///data/private/blobs"), Web(), access=access)


def location(storage: Storage, uri: str, base: str) -> str:
    try:
        return storage.find(uri, base)
    except Unreadable as error:
        return f"refused: {error}"


@effort(max_examples=300, deadline=None)
@given(st.sampled_from(["", *BASES.split()]), st.lists(URIS, min_size=2, max_size=12))
def test_a_location_does_not_depend_on_those_found_before(base: str, names: list[str]) -> None:
    storage = a_storage()
    for uri in names:
        assert location(storage, uri, base) == location(a_storage(), uri, base)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("/data/photos/a.jpg", "/data/photos/keys.json"),
        ("/data/photos/a.jpg", "/data/photos/own"),
        ("/data/photos/a.jpg", "/data/photos/.."),
        ("/data/one.jpg", "/data/two.jpg"),
    ],
)
def test_what_is_refused_is_refused_after_its_neighbour_too(first: str, then: str) -> None:
    storage = a_storage()
    assert location(storage, first, "") == f"file:{first}"
    assert location(storage, then, "").startswith("refused")


LINKS = {
    "near.jpg": "a.jpg",
    "absolute.jpg": "{root}/sub/b.jpg",
    "up.jpg": "sub/../a.jpg",
    "out.jpg": "../outside/c.jpg",
    "twice.jpg": "near.jpg",
    "twice-out.jpg": "out.jpg",
    "by-folder.jpg": "{root}/door/c.jpg",
    "dots.jpg": "sub/..",
    "here.jpg": ".",
    "nowhere.jpg": "none.jpg",
    "nowhere-out.jpg": "/none.jpg",
    "loop.jpg": "loop.jpg",
    "own.jpg": "own/d.jpg",
    "not-a-link.jpg": "",
}


def test_a_link_leads_where_the_whole_path_leads(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in (root / "sub", root / "own", tmp_path / "outside"):
        folder.mkdir(parents=True)
    for file in (root / "a.jpg", root / "sub" / "b.jpg", root / "own" / "d.jpg"):
        file.touch()
    (tmp_path / "outside" / "c.jpg").touch()
    (root / "door").symlink_to(tmp_path / "outside")
    for name, target in LINKS.items():
        (root / name).symlink_to(target.format(root=root)) if target else (root / name).touch()
    grant = SourceGrant(roots=(str(root),))
    used = SourceAccess(grant, OwnPlaces((str(root / "own"),)))
    for name in [*LINKS, *reversed(LINKS)]:
        fresh = SourceAccess(grant, OwnPlaces((str(root / "own"),)))
        path = str(root / name)
        assert refused(used.require_real_link, path) == refused(fresh.require_real, path), name
    assert refused(used.require_real_link, str(root / "by-folder.jpg"))
    assert not refused(used.require_real_link, str(root / "twice.jpg"))


def refused(check: object, path: str) -> str:
    assert callable(check)
    try:
        check(path)
    except SourceRefused as error:
        return error.problem
    return ""


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150)


@effort(max_examples=200, deadline=None)
@given(NAMES, st.integers(0, 8**12), st.sampled_from(TYPES), st.sampled_from(FORMATS))
def test_a_header_is_read_as_tarfile_reads_it(name: str, size: int, kind: bytes, form: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    try:
        raw = info.tobuf(form, "utf-8", "surrogateescape")  # type: ignore[arg-type]  # any int
    except ValueError:  # the format has no such header
        return
    for begin in range(0, len(raw), 512):
        header = raw[begin : begin + 512]
        for block in (header, header[:40] + b"?" + header[41:], header[:100]):
            assert seen(Header, block) == seen(tarfile.TarInfo, block)


def seen(kind: type[tarfile.TarInfo], block: bytes) -> object:
    try:
        header = kind.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        return type(error), str(error)
    return header.name, header.size, header.type, header.chksum


def test_a_tar_of_any_format_is_read() -> None:
    """Through the whole of tarfile, which takes long names from headers of their own."""
    for form in FORMATS:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=form) as out:
            info = tarfile.TarInfo(f"{'d' * 90}/{'é' * 40}.jpg")
            info.size = 3
            out.addfile(info, io.BytesIO(b"abc"))
        packed.seek(0)
        with tarfile.TarFile(fileobj=packed, tarinfo=Header) as tar:
            member = tar.next()
            assert member
            assert (member.name, member.size) == (info.name, 3)


def test_the_count_of_a_folder_is_that_of_its_images(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/c.PNG", "b/d/e.jpg", ".f/g.jpg", "b/.h.jpg", "i.txt", "jpg", "k."):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.symlink(tmp_path / "a.jpg", tmp_path / "z.jpg")
    os.symlink(tmp_path / "b", tmp_path / "folder.jpg")
    for recursive in (True, False):
        source = Folder(FolderSource(path=str(tmp_path), recursive=recursive), access_to(tmp_path))
        assert source.count() == len(listed(source)) > 2
