"""Changes while a worker holds a chunk: deletions, removed jobs, another holder."""

from collections.abc import Callable, Sequence

import pytest

from clipfleet.common.blobs import BlobGone
from clipfleet.common.collection import Collection
from clipfleet.common.identity import has_same_bytes, primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.ledger import Outcome
from clipfleet.common.ledger.catalogue import Deletion
from clipfleet.common.store import Record, Vectors
from clipfleet.common.store.memory import MemoryStore
from support.ledgers import LEASE_S
from support.worker_harness import Workplace, counts


class Meanwhile(HashEmbedder):
    """An embedder that calls `happens` once, before it embeds the first batch."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens: Callable[[], object] | None = happens

    def embed_images(self, pixels: Pixels) -> Vectors:
        if self._happens:
            self._happens()
            self._happens = None
        return super().embed_images(pixels)


def delete(workplace: Workplace, deletion: Deletion) -> None:
    """Record the deletion, then delete the rows, as a gateway does."""
    workplace.catalogue.record_deletion(workplace.collection, deletion)
    rows = workplace.store.scan(workplace.collection, limit=100)
    covers = deletion.covering(workplace.collection)
    workplace.store.delete(workplace.collection, [row.pk for row in rows if covers(row)])


def has_blob(workplace: Workplace, key: str) -> bool:
    try:
        return bool(workplace.blobs.get(key, 100_000))
    except BlobGone:
        return False


ONE_IMAGE = Deletion(namespace="n", pk=primary_key("n", "a.jpg"))
SOME = Deletion(namespace="n", filter={"label": "church"})
ALL = Deletion(namespace="n")


@pytest.mark.parametrize(
    ("deletion", "stay"),
    [
        (ONE_IMAGE, ["b.jpg", "c.jpg"]),
        (SOME, ["c.jpg"]),
        (ALL, []),
        (Deletion(namespace="other"), ["a.jpg", "b.jpg", "c.jpg"]),
    ],
    ids=["one", "by filter", "all", "of another namespace"],
)
def test_an_image_deleted_while_a_worker_has_it_stays_deleted(
    workplace: Workplace, deletion: Deletion, stay: list[str]
) -> None:
    items = [
        workplace.photo("a.jpg", 1, label="church"),
        workplace.photo("b.jpg", 2, label="church"),
        workplace.photo("c.jpg", 3, label="tower"),
    ]
    workplace.embedder = Meanwhile(lambda: delete(workplace, deletion))
    job = workplace.run(items)
    assert counts(job) == ("succeeded", len(stay), 3 - len(stay), 0)
    for item in items:
        there = item.id in stay
        key = thumbnail_key(workplace.collection, primary_key("n", item.id))
        assert (workplace.row(item.id) is not None) == there, item.id
        assert has_blob(workplace, key) == there, item.id


@pytest.mark.parametrize("ends", ["cancelled", "deleted"])
def test_a_job_that_ends_with_a_deleted_image_in_hand_leaves_no_thumbnail(
    workplace: Workplace, ends: str
) -> None:
    def end_job() -> None:
        delete(workplace, ALL)
        workplace.ledger.cancel("job")
        if ends == "deleted":
            workplace.ledger.remove("job")

    workplace.plan([workplace.photo("a.jpg")])
    workplace.embedder = Meanwhile(end_job)
    workplace.work()
    assert workplace.row("a.jpg") is None
    assert not has_blob(workplace, thumbnail_key(workplace.collection, primary_key("n", "a.jpg")))


def test_a_deletion_before_the_chunk_was_claimed_does_not_concern_it(workplace: Workplace) -> None:
    workplace.plan([workplace.photo("a.jpg")])
    delete(workplace, ALL)
    workplace.clock.now += 1
    workplace.work()
    assert workplace.row("a.jpg")


def test_a_deletion_leaves_alone_what_another_job_wrote_since(workplace: Workplace) -> None:
    """The worker must not delete an embedding that another job wrote."""

    def delete_and_write() -> None:
        delete(workplace, ONE_IMAGE)
        workplace.store.upsert = written  # type: ignore[method-assign]

    def written(collection: Collection, records: Sequence[Record]) -> None:
        MemoryStore.upsert(workplace.store, collection, records)
        newer = [Record(**{**vars(record), "job_id": "newer"}) for record in records]
        MemoryStore.upsert(workplace.store, collection, newer)

    workplace.embedder = Meanwhile(delete_and_write)
    workplace.run([workplace.photo("a.jpg")])
    row = workplace.row("a.jpg")
    assert row
    assert row.job_id == "newer"


class Dying(MemoryStore):
    """A store whose worker ends right after the first write."""

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        super().upsert(collection, records)
        raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["claimed again", "split"])
def test_a_deletion_outlives_the_worker_that_had_the_image(workplace: Workplace, way: str) -> None:
    """The worker wrote the image and ended before it could delete it. The next holder deletes
    it."""
    workplace.store.__class__ = Dying
    workplace.embedder = Meanwhile(lambda: delete(workplace, ONE_IMAGE))
    workplace.plan([workplace.photo("a.jpg", 1), workplace.photo("b.jpg", 2)])
    with pytest.raises(KeyboardInterrupt):
        workplace.work()
    workplace.store.__class__ = MemoryStore
    assert workplace.row("a.jpg")
    workplace.clock.now += LEASE_S * 20
    workplace.ledger.requeue("job", workplace.chunk())
    if way == "split":
        assert workplace.ledger.split("job", workplace.chunk())
    while workplace.ledger.pending("m", 10):
        workplace.work()
    assert counts(workplace.ledger.job("job")) == ("succeeded", 1, 1, 0)
    assert workplace.row("a.jpg") is None
    assert workplace.row("b.jpg")


def test_a_job_removed_while_a_worker_embeds_writes_nothing(workplace: Workplace) -> None:
    workplace.embedder = Meanwhile(lambda: workplace.ledger.remove("job"))
    workplace.plan([workplace.photo("a.jpg")])
    workplace.work()
    assert workplace.row("a.jpg") is None


def test_a_job_cancelled_while_a_worker_embeds_writes_nothing(workplace: Workplace) -> None:
    workplace.embedder = Meanwhile(lambda: workplace.ledger.cancel("job"))
    assert counts(workplace.run([workplace.photo("a.jpg")])) == ("cancelled", 0, 0, 0)
    assert workplace.row("a.jpg") is None


def test_a_worker_that_paused_does_not_write_over_the_next_holder(workplace: Workplace) -> None:
    """The paused worker has an older version of the image than the next holder, which read and
    marked it."""
    item = workplace.photo("a.jpg", 1)

    def pause() -> None:
        workplace.clock.now += LEASE_S * 20
        workplace.ledger.requeue("job", workplace.chunk())
        workplace.photo("a.jpg", 200)
        mine, workplace.embedder = workplace.embedder, HashEmbedder()
        workplace.work()
        workplace.embedder = mine

    workplace.embedder = Meanwhile(pause)
    workplace.run([item])
    row = workplace.row("a.jpg")
    assert row
    newest = workplace.photo("again.jpg", 200)
    workplace.embedder = HashEmbedder()
    workplace.run([newest], "two")
    again = workplace.row("again.jpg")
    assert again
    assert has_same_bytes(row.content_hash, again.content_hash)
    assert counts(workplace.ledger.job("job")) == ("succeeded", 1, 0, 0)


def test_a_rest_was_in_hand_as_long_as_its_chunk(workplace: Workplace) -> None:
    """An earlier attempt may have written the images and ended before it counted them."""
    items = [workplace.photo("a.jpg", 1), workplace.photo("b.jpg", 2)]
    workplace.plan(items)
    claim = workplace.next_claim()
    assert claim
    assert workplace.ledger.mark(claim, Outcome(done=1, rest=(items[1],)))
    workplace.clock.now += 1
    delete(workplace, ALL)
    workplace.clock.now += 1
    workplace.work()
    assert workplace.row("b.jpg") is None
    assert counts(workplace.ledger.job("job")) == ("succeeded", 1, 1, 0)
