"""Damaged and malicious archives."""

import gzip
import io
import random
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from clipfleet.common.errors import Unreadable
from support.archives import archive, data_of, names, packed
from support.source_helpers import items, listed, until_broken, why_not


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_what_came_before_the_damage_is_listed_and_then_it_is_said(
    tmp_path: Path, name: str
) -> None:
    noise = random.Random(1)
    members = {f"{n:03}.jpg": noise.randbytes(3_000) for n in range(60)}
    whole = packed(name, members)
    image_source = archive(tmp_path, whole[: len(whole) // 2], name)
    seen, reason = until_broken(image_source)
    assert re.search("is damaged .* images before that are indexed", reason)
    assert len(seen) > 10
    good = [entry.item for entry in seen if entry.item.problem is None][:-1]
    assert [data_of(tmp_path, image) for image in good] == list(members.values())[: len(good)]
    with pytest.raises(Exception, match="is damaged"):
        listed(image_source, seen[-1].cursor)


def test_a_header_overwritten_in_the_midst_is_damage_and_not_the_end(tmp_path: Path) -> None:
    raw = bytearray(packed("a.tar", {f"{n}.jpg": b"x" * 512 for n in range(5)}))
    raw[2 * 1024 : 2 * 1024 + 512] = b"\xaa" * 512
    image_source = archive(tmp_path, bytes(raw))
    seen, reason = until_broken(image_source)
    assert "is damaged" in reason
    assert names([entry.item for entry in seen]) == ["0.jpg", "1.jpg"]


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, (1 << 33) - 1
    raw = packed("a.tar", {"1.jpg": b"x"})[:1024] + info.tobuf() + b"\0" * 2_048
    image_source = archive(tmp_path, raw)
    with pytest.raises(Exception, match="claims to have"):
        listed(image_source)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither a tar nor a zip"),
        (b"<html>no such page</html>" * 100, "neither a tar nor a zip"),
        (gzip.compress(b"no tar" * 1_000), "neither a tar nor a zip"),
        (b"PK\3\4 but no more", "is damaged"),
    ],
    ids=[
        "empty",
        "page",
        "gzip",
        "zip",
    ],  # gzip writes the time: ids must be equal in all processes
)
def test_what_is_no_archive_says_so(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in why_not(archive(tmp_path, data))


def test_a_zip_bomb_unpacks_no_further_than_the_limit(tmp_path: Path) -> None:
    """The central directory states a false size."""
    bomb = packed("a.zip", {"1.jpg": b"\0" * 5_000_000})
    lying = bomb.replace((5_000_000).to_bytes(4, "little"), (900).to_bytes(4, "little"))
    (item,) = items(archive(tmp_path, lying, "a.zip", image_bytes=10_000))
    assert item.problem is None
    assert len(data_of(tmp_path, item, image_bytes=10_000)) == 10_001


def test_a_member_of_a_zip_that_changed_is_damaged(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as stored:
        stored.writestr("1.jpg", b"A" * 300)
    (item,) = items(archive(tmp_path, out.getvalue(), "a.zip"))
    (tmp_path / "a.zip").write_bytes(out.getvalue().replace(b"A" * 300, b"B" * 300))
    with pytest.raises(Unreadable, match="checksum"):
        data_of(tmp_path, item)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(Unreadable, match="damaged or has changed"):
        data_of(tmp_path, item)


def test_encrypted_members_and_rare_methods_fail_alone(tmp_path: Path) -> None:
    raw = packed("a.zip", {"1.jpg": b"x"})
    at = raw.rindex(b"PK\1\2")
    locked = raw[: at + 8] + b"\x01" + raw[at + 9 :]
    (item,) = items(archive(tmp_path, locked, "a.zip"))
    assert "encrypted" in (item.problem or "")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as rare:
        rare.writestr("1.jpg", b"x")
    (item,) = items(archive(tmp_path, out.getvalue(), "a.zip"))
    assert "another method" in (item.problem or "")
