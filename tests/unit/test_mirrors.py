"""A mirror makes a collection equal to its source, and deletes nothing else."""

import gzip
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http.mirror import source_identity
from clipfleet.common.identity import primary_key
from clipfleet.common.ledger import MirrorResult
from clipfleet.common.ledger.catalogue import Deletion
from clipfleet.common.snapshots import Snapshots, snapshots_of
from clipfleet.workers.sources.keys import KEPT
from clipfleet.workers.sources.tar import CUT
from support.mirror_harness import World, picture


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as running:
        yield World(tmp_path, running)


def many(world: World, count: int = 20, folder: str = "") -> None:
    for n in range(count):
        world.write(f"{folder}{n:02}.png", n)


def settled(world: World) -> None:
    """Let the files be so old that their times tell all their changes."""
    for path in world.photos.rglob("*.png"):
        now = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns > now - 200_000_000:
            now = time.time_ns()


def test_what_is_gone_is_deleted_and_what_came_or_changed_is_indexed(world: World) -> None:
    many(world)
    assert world.mirror().done == 20
    os.remove(world.photos / "03.png")
    world.write("new.png", 100)
    world.write("05.png", 101)
    job = world.mirror()
    assert (job.state, job.done, job.skipped, job.replaced) == ("succeeded", 2, 18, 1)
    assert job.mirror == MirrorResult(1, 1)
    assert world.missing(job) == ["03.png"]
    assert world.index() == world.files()


def test_files_that_have_not_changed_are_not_read(world: World) -> None:
    many(world)
    settled(world)
    world.mirror()
    os.utime(world.photos / "07.png")  # perhaps changed: it is read
    settled(world)
    planned = world.planner._metrics.planned._value.get()
    job = world.mirror()
    assert (job.total, job.skipped, job.chunks) == (20, 20, 1)
    assert world.planner._metrics.planned._value.get() - planned == 1
    assert world.mirror().chunks == 0


def test_a_file_that_changes_within_a_tick_of_the_clock_is_noticed(world: World) -> None:
    """Its size and its times may be the same as before."""
    for content in range(30):
        world.write("a.png", content)
        world.mirror()
        assert world.index() == world.files()


def test_another_label_is_a_change(world: World) -> None:
    many(world, folder="churches/")
    settled(world)
    world.mirror("churches")
    job = world.run(world.folder("churches", label_from_folder=True), mirror={})
    assert (job.done, job.skipped) == (20, 0)
    assert world.index() == world.files(label="churches")
    assert world.run(world.folder("churches", label_from_folder=True), mirror={}).chunks == 0


def test_an_image_that_was_deleted_by_hand_comes_back(world: World) -> None:
    many(world)
    settled(world)
    world.mirror()
    world.delete("04.png")
    world.delete("11.png")
    job = world.mirror()
    assert (job.done, job.skipped) == (2, 18)
    assert world.index() == world.files()


def test_reported_and_kept_images_stay_and_can_be_deleted_later(world: World) -> None:
    many(world)
    world.mirror()
    os.remove(world.photos / "03.png")
    for missing in ("report", "keep"):
        job = world.mirror(missing=missing)
        assert (job.state, job.mirror) == ("succeeded", MirrorResult(1, 0))
        assert world.missing(job) == ["03.png"]
        assert len(world.ids()) == 20
    assert world.mirror().mirror == MirrorResult(1, 1)
    assert world.index() == world.files()


def test_a_dry_run_changes_nothing_and_names_what_would_go(world: World) -> None:
    many(world)
    settled(world)
    world.mirror()
    before = world.index()
    world.write("new.png", 100)
    world.write("05.png", 101)
    os.remove(world.photos / "03.png")
    blobs = sorted(world.blobs.keys_below("snapshots"))
    job = world.mirror(dry_run=True)
    assert (job.state, job.total, job.done, job.chunks) == ("succeeded", 20, 0, 0)
    assert job.notes == {"!new": 1, "!changed": 1}
    assert job.mirror == MirrorResult(1, 0)
    assert world.missing(job) == ["03.png"]
    assert world.index() == before
    assert sorted(world.blobs.keys_below("snapshots")) == blobs
    many_gone = world.mirror(dry_run=True, max_delete=0)
    assert many_gone.state == "succeeded"
    assert many_gone.mirror is not None
    assert "1 of 20 images (5 %) are gone" in many_gone.mirror.kept
    assert "none would be deleted" in many_gone.mirror.kept


