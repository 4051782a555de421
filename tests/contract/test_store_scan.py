"""Scans, counts and their filters on every store."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.common.collection import Collection
from clipfleet.common.store import Record, Store
from clipfleet.common.store.filters import Filter, parse_filter
from clipfleet.common.store.scan import LAST, in_order
from support.stores import FIELDS, a_record


def scanned(
    store: Store,
    collection: Collection,
    limit: int,
    before_page: Callable[[], object] = lambda: None,
    **more: Any,
) -> list[Record]:
    """All pages of a scan; each but the last must be full."""
    rows: list[Record] = []
    while True:
        before_page()
        after = rows[-1].pk if rows else ""
        page = store.scan(collection, after=after, limit=limit, **more)
        rows += page
        if len(page) < limit:
            return rows


def where(**raw: Any) -> Filter | None:
    return parse_filter(raw, FIELDS)


def test_a_scan_gives_every_record_once_in_the_order_of_keys(
    store: Store, photos: Collection
) -> None:
    put = [a_record(f"{n}", n, metadata={"year": n, "free": n}) for n in range(300)]
    store.upsert(photos, put)
    expected = sorted(record.pk for record in put)
    for limit in (90, 300, 1_000):
        assert [row.pk for row in scanned(store, photos, limit)] == expected
    assert [row.pk for row in store.scan(photos, after=expected[122], limit=3)] == expected[123:126]
    assert store.scan(photos, after=expected[-1], limit=3) == []
    assert store.scan(photos, after=LAST, limit=3) == []


def test_values_come_with_a_scan_only_when_asked_for(store: Store, photos: Collection) -> None:
    record = a_record("x", label="a", metadata={"year": 3, "free": [1]}, content_hash="0" * 32)
    store.upsert(photos, [record])
    (bare,) = store.scan(photos, limit=5)
    (full,) = store.scan(photos, limit=5, include_values=True)
    assert bare.embedding.size == 0
    assert np.allclose(full.embedding, record.embedding)
    assert replace(full, embedding=record.embedding) == record


def test_a_scan_of_ids_alone_gives_nothing_else(store: Store, photos: Collection) -> None:
    rows = [
        a_record(f"{n}", n, label="church", metadata={"year": 1900, "x": [n]}) for n in range(9)
    ]
    store.upsert(photos, rows)
    whole = store.scan(photos, limit=5, where=where(label="church"))
    ids = store.scan(photos, limit=5, where=where(label="church"), only_ids=True)
    assert [(row.pk, row.id) for row in ids] == [(row.pk, row.id) for row in whole]
    assert {(row.label, row.uri, len(row.metadata), len(row.embedding)) for row in ids} == {
        ("", "", 0, 0)
    }


def test_a_scan_and_a_count_keep_to_namespace_and_filter(store: Store, photos: Collection) -> None:
    mine = [a_record(f"{n}", n, metadata={"year": n % 50}) for n in range(200)]
    others = [a_record(f"{n}", n, namespace="other") for n in range(30)]
    store.upsert(photos, [*mine, *others])
    rare = sorted(record.pk for record in mine if record.metadata["year"] == 7)
    sevens: dict[str, Any] = {"namespace": "default", "where": where(year=7)}
    for limit in (3, 50):
        assert [row.pk for row in scanned(store, photos, limit, **sevens)] == rare
    assert scanned(store, photos, 5, namespace="nowhere") == []
    assert len(scanned(store, photos, 50)) == store.count(photos) == 230
    assert store.count(photos, "other") == 30
    assert store.count(photos, "default", where(year={"$lt": 10})) == 40
    assert store.count(photos, None, where(year=7)) == 4
    assert store.count(photos, "nowhere") == 0


def test_what_stays_is_scanned_once_whatever_is_written_meanwhile(
    store: Store, photos: Collection
) -> None:
    stay = [a_record(f"stay-{n}", n) for n in range(400)]
    store.upsert(photos, stay)
    rounds, over = threading.Semaphore(0), threading.Event()

    def write() -> None:
        for turn in itertools.count():
            rounds.acquire()
            if over.is_set():
                return
            new = [a_record(f"new-{turn}-{n}", n) for n in range(20)]
            store.upsert(photos, [*new, *stay[turn % 20 :: 20]])  # these are written anew
            store.delete(photos, [record.pk for record in new[::2]])

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        try:
            for _ in range(2):
                rows = scanned(store, photos, 100, before_page=lambda: rounds.release(2))
                keys = [row.pk for row in rows]
                assert len(keys) == len(set(keys))
                assert {record.pk for record in stay} <= set(keys)
        finally:
            over.set()
            rounds.release()
        writer.result()


KEYS = st.lists(st.integers(0, 2**128 - 1).map("{:032x}".format), unique=True, max_size=60)
CROWDED = st.lists(st.integers(0, 300).map("{:032x}".format), unique=True, max_size=250)


@given(
    keys=KEYS | CROWDED,
    after=st.sampled_from(["", "0" * 32, "8" * 32, LAST]),
    limit=st.integers(1, 80),
    rows=st.integers(0, 10_000),
    largest=st.integers(1, 20),
)
def test_ranges_are_complete_however_wrong_the_guess(
    keys: list[str], after: str, limit: int, rows: int, largest: int
) -> None:
    def read(above: str, up_to: str, count: int) -> list[str]:
        return [key for key in keys if above < key <= up_to][-count:]

    ordered = in_order(read, str, after=after, limit=limit, rows=rows, largest=largest)
    assert ordered == sorted(key for key in keys if key > after)[:limit]
