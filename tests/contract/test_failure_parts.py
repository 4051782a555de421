"""Jobs with many failures: Redis keeps the first, the blob store the rest in parts."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.common.blobs import Blobs, BlobsUnavailable
from clipfleet.common.ledger import Claim, Failure, Ledger, Outcome
from clipfleet.common.ledger import redis as redis_ledger
from clipfleet.common.ledger.failure_parts import FailureParts, FailuresLost
from clipfleet.common.ledger.redis import KEPT_FAILURES, RedisLedger
from clipfleet.workers.planner.retry_source import Retry
from clipfleet.workers.sources import SourceError
from support.ledgers import Names, claimed, failure, items, planned, requeue
from support.source_helpers import access_to

IDS = [f"i{n:05}" for n in range(2_000)]


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(str(tmp_path / "blobs"))


@pytest.fixture
def ledger(client: "redis.Redis", blobs: Blobs) -> RedisLedger:
    return RedisLedger(client, blobs=blobs)


def parts(blobs: Blobs, job: str = "j") -> list[str]:
    root = Path(blobs._root) / "failures" / job
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def fail(ledger: Ledger, claim: Claim, failed: Sequence[Failure] = ()) -> bool:
    failed = failed or [failure(item.id) for item in claim.items]
    done = len(claim.items) - len(failed)
    return ledger.mark(claim, Outcome(done=done, failures=tuple(failed)))


def chunks(size: int, upto: int = len(IDS)) -> list[tuple[str, ...]]:
    return [tuple(IDS[n : n + size]) for n in range(0, upto, size)]


def ids(failures: Sequence[Failure]) -> list[str]:
    return [entry.id for entry in failures]


def test_redis_keeps_the_first_failures_and_every_one_is_read(
    ledger: RedisLedger, client: "redis.Redis", blobs: Blobs
) -> None:
    planned(ledger, *chunks(250))
    for _ in range(8):
        assert fail(ledger, claimed(ledger))
    assert client.llen("clipfleet:job:j:failures") == KEPT_FAILURES == 1_000
    assert len(parts(blobs)) == 4
    job = ledger.job("j")
    assert (job.state, job.failed, job.total) == ("failed", 2_000, 2_000)
    assert ids(ledger.failures("j", 5_000)) == IDS
    for begin, limit in ((0, 100), (950, 100), (999, 1), (1_000, 1), (1_249, 2), (1_999, 9)):
        assert ids(ledger.failures("j", limit, begin)) == IDS[begin : begin + limit]
    assert ledger.failures("j", 10, 2_000) == []


def test_failures_with_much_metadata_leave_redis_sooner(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    planned(ledger, *chunks(100, 200))
    large = {"text": "x" * 20_000}
    for _ in range(2):
        claim = claimed(ledger)
        failed = [failure(item.id).model_copy(update={"metadata": large}) for item in claim.items]
        fail(ledger, claim, failed)
    assert client.llen("clipfleet:job:j:failures") == 0
    assert int(client.memory_usage("clipfleet:job:j:failures:parts") or 0) < 1_000
    failures = ledger.failures("j", 1_000)
    assert ids(failures) == IDS[:200]
    assert failures[199].metadata == large


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis keep one failure of a job, so that two are too many."""
    monkeypatch.setattr(redis_ledger, "KEPT_FAILURES", 1)


@pytest.mark.usefixtures("few")
def test_a_mark_that_is_sent_twice_counts_its_failures_once(
    ledger: RedisLedger, blobs: Blobs
) -> None:
    planned(ledger, ("a", "b"), ("c",))
    claim = claimed(ledger)
    assert fail(ledger, claim)
    assert not fail(ledger, claim)
    assert ids(ledger.failures("j")) == ["a", "b"]
    assert len(parts(blobs)) == 1
    assert ledger.job("j").failed == 2


class Dying(FailureParts):
    """Parts of a worker that ends right after it has written one."""

    def write(self, job_id: str, name: str, failures: Sequence[Failure]) -> None:
        super().write(job_id, name, failures)
        raise SystemExit


@pytest.mark.usefixtures("few")
def test_a_worker_that_dies_between_part_and_mark_loses_and_doubles_nothing(
    ledger: RedisLedger, client: "redis.Redis", blobs: Blobs, clock: Any
) -> None:
    ledger = RedisLedger(client, clock, blobs=blobs)
    planned(ledger, ("a", "b"))
    mortal = RedisLedger(client, clock, blobs=blobs)
    vars(mortal)["_parts"] = Dying(blobs)
    with pytest.raises(SystemExit):
        fail(mortal, claimed(mortal))
    assert len(parts(blobs)) == 1
    assert ledger.failures("j") == []
    assert ledger.job("j").failed == 0
    clock.now += 60
    assert requeue(ledger) == 1
    assert fail(ledger, claimed(ledger))
    assert ids(ledger.failures("j")) == ["a", "b"]
    assert ledger.job("j").failed == 2
    ledger.remove("j")
    assert parts(blobs) == [], "the part that no mark names goes with the job"


@pytest.mark.usefixtures("few")
def test_a_stale_holder_writes_a_part_that_counts_for_nothing(
    client: "redis.Redis", blobs: Blobs, clock: Any
) -> None:
    ledger = RedisLedger(client, clock, blobs=blobs)
    planned(ledger, ("a", "b"))

    class Slow(FailureParts):
        """The lease runs out during the write, and another worker completes the chunk."""

        def write(self, job_id: str, name: str, failures: Sequence[Failure]) -> None:
            super().write(job_id, name, failures)
            clock.now += 60
            requeue(ledger)
            assert fail(ledger, claimed(ledger))

    slow = RedisLedger(client, clock, blobs=blobs)
    vars(slow)["_parts"] = Slow(blobs)
    assert not fail(slow, claimed(slow))
    assert ids(ledger.failures("j")) == ["a", "b"]
    assert ledger.job("j").failed == 2