@pytest.mark.parametrize(
    ("limit", "deleted"), [(0.1, False), (0.15, True), (2, False), (3, True), (1.0, True)]
)
def test_more_than_the_limit_is_not_deleted(world: World, limit: float, deleted: bool) -> None:
    many(world)
    world.mirror()
    for n in range(3):
        os.remove(world.photos / f"{n:02}.png")
    world.write("new.png", 100)
    job = world.mirror(max_delete=limit)
    assert "new.png" in world.ids()
    if deleted:
        assert job.mirror == MirrorResult(3, 3)
        assert world.index() == world.files()
        return
    assert job.state == "failed"
    assert job.error.startswith("3 of 20 images (15 %) are gone from the source, and max_delete")
    assert job.error.endswith("mirror it with max_delete 3 or more")
    assert len(world.ids()) == 21
    assert world.mirror(max_delete=3).mirror == MirrorResult(3, 3)
    assert world.index() == world.files()


def test_an_empty_or_absent_source_deletes_nothing(world: World) -> None:
    many(world, folder="a/")
    world.mirror("a", max_delete=1.0)
    shutil.rmtree(world.photos / "a")
    for exists in (False, True):
        if exists:
            (world.photos / "a").mkdir()
        job = world.mirror("a", max_delete=1.0)
        assert job.state == "failed"
        assert job.error.endswith("; nothing was deleted")
        assert len(world.ids()) == 20


def test_a_folder_that_cannot_be_read_deletes_nothing(world: World) -> None:
    many(world, folder="a/")
    many(world, folder="b/")
    world.mirror()
    os.remove(world.photos / "a" / "03.png")
    hidden = world.photos / "b"
    hidden.rename(world.photos / ".b")
    hidden.symlink_to(world.photos / "nowhere")
    hidden.unlink()
    os.mkfifo(world.photos / "pipe")  # no folder and no image
    source = {"type": "list", "sources": [world.folder("a"), world.folder("b")]}
    listed = world.run(source, mirror={"max_delete": 1.0})
    assert listed.state == "partial"
    assert listed.mirror == MirrorResult(0, 0, listed.mirror.kept if listed.mirror else "")
    assert listed.mirror is not None
    assert "1 part of the source could not be read" in listed.mirror.kept
    assert len(world.ids()) == 40
    (world.photos / ".b").rename(hidden)
    assert world.mirror().mirror == MirrorResult(1, 1)
    assert world.index() == world.files()


def test_a_link_in_a_pattern_whose_folder_is_absent_deletes_nothing(world: World) -> None:
    many(world, folder="a/")
    many(world, folder=".disk/")
    link = world.photos / "b"
    link.symlink_to(".disk")
    source = world.folder("*/*.png")
    assert world.run(source, mirror={}).done == 40
    (world.photos / ".disk").rename(world.photos / ".away")
    job = world.run(source, mirror={"max_delete": 1.0})
    assert job.mirror is not None
    assert "of the source could not be read" in job.mirror.kept
    assert len(world.ids()) == 40
    (world.photos / ".away").rename(world.photos / ".disk")
    os.remove(world.photos / ".disk" / "03.png")
    assert world.run(source, mirror={}).mirror == MirrorResult(1, 1)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_that_ends_between_two_images_deletes_nothing(world: World, suffix: str) -> None:
    """It has no mark of its end: it may be half written, or cut off."""
    data, ends = io.BytesIO(), list[int]()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for n in range(20):
            ends.append(tar.offset)
            info, image = tarfile.TarInfo(f"{n:02}.png"), picture(n)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    whole, packed = data.getvalue(), gzip.compress if suffix == ".tar.gz" else bytes
    archive = world.photos / f"photos{suffix}"
    source = {"type": "archive", "uri": str(archive)}
    archive.write_bytes(packed(whole))
    assert world.run(source, mirror={}).notes == {}
    archive.write_bytes(packed(whole[: ends[10]]))
    job = world.run(source, mirror={"max_delete": 1.0})
    assert job.mirror is not None
    assert "1 part of the source could not be read" in job.mirror.kept
    assert job.notes[CUT] == 1
    assert len(world.ids()) == 20
    archive.write_bytes(packed(whole[: ends[10]] + bytes(1024)))
    assert world.run(source, mirror={"max_delete": 10}).mirror == MirrorResult(10, 10)


