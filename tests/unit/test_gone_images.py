"""Images that are gone from their source are removed by the worker that has their chunk."""

from dataclasses import replace

import pytest

from clipfleet.common.blobs import BlobGone
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.ledger import GONE, Item
from support.worker_harness import Workplace, counts


def gone(item: Item) -> Item:
    return item.model_copy(update={"read": GONE})


def ids(workplace: Workplace) -> list[str]:
    rows = workplace.store.scan(workplace.collection, limit=100)
    return sorted(f"{row.namespace}/{row.id}" for row in rows)


def test_an_image_that_is_gone_is_removed_with_its_thumbnail(workplace: Workplace) -> None:
    a, b, c = (workplace.photo(f"{name}.jpg", shade) for shade, name in enumerate("abc"))
    workplace.run([a, b], "first")
    workplace.run([a], "other", namespace="other")
    job = workplace.run([gone(a), c, gone(workplace.item(workplace.folder / "never.jpg"))])
    assert counts(job) == ("succeeded", 1, 2, 0)
    assert ids(workplace) == ["n/b.jpg", "n/c.jpg", "other/a.jpg"]
    key = thumbnail_key(workplace.collection, primary_key("n", "a.jpg"))
    with pytest.raises(BlobGone):
        workplace.blobs.get(key, 1_000_000)
    (deletion, *_) = workplace.catalogue.deletions(workplace.collection, 0)
    assert deletion.pks == (primary_key("n", "a.jpg"),)


def test_a_row_with_that_id_from_elsewhere_stays(workplace: Workplace) -> None:
    a, b = workplace.photo("a.jpg"), workplace.photo("b.jpg", 9)
    workplace.run([a, b.model_copy(update={"uri": "elsewhere"})], "first")
    (row,) = workplace.store.fetch(workplace.collection, [primary_key("n", "a.jpg")]).values()
    own = replace(row, job_id="")
    workplace.store.upsert(workplace.collection, [own])
    assert counts(workplace.run([gone(a), gone(b)])) == ("succeeded", 0, 2, 0)
    assert ids(workplace) == ["n/a.jpg", "n/b.jpg"]


def test_an_image_that_came_back_is_indexed_again(workplace: Workplace) -> None:
    a = workplace.photo("a.jpg")
    for number, item in enumerate((a, gone(a), gone(a), a)):
        workplace.clock.now += 1
        workplace.run([item], f"job-{number}")
    assert ids(workplace) == ["n/a.jpg"]
