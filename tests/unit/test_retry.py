"""The source of a retry: all failures of a job. A folder that could not be listed is listed
again."""

import os
from pathlib import Path

import pytest

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Failure, Item, Outcome
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.workers.planner.retry_source import Retry
from support.source_helpers import access_to
from support.worker_harness import Planning


def failed(world: Planning, failures: list[Failure], name: str = "job") -> None:
    """Run a job that ends with these failures."""
    world.job(len(failures), name)
    while world.ledger.active():
        world.tick()
        while world.pending():
            claim = world.take()
            some, failures = failures[: len(claim.items)], failures[len(claim.items) :]
            world.ledger.mark(claim, Outcome(failures=tuple(some)))


def broken(number: int) -> Failure:
    item = Item(id=f"i{number}", uri="", read=f"blob:{number}", metadata={"n": number})
    return Failure.of(item, "read", "it was away", 1)


def seen(world: Planning, job: str, rounds: int = 200) -> list[Item]:
    """Every item of a job that is worked on, while two planners take turns."""
    items: list[Item] = []
    planners = [world.planner, world.new_planner("two")]
    for number in range(rounds):
        world.tick(planner=planners[number % 2], seconds=11)
        while world.pending():
            claim = world.take()
            items += claim.items
            world.ledger.mark(claim, Outcome(done=len(claim.items)))
        if world.ledger.job(job).finished_at:
            return items
    raise AssertionError("the retry does not end")


def test_the_failures_and_nothing_else_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.retry_source.PAGE", 7)
    world = Planning()
    failed(world, [broken(n) for n in range(100)])
    world.job_of({"type": "retry", "job": "job"}, "again", retry_of="job")
    items = seen(world, "again")
    assert [item.id for item in items] == [f"i{n}" for n in range(100)]
    assert items[42] == broken(42).item()
    assert world.ledger.job("again").state == "succeeded"
    assert world.ledger.job("job").failed == 100


def test_a_retry_whose_job_is_deleted_meanwhile_fails_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.retry_source.PAGE", 20)
    world = Planning()
    failed(world, [broken(n) for n in range(300)])
    world.job_of({"type": "retry", "job": "job"}, "again", retry_of="job")
    world.tick()
    world.ledger.remove("job")
    assert len(seen(world, "again")) < 300
    job = world.ledger.job("again")
    assert (job.state, job.error) == (
        "failed",
        "job job, whose failures are retried, was deleted",
    )


class Forgetful(MemoryLedger):
    """A ledger that is unavailable while the second page of failures is read."""

    calls = 0

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        self.calls += 1
        if self.calls == 2:
            raise Unavailable("Redis is away")
        return super().failures(job_id, limit, offset)


def test_while_the_ledger_is_away_a_retry_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet.workers.planner.retry_source.PAGE", 10)
    world = Planning(Forgetful())
    failed(world, [broken(n) for n in range(25)])
    world.job_of({"type": "retry", "job": "job"}, "again", retry_of="job")
    with pytest.raises(Unavailable):
        world.tick()
    assert len(seen(world, "again")) == 25
    assert world.ledger.job("again").state == "succeeded"


def unlisted(path: Path | str, problem: str) -> Failure:
    item = Item(id=str(path), uri=str(path), read=f"file:{path}", problem=problem)
    return Failure.of(item, "list", problem, 1)


def again(
    folder: Path, failures: list[Failure], after: str = "", *, listed: bool = True
) -> list[tuple[str, str | None, str]]:
    world = Planning(roots=(folder,))
    failed(world, failures)
    options = {"folder": {"path": str(folder), "label_from_folder": True}} if listed else {}
    source = Retry({"job": "job", **options}, world.ledger, access_to(folder))
    return [
        (os.path.relpath(entry.item.id, folder), entry.item.problem, entry.cursor)
        for entry in source.stream(after)
    ]


def test_a_folder_that_could_not_be_listed_is_listed_again(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "deeper").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "deeper/c.jpg", "note.txt"):
        (closed / name).touch()
    failures = [broken(0), unlisted(closed, "the folder cannot be read"), broken(1)]
    entries = again(tmp_path, failures)
    cursors = [cursor for _, _, cursor in entries]
    assert cursors == ["1", "1:a.jpg", "1:b.jpg", "1:deeper/c.jpg", "3"]
    assert [name for name, _, _ in entries][1:4] == [
        "closed/a.jpg",
        "closed/b.jpg",
        "closed/deeper/c.jpg",
    ]
    for number, cursor in enumerate(cursors, 1):
        assert again(tmp_path, failures, cursor) == entries[number:]


def test_a_link_that_leads_inside_by_now_goes_in(tmp_path: Path) -> None:
    (tmp_path / "real.jpg").touch()
    (tmp_path / "mended.jpg").symlink_to("real.jpg")
    (tmp_path / "outside.jpg").symlink_to("/etc/passwd")
    reason = "the link leads outside"
    names = ["mended.jpg", "outside.jpg", "gone.jpg", "gone-folder"]
    entries = again(tmp_path, [unlisted(tmp_path / name, reason) for name in names])
    assert [(name, problem) for name, problem, _ in entries] == [
        ("mended.jpg", None),
        ("outside.jpg", reason),
        ("gone.jpg", reason),
        ("gone-folder", reason),
    ]


def test_names_that_cannot_be_ids_fail_again_for_the_same_reason(tmp_path: Path) -> None:
    name = os.path.join(*["x" * 200] * 11) + ".jpg"
    problem = "id has more bytes than the limit"
    (entry,) = again(tmp_path, [unlisted(f"{tmp_path}/{name}", problem)])
    assert entry[1] == problem


def test_what_a_source_other_than_a_folder_could_not_list_fails_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    ((_, problem, _),) = again(tmp_path, [unlisted(tmp_path / "a.jpg", "bad row")], listed=False)
    assert problem == "bad row"