def test_a_row_that_cannot_be_read_deletes_nothing(world: World) -> None:
    many(world)
    manifest = world.photos / "photos.jsonl"
    rows = [json.dumps({"uri": f"{n:02}.png", "id": f"photo-{n}"}) for n in range(20)]
    source = {"type": "manifest", "uri": str(manifest), "format": "jsonl"}
    manifest.write_text("\n".join(rows))
    world.run(source, mirror={})
    manifest.write_text("\n".join(["{", *rows[2:]]))
    job = world.run(source, mirror={})
    assert job.mirror is not None
    assert "1 part of the source" in job.mirror.kept
    assert len(world.ids()) == 20
    manifest.write_text("\n".join(rows[2:]))
    assert world.run(source, mirror={}).mirror == MirrorResult(2, 2)
    assert world.ids() == sorted(f"photo-{n}" for n in range(2, 20))


def test_a_manifest_follows_its_rows_and_its_files(world: World) -> None:
    many(world)
    manifest = world.photos / "photos.jsonl"
    rows = [{"uri": f"{n:02}.png", "id": f"photo-{n}", "year": n} for n in range(20)]
    source = {"type": "manifest", "uri": str(manifest), "format": "jsonl"}

    def mirror() -> Any:
        manifest.write_text("\n".join(map(json.dumps, rows)))
        settled(world)
        return world.run(source, mirror={})

    mirror()
    assert mirror().chunks == 0
    rows[3]["year"] = 1999  # another row, the same file
    world.write("04.png", 99)  # another file, the same row
    rows[5]["uri"] = "06.png"  # another file by another row
    job = mirror()
    assert (job.skipped, job.done) == (17, 3)
    assert mirror().chunks == 0
    doubles = [f"photo-{n}" for n in range(8)]  # ids twice: the last one counts
    rows += [{"uri": "19.png", "id": name} for name in doubles]
    for _ in range(2):
        job = mirror()
        assert (job.total, job.done + job.skipped) == (28, 28)
        records = world.store.scan(world.collection(), limit=1_000)
        uris = {record.id: record.uri for record in records}
        assert [uris[name] for name in doubles] == [str(world.photos / "19.png")] * 8


def test_an_image_that_fails_stays_as_it_was_and_is_tried_again(world: World) -> None:
    many(world)
    settled(world)
    world.mirror()
    before = world.index()
    good = (world.photos / "03.png").read_bytes()
    (world.photos / "03.png").write_bytes(b"no image")
    settled(world)
    for _ in range(2):
        job = world.mirror()
        assert (job.state, job.failed, job.skipped, job.chunks) == ("partial", 1, 19, 1)
        assert world.index() == before
    (world.photos / "03.png").write_bytes(good)
    assert world.mirror().state == "succeeded"
    assert world.index() == world.files()


def test_only_what_the_source_once_had_is_deleted(world: World) -> None:
    many(world, folder="a/")
    many(world, folder="b/")
    world.run(world.folder("b"), mirror={})
    world.mirror("a")
    (world.photos / "b").rename(world.photos / "c")
    assert world.mirror("a").mirror == MirrorResult()
    assert len(world.ids()) == 40


def test_what_was_indexed_without_a_mirror_goes_with_the_first_mirror(world: World) -> None:
    many(world)
    world.run(world.folder())
    os.remove(world.photos / "03.png")
    world.run(world.folder())
    assert len(world.ids()) == 20
    assert world.mirror().mirror == MirrorResult(1, 1)
    assert world.index() == world.files()


def test_an_image_stays_while_another_source_has_it(world: World) -> None:
    many(world, folder="a/b/")
    many(world, folder="a/")
    world.mirror("a")
    world.mirror("a/b")
    os.remove(world.photos / "a" / "b" / "03.png")
    job = world.mirror("a/b")
    assert job.mirror is not None
    assert (job.state, job.mirror.gone) == ("succeeded", 0)
    assert "1 image is gone from this source but not deleted: another source" in job.mirror.kept
    assert world.mirror("a").mirror == MirrorResult(1, 1)
    assert world.index() == world.files(["a"])
    os.remove(world.photos / "a" / "b" / "04.png")
    assert world.mirror("a", missing="report").mirror == MirrorResult()
    assert world.mirror("a/b").mirror == MirrorResult(1, 1)
    assert world.index() == world.files(["a"])


