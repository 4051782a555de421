"""One chunk through a worker: which images are stored, which are refused, what the ledger
records."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.ledger import Claim, Outcome
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.store import Record, Vectors
from clipfleet.common.store.memory import MemoryStore
from support.worker_harness import Workplace, counts


def test_a_good_photo_is_in_the_store_with_what_is_known_of_it(workplace: Workplace) -> None:
    item = workplace.photo("a.jpg", label="church", metadata={"year": 1900})
    assert counts(workplace.run([item])) == ("succeeded", 1, 0, 0)
    row = workplace.row("a.jpg")
    assert row
    assert (row.label, row.metadata, row.width, row.height) == ("church", {"year": 1900}, 16, 12)
    assert row.job_id == "job"
    assert row.bytes == os.path.getsize(workplace.folder / "a.jpg")


def test_each_image_keeps_its_own_label_and_metadata_beside_bad_ones(workplace: Workplace) -> None:
    items = [
        workplace.photo(f"{n}.jpg", n, label=f"label {n}", metadata={"year": 1900 + n})
        for n in range(40)
    ]
    for bad in (0, 17):
        (workplace.folder / f"{bad}.jpg").write_bytes(b"no picture")
    assert counts(workplace.run(items)) == ("partial", 38, 0, 2)
    for n, item in enumerate(items):
        row = workplace.row(item.id)
        if n in (0, 17):
            assert row is None
            continue
        assert row
        assert (row.uri, row.label, row.metadata) == (item.uri, f"label {n}", {"year": 1900 + n})


def test_good_and_bad_are_told_apart_and_add_up(workplace: Workplace) -> None:
    good = [workplace.photo(f"{n}.jpg", n) for n in range(HashEmbedder().batch + 5)]
    (workplace.folder / "text.jpg").write_text("no photo")
    (workplace.folder / "empty.jpg").touch()
    (workplace.folder / "cut.jpg").write_bytes((workplace.folder / "0.jpg").read_bytes()[:200])
    bad = [
        workplace.item(workplace.folder / f"{name}.jpg")
        for name in ("text", "empty", "cut", "gone")
    ]
    listed = workplace.item(workplace.folder / "x.jpg", problem="the name is odd")
    job = workplace.run([*bad, *good, listed])
    assert counts(job) == ("partial", HashEmbedder().batch + 5, 0, 5)
    assert workplace.store.count(workplace.collection) == HashEmbedder().batch + 5
    reasons = workplace.reasons()
    assert set(reasons) == {"text.jpg", "empty.jpg", "cut.jpg", "gone.jpg", "x.jpg"}
    assert reasons["x.jpg"] == "the name is odd"
    assert "No such file" in reasons["gone.jpg"]
    stages = {failure.id: failure.stage for failure in workplace.ledger.failures("job")}
    assert (stages["gone.jpg"], stages["cut.jpg"], stages["x.jpg"]) == ("read", "decode", "list")


def test_an_embedding_answers_its_own_image(workplace: Workplace) -> None:
    items = [workplace.photo(f"{n}.jpg", n) for n in range(70)]
    workplace.run(items)
    workplace.run([workplace.photo("7-again.jpg", 7)], "alone")
    mine, again = workplace.row("7.jpg"), workplace.row("7-again.jpg")
    assert mine
    assert again
    assert np.array_equal(mine.embedding, again.embedding)


def test_what_is_unchanged_is_skipped_and_what_changed_is_replaced(workplace: Workplace) -> None:
    items = [workplace.photo("a.jpg", 1), workplace.photo("b.jpg", 2)]
    workplace.run(items)
    workplace.photo("b.jpg", 200)
    assert counts(workplace.run(items, "two")) == ("succeeded", 1, 1, 0)
    rows = [workplace.row(name) for name in ("a.jpg", "b.jpg")]
    assert [row.job_id for row in rows if row] == ["job", "two"]
    relabelled = [items[0].model_copy(update={"label": "new"}), items[1]]
    assert counts(workplace.run(relabelled, "three")) == ("succeeded", 1, 1, 0)
    assert counts(workplace.run(items, "four", on_existing="replace")) == ("succeeded", 2, 0, 0)


class Counting(HashEmbedder):
    """Counts the images that it embeds."""

    images = 0

    def embed_images(self, pixels: Pixels) -> Vectors:
        self.images += len(pixels)
        return super().embed_images(pixels)


def test_new_details_are_stored_without_the_model(workplace: Workplace) -> None:
    workplace.embedder = embedder = Counting()
    items = [workplace.photo(f"{n}.jpg", n, metadata={"year": 1}) for n in range(3)]
    workplace.run(items)
    before = workplace.row("0.jpg")
    assert before
    changed = [
        items[0].model_copy(update={"label": "new"}),
        items[1].model_copy(update={"metadata": {"free": "x"}}),
        items[2].model_copy(update={"uri": "elsewhere"}),
    ]
    job = workplace.run(changed, "two")
    assert (*counts(job), job.replaced, job.updated) == ("succeeded", 3, 0, 0, 3, 3)
    assert embedder.images == 3
    rows = [workplace.row(f"{n}.jpg") for n in range(3)]
    assert [(row.label, row.metadata, row.uri) for row in rows if row] == [
        ("new", {"year": 1}, items[0].uri),
        ("", {"free": "x"}, items[1].uri),
        ("", {"year": 1}, "elsewhere"),
    ]
    after = rows[0]
    assert after
    assert np.array_equal(after.embedding, before.embedding)
    assert (after.job_id, after.bytes, after.width) == ("two", before.bytes, before.width)
    assert counts(workplace.run(changed, "three")) == ("succeeded", 0, 3, 0)


def test_new_details_keep_the_fields_of_exif(workplace: Workplace) -> None:
    item = workplace.photo("a.jpg", metadata={"year": 1})
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Canon"
    Image.new("RGB", (16, 12)).save(workplace.folder / "a.jpg", exif=exif)
    workplace.run([item], exif=True)
    job = workplace.run([item.model_copy(update={"metadata": {"free": 2}})], "two", exif=True)
    assert job.updated == 1
    row = workplace.row("a.jpg")
    assert row
    assert row.metadata == {"free": 2, "camera": "Canon"}


def test_new_details_of_an_image_that_others_change_meanwhile(workplace: Workplace) -> None:
    """A row is read and written back while nobody else has it in hand."""
    items = [workplace.photo(f"{n}.jpg", n) for n in range(3)]
    workplace.run(items)
    relabelled = [item.model_copy(update={"label": "new"}) for item in items]
    keys = [primary_key("n", item.id) for item in items]
    gone = [keys[1]]

    class Changing(MemoryStore):
        """The second image is deleted, and the third replaced, before the worker reads them."""

        def fetch(
            self, collection: Collection, keys: Sequence[str], *, include_values: bool = True
        ) -> dict[str, Record]:
            if gone and not include_values:
                assert workplace.catalogue.hold(workplace.collection, keys, "me", 1) == {*keys}
                self.delete(collection, [gone.pop()])
                (third,) = super().fetch(collection, keys[2:]).values()
                self.upsert(collection, [replace(third, content_hash="f" * 32)])
            return super().fetch(collection, keys, include_values=include_values)

    workplace.store.__class__ = Changing
    job = workplace.run(relabelled, "two")
    workplace.store.__class__ = MemoryStore
    assert (*counts(job), job.updated) == ("running", 1, 0, 0, 1)
    workplace.work()
    job = workplace.ledger.job("two")
    assert (*counts(job), job.replaced, job.updated) == ("succeeded", 3, 0, 0, 2, 1)
    assert [row.label for item in items if (row := workplace.row(item.id))] == ["new"] * 3
    assert workplace.catalogue.hold(workplace.collection, keys, "me", 1) == set()


def test_rows_of_an_earlier_release_are_embedded_once_more(workplace: Workplace) -> None:
    workplace.embedder = embedder = Counting()
    item = workplace.photo("a.jpg")
    workplace.run([item])
    row = workplace.row("a.jpg")
    assert row
    workplace.store.upsert(workplace.collection, [replace(row, content_hash="e" * 32)])
    for name, images in (("two", 2), ("three", 2)):
        workplace.run([item], name)
        assert embedder.images == images


class Forgetful(MemoryLedger):
    """A ledger that loses the first mark: the rows are stored, but the ledger does not know."""

    forgot = False

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        if not self.forgot:
            self.forgot = True
            raise RuntimeError("the worker died here")
        return super().mark(claim, outcome)


def test_rows_this_job_wrote_before_a_redelivery_count_as_done(workplace: Workplace) -> None:
    items = [
        workplace.photo("old.jpg", 1),
        workplace.photo("a.jpg", 2),
        workplace.photo("b.jpg", 3),
    ]
    workplace.run(items[:1], "before")
    workplace.ledger = Forgetful(workplace.clock)
    assert counts(workplace.run(items)) == ("running", 0, 0, 0)
    assert workplace.row("b.jpg")
    workplace.work()
    assert counts(workplace.ledger.job("job")) == ("succeeded", 2, 1, 0)


def test_a_nudge_without_a_pending_chunk_does_nothing(workplace: Workplace) -> None:
    assert workplace.work() == 0
    workplace.run([workplace.photo("a.jpg")])
    assert workplace.work() == 0
    assert counts(workplace.ledger.job("job")) == ("succeeded", 1, 0, 0)


def test_of_two_items_with_one_id_the_last_counts(workplace: Workplace) -> None:
    first, last = workplace.photo("a.jpg", 1), workplace.photo("b.jpg", 2, id="a.jpg")
    assert counts(workplace.run([first, last])) == ("succeeded", 1, 1, 0)
    row = workplace.row("a.jpg")
    assert row
    assert row.uri.endswith("b.jpg")


def test_an_item_that_cannot_be_read_does_not_displace_a_good_one_of_its_id(
    workplace: Workplace,
) -> None:
    """A name that is not UTF-8 is shown with escapes, and another file may have exactly that
    name."""
    good = workplace.photo("a.jpg", 1)
    job = workplace.run([good, good.model_copy(update={"problem": "id is not valid UTF-8"})])
    assert job.done == 1
    assert workplace.row("a.jpg")


def test_a_pipe_and_a_folder_called_jpg_fail_alone(workplace: Workplace) -> None:
    os.mkfifo(workplace.folder / "pipe.jpg")
    (workplace.folder / "folder.jpg").mkdir()
    names = ("pipe.jpg", "folder.jpg")
    odd = [workplace.item(workplace.folder / name) for name in names]
    assert counts(workplace.run([*odd, workplace.photo("a.jpg")])) == ("partial", 1, 0, 2)
    assert "not a regular file" in workplace.reasons()["pipe.jpg"]


def test_folders_called_jpg_leave_no_open_files_behind(workplace: Workplace) -> None:
    (workplace.folder / "folder.jpg").mkdir()
    items = [workplace.item(workplace.folder / "folder.jpg", id=str(n)) for n in range(40)]
    before = len(os.listdir("/proc/self/fd"))
    workplace.run(items)
    assert len(os.listdir("/proc/self/fd")) < before + 20


def test_a_link_that_leads_out_of_the_roots_is_not_read(workplace: Workplace) -> None:
    secret = workplace.photo("../secret.jpg")
    (workplace.folder / "link.jpg").symlink_to(workplace.folder.parent / "secret.jpg")
    job = workplace.run([secret, workplace.item(workplace.folder / "link.jpg")])
    assert counts(job) == ("failed", 0, 0, 2)
    assert all("outside" in reason for reason in workplace.reasons().values())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"metadata": {"year": "old"}}, "year must be int"),
        ({"metadata": {"year": True}}, "year must be int"),
        ({"metadata": {"year": 2**70}}, "64 bits"),
        ({"metadata": {"label": "x"}}, "keeps that field itself"),
        ({"metadata": {"x": float("nan")}}, "not finite"),
        ({"metadata": {"x": "x" * 40_000}}, "the limit is"),
        ({"label": "x" * 600}, "label has 600 bytes"),
        ({"uri": "x" * 5_000}, "uri has 5000 bytes"),
        ({"id": "x" * 2_049}, "id has 2049 bytes"),
        ({"id": "a\0b"}, "NUL"),
        ({"read": "ftp:x"}, "unknown kind of location"),
        ({"read": "blob:never"}, "uploaded file is gone"),
    ],
)
def test_what_the_store_would_not_take_fails_alone(
    workplace: Workplace, more: dict[str, Any], expected: str
) -> None:
    assert counts(workplace.run([workplace.photo("a.jpg", **more), workplace.photo("b.jpg")]))[
        1:
    ] == (1, 0, 1)
    (reason,) = workplace.reasons().values()
    assert expected in reason


def test_a_chunk_of_nothing_but_bad_names_says_so_of_each(workplace: Workplace) -> None:
    bad = [workplace.item(workplace.folder / f"{n}.jpg", problem=f"odd name {n}") for n in range(3)]
    job = workplace.run(bad)
    assert counts(job) == ("failed", 0, 0, 3)
    reasons = [failure.reason for failure in workplace.ledger.failures("job")]
    assert reasons == ["odd name 0", "odd name 1", "odd name 2"]


def test_a_model_of_another_dimension_ends_the_job_and_says_why(workplace: Workplace) -> None:
    workplace.embedder = HashEmbedder(dim=workplace.collection.dim + 1)
    job = workplace.run([workplace.photo("a.jpg")])
    assert job.state == "cancelled"
    assert "embeddings of the model" in job.error


def test_other_weights_of_the_model_end_the_job_and_say_what_to_do(workplace: Workplace) -> None:
    remembering = workplace.collection.model_copy(update={"weights_id": "aa"})
    workplace.catalogue.remove(workplace.collection)
    workplace.collection = workplace.catalogue.add(remembering)
    workplace.weights_id = "bb"
    job = workplace.run([workplace.photo("a.jpg")])
    assert job.state == "cancelled"
    assert "a folder of another name" in job.error
    assert workplace.row("a.jpg") is None
    workplace.weights_id = "aa"
    assert counts(workplace.run([workplace.photo("a.jpg")], "again")) == ("succeeded", 1, 0, 0)
