"""A chunk whose images are on servers that are silent or unavailable."""

import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.ledger import Item
from clipfleet.common.store import Vectors
from clipfleet.workers.ingest import chunk
from clipfleet.workers.storage.locations import BucketAway, Storage
from support.services import eventually
from support.silent import Silent, silent
from support.webserver import Site, body, site
from support.worker_harness import Workplace, counts, storage_of

GOOD = 3


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    with ThreadPoolExecutor(4) as threads:
        place = Workplace(tmp_path, threads)
        fetches(place)
        yield place


@pytest.fixture
def web() -> Iterator[Site]:
    data = io.BytesIO()
    Image.new("RGB", (16, 12)).save(data, "JPEG")
    with site({"/": body(data.getvalue())}) as there:
        yield there


@pytest.fixture
def nobody() -> Iterator[Silent]:
    with silent("127.0.1.1") as there:  # another host than `web`
        yield there


def fetches(
    workplace: Workplace, lease_s: float = 15.0, stall_s: float = 300.0, **more: Any
) -> None:
    """Set the fetch settings; by default a server may be silent for longer than a test takes."""
    patient = {"read_s": 600.0, "total_s": 600.0, "tries": 1, "allowed_networks": ["127.0.0.0/8"]}
    fetch = workplace.settings.fetch.model_validate({**patient, **more})
    changed = {"fetch": fetch, "lease_s": lease_s, "stall_s": stall_s}
    workplace.settings = workplace.settings.model_copy(update=changed)


MODEL_S = 0.5


def at(url: str, count: int, name: str) -> list[Item]:
    return [Item(id=f"{name}{n}", uri=url, read=f"url:{url}?{n}") for n in range(count)]


@contextmanager
def working(workplace: Workplace, **more: Any) -> Iterator[threading.Thread]:
    """Run a worker on the next remote chunk until the block ends."""
    thread = threading.Thread(target=workplace.work, kwargs={"remote": True, **more})
    thread.start()
    try:
        yield thread
    finally:
        workplace.stopping.set()
        thread.join(60)
        assert not thread.is_alive()