@pytest.mark.usefixtures("few")
def test_a_part_that_is_written_while_the_job_is_removed_goes_too(
    ledger: RedisLedger, client: "redis.Redis", blobs: Blobs
) -> None:
    planned(ledger, ("a", "b"))

    class Late(FailureParts):
        def write(self, job_id: str, name: str, failures: Sequence[Failure]) -> None:
            ledger.remove(job_id)
            super().write(job_id, name, failures)

    late = RedisLedger(client, blobs=blobs)
    vars(late)["_parts"] = Late(blobs)
    assert not fail(late, claimed(late))
    assert parts(blobs) == []


@pytest.mark.usefixtures("few")
def test_while_the_blob_store_is_away_a_mark_counts_nothing_and_comes_again(
    ledger: RedisLedger, tmp_path: Path
) -> None:
    planned(ledger, ("a", "b"))
    claim = claimed(ledger)
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(BlobsUnavailable):
        fail(ledger, claim)
    assert ledger.job("j").failed == 0
    (tmp_path / "blobs").unlink()
    assert fail(ledger, claim)
    assert ids(ledger.failures("j")) == ["a", "b"]


@pytest.mark.usefixtures("few")
def test_a_retry_reads_every_failure_from_every_cursor(
    ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.retry_source.PAGE", 3)
    planned(ledger, ("a",), ("b", "c"), ("d",), ("e", "f", "g", "h"))
    for _ in range(4):
        fail(ledger, claimed(ledger))
    source = Retry({"job": "j"}, ledger, access_to())
    whole = list(source.stream(""))
    assert [entry.item.id for entry in whole] == list("abcdefgh")
    assert source.count() == 8
    for n, entry in enumerate(whole):
        assert list(source.stream(entry.cursor)) == whole[n + 1 :]


@pytest.mark.parametrize("content", [None, b"", b'{"id": "a", '])
@pytest.mark.usefixtures("few")
def test_a_part_that_the_blob_store_lost_is_said_and_fails_the_retry(
    ledger: RedisLedger, blobs: Blobs, content: bytes | None
) -> None:
    """The part is missing, empty or cut short, as after a power failure."""
    planned(ledger, ("a", "b"))
    fail(ledger, claimed(ledger))
    (name,) = parts(blobs)
    blobs.delete(f"failures/j/{name}")
    if content is not None:
        blobs.put(f"failures/j/{name}", io.BytesIO(content))
    with pytest.raises(FailuresLost, match="lost failures of job j"):
        ledger.failures("j")
    with pytest.raises(SourceError, match="lost failures of job j"):
        list(Retry({"job": "j"}, ledger, access_to()).stream(""))


@pytest.mark.usefixtures("few")
def test_failures_that_a_planner_gives_up_go_into_parts_too(
    ledger: RedisLedger, blobs: Blobs, clock: Any, client: "redis.Redis"
) -> None:
    ledger = RedisLedger(client, clock, Names(), blobs)
    planned(ledger, ("a",), ("b",))
    for _ in range(2):
        claimed(ledger)
    clock.now += 60
    for chunk in ledger.open_chunks("j"):
        (item,) = ledger.items("j", chunk.name)
        assert ledger.quarantine("j", chunk, failure(item.id))
        assert not ledger.quarantine("j", chunk, failure(item.id))
    assert ids(ledger.failures("j")) == ["a", "b"]
    assert len(parts(blobs)) == 1


@pytest.mark.usefixtures("few")
def test_a_job_that_is_planned_again_lists_no_failure_twice(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    planned(ledger, ("a", "b"), ("c",))
    client.hincrby("clipfleet:job:j", "done", 1)
    for _ in range(2):
        fail(ledger, claimed(ledger))
    assert ledger.failures("j") == []
    lease = ledger.lease("j", "p", 30)
    assert lease
    ledger.plan("j", lease.token, items("a", "b", "c"), "", "c")
    ledger.finish_planning("j", lease.token, "c")
    fail(ledger, claimed(ledger))
    assert ids(ledger.failures("j")) == ["a", "b", "c"]


@pytest.mark.usefixtures("few")
def test_of_two_jobs_the_one_that_stays_keeps_its_parts(ledger: RedisLedger, blobs: Blobs) -> None:
    planned(ledger, ("a", "b"))
    planned(ledger, ("c", "d"), job="k")
    for _ in range(2):
        fail(ledger, claimed(ledger))
    ledger.remove("j")
    assert ids(ledger.failures("k")) == ["c", "d"]
    assert len(parts(blobs, "k")) == 1


@pytest.mark.usefixtures("few")
def test_a_claim_that_keeps_items_writes_a_part_for_each_of_its_marks(
    ledger: RedisLedger, blobs: Blobs
) -> None:
    planned(ledger, tuple("abcdefghijkl"))
    claim = claimed(ledger)
    for kept in (8, 4, 0):
        failed = tuple(failure(item.id) for item in claim.items[: len(claim.items) - kept])
        remaining = claim.items[len(claim.items) - kept :]
        assert ledger.mark(claim, Outcome(failures=failed, kept=remaining))
        claim = claim.of(remaining)
    assert len(parts(blobs)) >= 2
    assert ids(ledger.failures("j")) == list("abcdefghijkl")
    assert ids(ledger.failures("j", 3, 5)) == list("fgh")
