"""Signatures of images: they change with the image, and are unknown where that is not certain."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from clipfleet.common.ledger import Item
from clipfleet.workers.sources import signatures
from clipfleet.workers.sources.signatures import UNKNOWN, of_entry, of_item, of_object, of_stat

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND + 123


class Stat:
    """What the system says of a file."""

    def __init__(self, size: int = 10, mtime: int = NOW, ctime: int = NOW) -> None:
        self.st_size, self.st_mtime_ns, self.st_ctime_ns = size, mtime, ctime


def signature(stat: Any, later_ns: int = 60 * SECOND) -> int:
    return of_stat(stat, NOW + later_ns)


def test_each_part_of_a_files_state_counts() -> None:
    states = [Stat(), Stat(size=11), Stat(mtime=NOW - 1), Stat(ctime=NOW - 1)]
    assert len({signature(state) for state in states}) == 4
    assert signature(Stat()) == signature(Stat(), 3_600 * SECOND) != UNKNOWN


def test_a_file_that_changed_within_a_tick_is_unknown() -> None:
    """It may change again in the same tick, and its times would not tell."""
    assert signature(Stat(), 50_000_000) == UNKNOWN
    assert signature(Stat(), -60 * SECOND) == UNKNOWN  # by a clock that runs ahead
    assert signature(Stat(), 200_000_000) != UNKNOWN
    coarse = Stat(ctime=NOW - NOW % SECOND)  # whole seconds: FAT, or some server
    assert signature(coarse, 2 * SECOND) == UNKNOWN
    assert signature(coarse, 3 * SECOND) != UNKNOWN


def test_a_time_of_modification_in_the_future_is_no_hindrance() -> None:
    assert signature(Stat(mtime=NOW + 1_000 * SECOND)) != UNKNOWN


def test_a_broken_link_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    with os.scandir(tmp_path) as entries:
        assert [of_entry(entry) for entry in entries] == [UNKNOWN]


def test_objects_are_known_by_what_their_bucket_says() -> None:
    s3 = {"Key": "a", "Size": 5, "ETag": '"x"', "LastModified": "2026-01-01"}
    changed = [{**s3, name: "other"} for name in ("Size", "ETag", "LastModified")]
    assert len({of_object(entry) for entry in [s3, *changed]}) == 4
    assert of_object({**s3, "Owner": "other"}) == of_object(s3)
    assert of_object({"name": "a", "size": 5, "type": "file"}) == UNKNOWN


@pytest.mark.parametrize(
    ("read", "is_known"),
    [
        ("url:https://example.org/a.jpg", True),
        ("fs:s3://bucket/a.jpg", True),
        ("zip:1:2:8:3:fs:s3://bucket/a.zip", True),
        ("part:512:10:fs:s3://bucket/a.tar", False),
        ("blob:uploads/j/0", False),
        ("file:/nowhere/a.jpg", False),
        ("", False),
    ],
)
def test_other_images_are_known_by_their_text_if_at_all(read: str, is_known: bool) -> None:
    item = Item(id="a", uri="a", read=read)
    assert (of_item(item) != UNKNOWN) == is_known
    other = Item(id="a", uri="a", read=f"{read}x")
    assert not is_known or of_item(other) != of_item(item)


def test_members_of_a_tar_are_known_by_the_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signatures, "TICK_NS", -SECOND)
    monkeypatch.setattr(signatures, "COARSE_TICK_NS", -SECOND)
    tar = tmp_path / "a.tar"
    tar.write_bytes(b"x" * 2_000)
    first = Item(id="a", uri="a", read=f"part:512:10:file:{tar}")
    second = Item(id="a", uri="a", read=f"part:1024:10:file:{tar}")
    known = of_item(first)
    assert known not in (UNKNOWN, of_item(second))
    os.utime(tar, ns=(0, 0))
    assert of_item(first) not in (UNKNOWN, known)


def test_a_signature_fits_beside_the_kind_of_an_entry_into_a_number_of_sqlite() -> None:
    largest = max(signature(Stat(size=size)) for size in range(2_000))
    struct.pack(">q", (largest << 2) + 3)