def test_collections_and_namespaces_do_not_share_snapshots(world: World) -> None:
    many(world)
    world.mirror()
    world.mirror(collection="d")
    os.remove(world.photos / "03.png")
    assert world.mirror().mirror == MirrorResult(1, 1)
    assert len(world.ids("d")) == 20
    assert world.mirror(collection="d").mirror == MirrorResult(1, 1)


def test_images_of_a_job_that_never_ended_are_known(world: World) -> None:
    """A job is cancelled after it has indexed some images, which then vanish."""
    many(world, 200)
    job_id = world.start(world.folder(), mirror={})
    world.step()
    world.ledger.cancel(job_id)
    indexed = world.ids()
    assert 0 < len(indexed) < 200
    for name in indexed[:5]:
        os.remove(world.photos / name)
    world.mirror()
    assert world.index() == world.files()


def test_what_a_cancelled_job_has_listed_is_not_taken_for_indexed(world: World) -> None:
    """Its workers have not indexed the other content that its planner has seen."""
    many(world, folder="a/b/")
    world.mirror("a")
    world.write("a/b/03.png", 100)
    settled(world)
    job_id = world.start(world.folder("a/b"))
    world.planner.tick()
    world.ledger.cancel(job_id)
    assert world.index() != world.files(["a"])
    world.mirror("a/b")
    assert world.index() == world.files(["a"])


def test_what_another_job_lists_meanwhile_is_not_deleted(world: World) -> None:
    """An image comes back after the mirror has listed its folder, and an event indexes it."""
    many(world)
    world.mirror()
    world.write("new.png", 100)  # the mirror waits for a worker that indexes it
    back = (world.photos / "03.png").read_bytes()
    os.remove(world.photos / "03.png")
    mirror = world.start(world.folder(), mirror={"max_delete": 1.0})
    while world.ledger.job(mirror).total < 20:
        world.planner.tick()
    assert world.ledger.job(mirror).state == "running"
    (world.photos / "03.png").write_bytes(back)
    world.run(
        world.folder("03.png"), origin=source_identity("n", world.folder()), on_existing="replace"
    )
    world.finish()
    assert world.ledger.job(mirror).mirror == MirrorResult()
    assert world.index() == world.files()
    world.mirror()
    assert world.index() == world.files()


def test_a_job_for_some_images_adds_them_to_the_snapshot(world: World) -> None:
    many(world)
    world.mirror()
    world.write("new.png", 100)
    origin = source_identity("n", world.folder())
    event = world.start(world.folder("new.png"), origin=origin)
    assert world.ledger.job(event).new.incremental
    world.finish()
    assert world.index() == world.files()
    os.remove(world.photos / "new.png")
    assert world.mirror().mirror == MirrorResult(1, 1)
    assert world.index() == world.files()


def test_events_about_no_images_do_not_raise_the_limit(world: World) -> None:
    many(world)
    world.mirror()
    origin = source_identity("n", world.folder())
    keys = [f"never/{number}.png" for number in range(500)]
    world.run({"type": "keys", "of": world.folder(), "keys": keys}, origin=origin)
    for n in range(15):
        os.remove(world.photos / f"{n:02}.png")
    job = world.mirror()
    assert (job.state, job.mirror and job.mirror.deleted) == ("failed", 0)
    assert "15 of 20 images (75 %) are gone" in job.error


def test_events_about_gone_images_that_are_kept_are_no_error(world: World) -> None:
    """Such a job would be repeated without end."""
    many(world)
    world.mirror()
    os.remove(world.photos / "03.png")
    source = {"type": "keys", "of": world.folder(), "keys": ["03.png"], "removes": False}
    job = world.run(source, origin=source_identity("n", world.folder()))
    assert (job.state, job.error, job.notes) == ("succeeded", "", {KEPT: 1})
    assert "03.png" in world.ids()


@pytest.mark.parametrize("change", [{"uri": "upload:j/0"}, {"job_id": ""}])
def test_an_upload_that_has_taken_the_id_of_an_image_stays(
    world: World, change: dict[str, Any]
) -> None:
    many(world)
    world.mirror()
    key = primary_key("n", str(world.photos / "03.png"))
    row = world.store.fetch(world.collection(), [key])[key]
    world.store.upsert(world.collection(), [replace(row, **change)])
    for name in ("03.png", "04.png"):
        os.remove(world.photos / name)
    job = world.mirror()
    assert job.mirror == MirrorResult(1, 1)
    assert world.missing(job) == ["04.png"]
    assert "03.png" in world.ids()
    assert world.mirror().mirror == MirrorResult()


