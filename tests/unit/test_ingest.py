"""One chunk through the worker: what goes in, what is refused, and what the ledger then says."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.common.embedder import HashEmbedder
from clipfleet.common.ledger import Claim, Job, Outcome
from clipfleet.common.ledger.memory import MemoryLedger
from support.worker_harness import Workplace


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Workplace]:
    with ThreadPoolExecutor(2) as threads:
        yield Workplace(tmp_path, threads)


def counts(job: Job) -> tuple[str, int, int, int]:
    return job.state, job.done, job.skipped, job.failed


def test_a_good_photo_is_in_the_store_with_what_is_known_of_it(world: Workplace) -> None:
    item = world.photo("a.jpg", label="church", metadata={"year": 1900})
    assert counts(world.run([item])) == ("succeeded", 1, 0, 0)
    row = world.row("a.jpg")
    assert row
    assert (row.label, row.metadata, row.width, row.height) == ("church", {"year": 1900}, 16, 12)
    assert row.job_id == "job"
    assert row.bytes == os.path.getsize(world.folder / "a.jpg")


def test_good_and_bad_are_told_apart_and_add_up(world: Workplace) -> None:
    good = [world.photo(f"{n}.jpg", n) for n in range(HashEmbedder().batch + 5)]
    (world.folder / "text.jpg").write_text("no photo")
    (world.folder / "empty.jpg").touch()
    (world.folder / "cut.jpg").write_bytes((world.folder / "0.jpg").read_bytes()[:200])
    bad = [world.item(world.folder / f"{name}.jpg") for name in ("text", "empty", "cut", "gone")]
    listed = world.item(world.folder / "x.jpg", problem="the name is odd")
    job = world.run([*bad, *good, listed])
    assert counts(job) == ("partial", HashEmbedder().batch + 5, 0, 5)
    assert world.store.count(world.collection) == HashEmbedder().batch + 5
    said = world.reasons()
    assert set(said) == {"text.jpg", "empty.jpg", "cut.jpg", "gone.jpg", "x.jpg"}
    assert said["x.jpg"] == "the name is odd"
    assert "No such file" in said["gone.jpg"]
    stages = {one.id: one.stage for one in world.ledger.failures("job")}
    assert (stages["gone.jpg"], stages["cut.jpg"], stages["x.jpg"]) == ("read", "decode", "list")


def test_an_embedding_answers_its_own_image(world: Workplace) -> None:
    items = [world.photo(f"{n}.jpg", n) for n in range(70)]
    world.run(items)
    world.run([world.photo("7-again.jpg", 7)], "alone")
    mine, again = world.row("7.jpg"), world.row("7-again.jpg")
    assert mine
    assert again
    assert np.array_equal(mine.embedding, again.embedding)


def test_what_is_unchanged_is_skipped_and_what_changed_is_replaced(world: Workplace) -> None:
    items = [world.photo("a.jpg", 1), world.photo("b.jpg", 2)]
    world.run(items)
    world.photo("b.jpg", 200)
    assert counts(world.run(items, "two")) == ("succeeded", 1, 1, 0)
    rows = [world.row(name) for name in ("a.jpg", "b.jpg")]
    assert [row.job_id for row in rows if row] == ["job", "two"]
    relabelled = [items[0].model_copy(update={"label": "new"}), items[1]]
    assert counts(world.run(relabelled, "three")) == ("succeeded", 1, 1, 0)
    assert counts(world.run(items, "four", on_existing="replace")) == ("succeeded", 2, 0, 0)


class Forgetful(MemoryLedger):
    """The first mark never arrives: the rows are in, the ledger does not know."""

    forgot = False

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        if not self.forgot:
            self.forgot = True
            raise RuntimeError("the worker died here")
        return super().mark(claim, outcome)


def test_rows_this_job_wrote_before_a_redelivery_count_as_done(world: Workplace) -> None:
    items = [world.photo("old.jpg", 1), world.photo("a.jpg", 2), world.photo("b.jpg", 3)]
    world.run(items[:1], "before")
    world.ledger = Forgetful(world.clock)
    assert counts(world.run(items)) == ("running", 0, 0, 0)
    assert world.row("b.jpg")
    world.work()
    assert counts(world.ledger.job("job")) == ("succeeded", 2, 1, 0)


def test_a_nudge_without_a_pending_chunk_does_nothing(world: Workplace) -> None:
    assert world.work() == 0
    world.run([world.photo("a.jpg")])
    assert world.work() == 0
    assert counts(world.ledger.job("job")) == ("succeeded", 1, 0, 0)


def test_of_two_items_with_one_id_the_last_counts(world: Workplace) -> None:
    first, last = world.photo("a.jpg", 1), world.photo("b.jpg", 2, id="a.jpg")
    assert counts(world.run([first, last])) == ("succeeded", 1, 1, 0)
    row = world.row("a.jpg")
    assert row
    assert row.uri.endswith("b.jpg")


def test_an_item_that_cannot_be_read_does_not_displace_a_good_one_of_its_id(
    world: Workplace,
) -> None:
    """A name that is not UTF-8 is shown with escapes, and another file may bear just that name."""
    good = world.photo("a.jpg", 1)
    job = world.run([good, good.model_copy(update={"problem": "id is not valid UTF-8"})])
    assert job.done == 1
    assert world.row("a.jpg")


def test_a_pipe_and_a_folder_called_jpg_fail_alone(world: Workplace) -> None:
    os.mkfifo(world.folder / "pipe.jpg")
    (world.folder / "folder.jpg").mkdir()
    names = ("pipe.jpg", "folder.jpg")
    odd = [world.item(world.folder / name) for name in names]
    assert counts(world.run([*odd, world.photo("a.jpg")])) == ("partial", 1, 0, 2)
    assert "no regular file" in world.reasons()["pipe.jpg"]


def test_folders_called_jpg_leave_no_open_files_behind(world: Workplace) -> None:
    (world.folder / "folder.jpg").mkdir()
    items = [world.item(world.folder / "folder.jpg", id=str(n)) for n in range(40)]
    before = len(os.listdir("/proc/self/fd"))
    world.run(items)
    assert len(os.listdir("/proc/self/fd")) < before + 20


def test_a_link_that_leads_out_of_the_roots_is_not_read(world: Workplace) -> None:
    secret = world.photo("../secret.jpg")
    (world.folder / "link.jpg").symlink_to(world.folder.parent / "secret.jpg")
    job = world.run([secret, world.item(world.folder / "link.jpg")])
    assert counts(job) == ("failed", 0, 0, 2)
    assert all("outside" in reason for reason in world.reasons().values())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"metadata": {"year": "old"}}, "year must be int"),
        ({"metadata": {"year": True}}, "year must be int"),
        ({"metadata": {"year": 2**70}}, "64 bits"),
        ({"metadata": {"label": "x"}}, "keeps that itself"),
        ({"metadata": {"x": float("nan")}}, "not finite"),
        ({"metadata": {"x": "x" * 40_000}}, "the limit is"),
        ({"label": "x" * 600}, "label has 600 bytes"),
        ({"uri": "x" * 5_000}, "uri has 5000 bytes"),
        ({"id": "x" * 2_049}, "id has 2049 bytes"),
        ({"id": "a\0b"}, "NUL"),
        ({"read": "ftp:x"}, "unknown kind of place"),
        ({"read": "blob:never"}, "uploaded file is gone"),
    ],
)
def test_what_the_store_would_not_take_fails_alone(
    world: Workplace, more: dict[str, Any], said: str
) -> None:
    assert counts(world.run([world.photo("a.jpg", **more), world.photo("b.jpg")]))[1:] == (1, 0, 1)
    (reason,) = world.reasons().values()
    assert said in reason


def test_a_chunk_of_nothing_but_bad_names_says_so_of_each(world: Workplace) -> None:
    bad = [world.item(world.folder / f"{n}.jpg", problem=f"odd name {n}") for n in range(3)]
    job = world.run(bad)
    assert counts(job) == ("failed", 0, 0, 3)
    reasons = [failure.reason for failure in world.ledger.failures("job")]
    assert reasons == ["odd name 0", "odd name 1", "odd name 2"]


def test_a_model_of_another_dimension_ends_the_job_and_says_why(world: Workplace) -> None:
    world.embedder = HashEmbedder(dim=world.collection.dim + 1)
    job = world.run([world.photo("a.jpg")])
    assert job.state == "cancelled"
    assert "those of the model" in job.error