def no_time(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    monkeypatch.setattr(chunk, "REMOTE_BUDGET", 0.0)
    monkeypatch.setattr(chunk, "MIN_REMOTE_BUDGET_S", seconds)


def test_images_of_a_silent_host_fail_alone_and_by_their_own_limit(
    workplace: Workplace, web: Site, nobody: Silent
) -> None:
    fetches(workplace, read_s=0.2, total_s=0.3)
    workplace.plan([*at(f"{web.url}/", GOOD, "good"), *at(nobody.url, 4, "slow")])
    workplace.work(remote=True)
    assert counts(workplace.ledger.job("job")) == ("partial", GOOD, 0, 4)
    assert set(workplace.reasons().values()) == {"the server did not answer in time (1 tries)"}


def test_after_some_timeouts_the_images_of_a_silent_host_fail_at_once(
    workplace: Workplace, web: Site, nobody: Silent
) -> None:
    fetches(workplace, read_s=0.2, total_s=0.3, per_host=2, breaker_timeouts=2)
    workplace.plan([*at(nobody.url, 50, "slow"), *at(f"{web.url}/", GOOD, "good")])
    workplace.work(remote=True)
    assert counts(workplace.ledger.job("job")) == ("partial", GOOD, 0, 50)
    reasons = list(workplace.reasons().values())
    timeouts = sum("did not answer in time" in reason for reason in reasons)
    assert timeouts == nobody.accepted in (2, 3), "one may begin between the two time-outs"
    assert sum("is not asked for 60 s" in reason for reason in reasons) == 50 - timeouts


def test_what_is_done_counts_while_the_last_images_are_under_way(
    workplace: Workplace, web: Site, nobody: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that had no slot at their server go back to the ledger for another worker."""
    no_time(monkeypatch)
    fetches(workplace, per_host=2)
    gone = [Item(id="gone", uri="", read=f"url:{web.url}", problem="its name is odd")]
    good, slow = at(f"{web.url}/", GOOD, "good"), at(nobody.url, 5, "slow")
    workplace.plan([*slow, *good, *gone])
    with working(workplace):
        job = eventually(lambda: _if_done(workplace, GOOD), 60, "the first images")
        assert counts(job) == ("running", GOOD, 0, 1)
        assert workplace.store.count(workplace.collection) == GOOD
        held, given_back = workplace.ledger.open_chunks("job")
        assert (held.size, held.leased, held.attempt) == (2, True, 1)
        assert (given_back.size, given_back.leased, given_back.attempt) == (3, False, 0)
        assert nobody.open == 2
    again = workplace.ledger.open_chunks("job")
    assert sorted((planned.size, planned.leased, planned.attempt) for planned in again) == [
        (2, False, 0), (3, False, 0),
    ]  # fmt: skip
    eventually(lambda: nobody.open == 0, 60, "the end of the connections")


def _if_done(workplace: Workplace, count: int) -> Any:
    job = workplace.ledger.job("job")
    return job if job.done == count else None


def test_images_that_were_under_way_at_a_mark_end_by_their_own_limit_and_count_once(
    workplace: Workplace, web: Site, nobody: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_time(monkeypatch, 0.1)
    fetches(workplace, read_s=1.0, total_s=1.5)
    workplace.plan([*at(nobody.url, 4, "slow"), *at(f"{web.url}/", GOOD, "good")])
    workplace.work(remote=True)
    job = workplace.ledger.job("job")
    assert counts(job) == ("partial", GOOD, 0, 4)
    assert (job.total, job.chunks) == (GOOD + 4, 1)


def test_told_to_stop_it_keeps_what_is_done_and_closes_its_connections(
    workplace: Workplace, web: Site, nobody: Silent
) -> None:
    workplace.plan([*at(nobody.url, 4, "slow"), *at(f"{web.url}/", GOOD, "good")])
    with working(workplace):
        seen = "clipfleet_batch_size_sum", {"lane": "ingest"}
        value = workplace.metrics.registry.get_sample_value
        eventually(lambda: value(*seen) == GOOD, 60, "the pass of the good ones")
    assert counts(workplace.ledger.job("job")) == ("running", GOOD, 0, 0)
    rest = workplace.chunk()
    assert (rest.size, rest.leased, rest.attempt) == (4, False, 0)
    eventually(lambda: nobody.open == 0, 60, "the end of the connections")


def test_a_chunk_of_a_cancelled_job_ends_although_its_server_says_nothing(
    workplace: Workplace, nobody: Silent
) -> None:
    fetches(workplace, lease_s=0.3)
    workplace.plan(at(nobody.url, 4, "slow"))
    with working(workplace) as thread:
        assert nobody.reached.wait(60)
        workplace.ledger.cancel("job")
        thread.join(60)
        assert not thread.is_alive()
        eventually(lambda: nobody.open == 0, 60, "the end of the connections")
    assert workplace.ledger.open_chunks("job") == []


def test_a_worker_that_waits_for_a_silent_server_is_not_taken_for_stuck(
    workplace: Workplace, nobody: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    fetches(workplace, lease_s=0.06, stall_s=0.5, read_s=2.0, total_s=2.5)
    workplace.plan(at(nobody.url, 3, "slow"))
    workplace.work(remote=True)
    assert counts(workplace.ledger.job("job")) == ("failed", 0, 0, 3)
    assert ended == []


class Away(Storage):
    def read(self, place: str, limit: int) -> bytes:  # noqa: ARG002
        raise BucketAway("the bucket does not answer: it sleeps")


def test_a_bucket_that_is_away_is_waited_for_as_long_as_a_chunk_has_time(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_time(monkeypatch)
    workplace.plan([Item(id="a", uri="", read="fs:s3://bucket/a.jpg")])
    known = storage_of(workplace.settings, workplace.blobs)
    storage = Away(known.settings, known.blobs, known._fetcher)
    assert workplace.work(remote=True, storage=storage) == 0
    rest = workplace.chunk()
    assert (rest.size, rest.leased, rest.attempt) == (1, False, 0)
    with working(workplace, storage=storage):
        eventually(
            lambda: "it sleeps" in workplace.ledger.job("job").waiting, 60, "the reason to wait"
        )


def test_the_second_attempt_waits_for_one_after_the_other_and_can_be_stopped(
    workplace: Workplace, nobody: Silent
) -> None:
    workplace.plan(at(nobody.url, 3, "slow"))
    claim = workplace.ledger.claim("m", "another", 10, 3, remote=True)
    assert claim
    workplace.ledger.release(claim, count_attempt=True)  # type: ignore[arg-type]
    with working(workplace):
        assert nobody.reached.wait(60)
        (held,) = workplace.ledger.open_chunks("job")
        assert held.suspect is None, "waiting for a server ends no worker"
        assert nobody.accepted == 1
    rest = workplace.chunk()
    assert (rest.size, rest.leased, rest.attempt) == (3, False, 1)


def test_its_rate_is_how_fast_images_could_be_begun(
    workplace: Workplace, nobody: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate depends on the number of slots, not on how long the servers are silent."""
    no_time(monkeypatch, 0.5)
    fetches(workplace, read_s=1.0, total_s=1.0, per_host=2)
    workplace.plan(at(nobody.url, 40, "one-host"))
    workplace.work(remote=True)
    one_host = workplace.ledger.job("job").rate
    with silent("") as hosts:
        port = hosts.url.rpartition(":")[2]
        many = [at(f"http://127.0.1.{n + 1}:{port}", 1, f"{n}-")[0] for n in range(40)]
        workplace.ledger.cancel("job")
        workplace.plan(many, "many")
        workplace.work(remote=True)
    assert 0 < one_host <= 20 < workplace.ledger.job("many").rate


class Slow(HashEmbedder):
    """A model that is slower than any server."""

    def embed_images(self, pixels: Pixels) -> Vectors:
        time.sleep(MODEL_S)
        return super().embed_images(pixels)


def test_its_rate_is_no_higher_than_that_of_the_model(workplace: Workplace, web: Site) -> None:
    """A higher rate would fetch images faster than the model takes them."""
    workplace.embedder = Slow()
    workplace.plan(at(f"{web.url}/", GOOD, "good"))
    workplace.work(remote=True)
    assert workplace.ledger.job("job").done == GOOD
    assert 0 < workplace.ledger.job("job").rate <= GOOD / MODEL_S
