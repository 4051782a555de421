"""Results about duplicates, and sets of images kept apart, in the blob store."""

import io
import secrets

import pytest

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.duplicates import (
    PART_GROUPS,
    SUMMARY,
    Group,
    Member,
    ResultReplaced,
    Summary,
    apart_of,
    duplicates_of,
    keep_apart,
    numbered,
    read_apart,
    read_groups,
    read_summary,
    write_result,
)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs(f"memory://{secrets.token_hex(8)}")


@pytest.fixture
def photos() -> Collection:
    return Collection.new("photos", metric="cosine", model="m", dim=4, fields={})


def a_group(number: int) -> Group:
    pks = (f"{number:032x}", f"{number + 10_000:032x}")
    return Group(members=tuple(Member(pk=pk, content_hash="", indexed_at=1) for pk in pks))


def a_summary(job: str, exact: int, near: int) -> Summary:
    return Summary(
        job=job, made_at=1.0, threshold=0.9, keep="largest", namespace=None, images=9, exact=exact,
        near=near,
    )  # fmt: skip


def test_groups_come_back_in_parts(blobs: Blobs, photos: Collection) -> None:
    near = [a_group(n) for n in range(PART_GROUPS + 3)]
    summary = a_summary("a1", 1, len(near))
    assert read_summary(blobs, photos) is None
    write_result(blobs, photos, summary, {"exact": [a_group(7)], "near": near})
    assert read_summary(blobs, photos) == summary
    assert [*read_groups(blobs, photos, summary, "near", 0)] == near[:PART_GROUPS]
    assert [*read_groups(blobs, photos, summary, "near", 1)] == near[PART_GROUPS:]
    assert read_groups(blobs, photos, summary, "exact", 0) == (a_group(7),)


def test_a_later_run_replaces_the_groups(blobs: Blobs, photos: Collection) -> None:
    first, second = a_summary("a1", 1, 0), a_summary("a2", 1, 0)
    write_result(blobs, photos, first, {"exact": [a_group(1)], "near": []})
    write_result(blobs, photos, second, {"exact": [a_group(2)], "near": []})
    assert read_summary(blobs, photos) == second
    with pytest.raises(ResultReplaced):
        read_groups(blobs, photos, first, "exact", 0)


def test_a_summary_that_is_being_written_is_none(blobs: Blobs, photos: Collection) -> None:
    key = f"{duplicates_of(photos.generation)}/{SUMMARY}"
    blobs.put(key, io.BytesIO(b'{"v": 1, "job"'))
    assert read_summary(blobs, photos) is None


def test_sets_kept_apart_are_remembered_once(blobs: Blobs, photos: Collection) -> None:
    keep_apart(blobs, photos, ["b", "a"])
    keep_apart(blobs, photos, ["a", "b", "a"])
    keep_apart(blobs, photos, ["b", "c"])
    sets = read_apart(blobs, photos)
    assert sorted(map(sorted, sets)) == [["a", "b"], ["b", "c"]]
    assert {pk: len(numbers) for pk, numbers in numbered(sets).items()} == {"a": 1, "b": 2, "c": 1}
    assert len(blobs.keys_below(apart_of(photos.snapshots))) == 2


def test_only_later_sets_are_read_when_asked(blobs: Blobs, photos: Collection) -> None:
    keep_apart(blobs, photos, ["a", "b"])
    assert read_apart(blobs, photos, since=4e9) == []