def test_a_deletion_reaches_workers_that_have_the_image_in_hand(world: World) -> None:
    many(world)
    world.mirror()
    os.remove(world.photos / "03.png")
    since = world.clock.now
    world.mirror()
    (deletion,) = world.catalogue.deletions(world.collection(), since)
    assert deletion.pk == deletion.namespace == ""
    record = world.store.scan(world.collection(), limit=1)[0]
    assert not deletion.covering(world.collection())(record)
    assert Deletion.of([record.pk]).covering(world.collection())(record)


@pytest.mark.parametrize(
    "source", [{"type": "urls", "urls": ["https://x.org/a.jpg"]}, {"type": "upload", "items": []}]
)
def test_other_sources_cannot_be_mirrored(world: World, source: dict[str, Any]) -> None:
    for every in (source, {"type": "list", "sources": [world.folder(), source]}):
        with pytest.raises(InvalidRequest, match=f"of type {source['type']} does not show"):
            world.start(every, mirror={})


def test_identities_name_what_is_listed_and_not_how(world: World) -> None:
    folder = world.folder("a")

    def name(source: dict[str, Any], namespace: str = "n") -> str:
        return source_identity(namespace, source)

    assert len({name(folder), name(world.folder("b")), name(folder, "m")}) == 3
    assert name(folder) != name({**folder, "recursive": False})
    for same in ({"label_from_folder": True}, {"fields": {"a": "int"}}, {"recursive": True}):
        assert name({**folder, **same}) == name(folder)
    assert name({**folder, "path": f"{folder['path']}/"}) == name(folder)
    pair = [world.folder("a"), world.folder("b")]
    lists = [{"type": "list", "sources": every} for every in (pair, pair[::-1])]
    assert name(lists[0]) == name({**lists[1], "name": "a and b"})
    bucket = {"type": "bucket", "uri": "s3://photos/2024"}
    assert name(bucket) == name({**bucket, "uri": "s3://photos/2024/"})
    manifest: dict[str, Any] = {"type": "manifest", "uri": "/a/b.csv", "format": None}
    stored = {**manifest, "uri": "file:///a/b.csv", "format": "csv", "fields": {}}
    assert name(manifest) == name(stored)


@pytest.mark.parametrize("mirror", [{}, {"dry_run": True}, {"missing": "report"}])
def test_a_planner_may_end_at_every_call(world: World, mirror: dict[str, Any]) -> None:
    """The index is the folder, however often, and the numbers are those of an untroubled mirror."""
    many(world, 6)
    many(world, 3, folder="other/")
    world.mirror()
    at = 0
    while True:
        at += 1
        kept, changed = f"gone-{at}.png", f"new-{at}.png"
        world.write(kept, at)
        world.mirror(max_delete=1.0)
        os.remove(world.photos / kept)
        world.write(changed, at)
        job_id = world.start(world.folder(), mirror={"max_delete": 1.0, **mirror})
        world.countdown.calls, world.countdown.ends_at = 0, at
        world.finish()
        calls, world.countdown.ends_at = world.countdown.calls, 0
        job = world.ledger.job(job_id)
        assert job.state == "succeeded", (at, job)
        deletes = not mirror
        assert job.mirror == MirrorResult(1, 1 if deletes else 0), at
        assert world.missing(job) == [kept], at
        assert (kept in world.ids()) != deletes, at
        os.remove(world.photos / changed)  # what the mirror has listed is not forgotten
        world.mirror(max_delete=1.0)
        assert world.index() == world.files(), at
        if calls < at:
            break
        assert at < 500
    assert at > 20


def test_snapshots_survive_a_planner_that_ends_while_it_writes(world: World) -> None:
    """A blob that was not written whole has no effect."""
    many(world)
    world.mirror()
    collection = world.collection()
    origin = source_identity("n", world.folder())
    root = f"{snapshots_of(collection.generation)}/{origin}"
    snapshots = Snapshots(world.blobs, snapshots_of(collection.generation))
    (base,) = snapshots.listing(origin).bases
    whole = world.blobs.get(f"{root}/{base}", 1 << 20)
    for size in range(0, len(whole), 7):
        (Path(world.blobs.folder) / root / "base-torn").write_bytes(whole[:size])
        listing = snapshots.listing(origin)
        assert len(listing.bases) == 2
        assert len(snapshots.base(origin, listing)) == 20
