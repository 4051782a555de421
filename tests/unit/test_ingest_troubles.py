"""Failures during a chunk: of the model, the store, the collection and the lease."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from clipfleet.common.collection import Collection
from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.ledger import Claim
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.store import Fingerprint, Record, StoreUnavailable
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.embedding.guarded import BrokenDevice, GuardedEmbedder
from clipfleet.workers.ingest.lease import Lease
from support.ledgers import requeue
from support.worker_harness import Workplace, counts

WHITE = 250


class Odd(HashEmbedder):
    """An embedder that calls `odd` with its rows and with the mask of the white images."""

    def __init__(self, odd: Callable[[Embeddings, NDArray[np.bool_]], None]) -> None:
        super().__init__()
        self._odd = odd

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        rows = super().embed_images(pixels)
        self._odd(rows, pixels.mean(axis=(1, 2, 3)) > WHITE)
        return rows


def not_finite(rows: Embeddings, odd: NDArray[np.bool_]) -> None:
    rows[odd, 3] = np.nan


def breaks(rows: Embeddings, odd: NDArray[np.bool_]) -> None:
    if odd.any():
        raise RuntimeError(f"out of memory with {len(rows)} images")


@pytest.mark.parametrize(("odd", "reason"), [(not_finite, "not finite"), (breaks, "out of memory")])
def test_an_image_the_model_cannot_do_fails_alone(
    workplace: Workplace, odd: Callable[[Embeddings, NDArray[np.bool_]], None], reason: str
) -> None:
    workplace.embedder = Odd(odd)
    items = [workplace.photo(f"{n}.jpg", 255 if n == 11 else n) for n in range(20)]
    assert counts(workplace.run(items)) == ("partial", 19, 0, 1)
    assert reason in workplace.reasons()["11.jpg"]
    assert workplace.row("11.jpg") is None


def test_images_that_all_fail_on_a_device_that_is_fine_fail_each_for_itself(
    workplace: Workplace,
) -> None:
    workplace.embedder = Odd(breaks)
    job = workplace.run([workplace.photo(f"{n}.jpg", 255) for n in range(20)])
    assert counts(job) == ("failed", 0, 0, 20)
    assert all("out of memory" in reason for reason in workplace.reasons().values())


class Broken(HashEmbedder):
    """An embedder that works `calls` times, as during the warm-up, and then fails for good."""

    device = "cuda"

    def __init__(self, calls: int = 0) -> None:
        super().__init__()
        self._calls = calls

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        self._calls -= 1
        if self._calls < 0:
            raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")
        return super().embed_images(pixels)


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_broken_device_is_no_images_fault(workplace: Workplace, attempt: int, calls: int) -> None:
    """The same holds at the second attempt, which takes the images one by one. Another worker then
    completes the chunk."""
    workplace.plan([workplace.photo(f"{n}.jpg", n) for n in range(2 * HashEmbedder().batch)])
    for _ in range(attempt - 1):
        claim = workplace.next_claim()
        assert claim
        workplace.ledger.release(claim, count_attempt=True)
    workplace.embedder = Broken(calls)
    with pytest.raises(BrokenDevice, match="cuda is broken: RuntimeError: CUDA error"):
        workplace.work()
    assert (workplace.chunk().attempt, workplace.chunk().leased) == (attempt - 1, False)
    assert "the device cuda is broken" in workplace.ledger.job("job").waiting
    assert "more lines" not in workplace.ledger.job("job").waiting
    workplace.embedder = HashEmbedder()
    workplace.work()
    assert counts(workplace.ledger.job("job")) == ("succeeded", 2 * HashEmbedder().batch, 0, 0)
    assert workplace.ledger.job("job").waiting == ""


def test_a_device_that_breaks_over_a_query_is_noticed_too() -> None:
    class Mute(Broken):
        def embed_texts(self, texts: Sequence[str]) -> Embeddings:
            raise RuntimeError(f"CUDA error at {texts}")

    watched = GuardedEmbedder(Mute())
    assert watched.broken == ""
    with pytest.raises(BrokenDevice):
        watched.embed_texts(["a dog"])
    assert "CUDA error at ['a dog']" in watched.broken


def test_a_collection_that_was_dropped_cancels_the_job(workplace: Workplace) -> None:
    workplace.catalogue.remove(workplace.collection)
    job = workplace.run([workplace.photo("a.jpg")])
    assert (job.state, job.error) == ("cancelled", "the collection was deleted")


def test_work_for_an_earlier_generation_never_lands_in_the_new_one(workplace: Workplace) -> None:
    job = workplace.run([workplace.photo("a.jpg")], generation="earlier")
    assert job.state == "cancelled"
    assert workplace.store.count(workplace.collection) == 0


class Away(MemoryStore):
    """A store that fails its next `times` calls. `before` runs ahead of every call."""

    def __init__(self, times: int, before: Callable[[], None]) -> None:
        super().__init__()
        self.times, self.before = times, before

    def _passing(self) -> None:
        self.before()
        self.times -= 1
        if self.times >= 0:
            raise StoreUnavailable("the store is away")

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        self._passing()
        return super().fingerprints(collection, keys)

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        self._passing()
        super().upsert(collection, records)


def test_a_store_that_is_away_is_waited_for_and_the_job_says_so(workplace: Workplace) -> None:
    reasons: list[str] = []
    workplace.store = Away(2, lambda: reasons.append(workplace.ledger.job("job").waiting))
    workplace.store.create(workplace.collection)
    job = workplace.run([workplace.photo("a.jpg")])
    assert counts(job) == ("succeeded", 1, 0, 0)
    assert reasons[:3] == ["", "the store is away", "the store is away"]
    assert job.waiting == ""


def test_told_to_stop_while_the_store_is_away_the_worker_hands_the_chunk_back(
    workplace: Workplace,
) -> None:
    workplace.store = Away(10**9, workplace.stopping.set)
    workplace.store.create(workplace.collection)
    workplace.plan([workplace.photo("a.jpg")])
    assert workplace.work() == 0
    assert (workplace.chunk().attempt, workplace.chunk().leased) == (0, False)


def test_told_to_stop_between_batches_it_keeps_what_is_done_and_hands_the_rest_back(
    workplace: Workplace,
) -> None:
    batch = HashEmbedder().batch
    workplace.embedder = Odd(lambda _rows, _odd: workplace.stopping.set())
    workplace.plan([workplace.photo(f"{n}.jpg", n) for n in range(2 * batch)])
    assert workplace.work() == batch
    rest = workplace.chunk()
    assert (rest.size, rest.attempt, rest.leased) == (batch, 0, False)
    assert counts(workplace.ledger.job("job")) == ("running", batch, 0, 0)
    assert workplace.store.count(workplace.collection) == batch


def test_an_unforeseen_error_hands_the_chunk_back_and_counts(workplace: Workplace) -> None:
    def unforeseen() -> None:
        raise RuntimeError("nobody thought of this")

    workplace.store = Away(0, unforeseen)
    workplace.plan([workplace.photo("a.jpg")])
    assert workplace.work() == 0
    assert (workplace.chunk().attempt, workplace.chunk().leased) == (1, False)


def test_a_lost_lease_marks_nothing(workplace: Workplace) -> None:
    taken: list[Claim] = []

    def lose() -> None:
        workplace.clock.now += 100
        requeue(workplace.ledger, "job")
        if claim := workplace.next_claim(seconds=1_000):
            taken.append(claim)

    workplace.store = Away(0, lose)
    workplace.store.create(workplace.collection)
    workplace.plan([workplace.photo("a.jpg")])
    workplace.work()
    assert taken
    assert counts(workplace.ledger.job("job")) == ("running", 0, 0, 0)
    assert workplace.chunk().leased


class Startled(MemoryLedger):
    """A ledger whose first renewal raises an unexpected error."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals, self.again = 0, threading.Event()

    def renew(self, claim: Claim, seconds: float) -> bool:  # noqa: ARG002
        self.renewals += 1
        if self.renewals == 1:
            raise ValueError("nobody thought of this")
        self.again.set()
        return True


def test_a_renewal_that_fails_oddly_does_not_end_the_renewing() -> None:
    """The same thread detects a stuck worker, so it must go on."""
    ledger = Startled()
    claim = Claim("job", "00000001-a", "token", 1, ())
    with Lease(ledger, claim, seconds=0.03, stall_s=60, stopping=threading.Event()):
        assert ledger.again.wait(5)
