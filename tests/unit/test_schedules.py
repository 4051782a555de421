"""When sources run. The clock, the ledger and the registry are in memory."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.sources.scheduler import (
    BLOCKED_S,
    HOLD_S,
    MAX_BACKOFF_S,
    MAX_FOLLOW_S,
    NO_ROOM_S,
    next_run,
)
from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Job, NewJob
from support.scheduling import FOLDER, Scheduling


@pytest.fixture
def scheduling(tmp_path: Path) -> Scheduling:
    return Scheduling(tmp_path)


def test_the_first_run_begins_at_once_and_the_next_ones_in_the_interval(
    scheduling: Scheduling,
) -> None:
    assert scheduling.put(interval="15m")["interval"] == 900
    began = scheduling.clock.now
    (first,) = scheduling.later()
    shown = scheduling.show()
    assert (shown["state"], shown["running"]["job"]) == ("running", first)
    assert (shown["running"]["cause"], shown["next_run"]) == ("schedule", began + 900)
    scheduling.end()
    assert scheduling.later(10) == []
    shown = scheduling.show()
    assert (shown["state"], shown["running"]) == ("scheduled", None)
    assert (shown["last_run"]["job"], shown["last_run"]["state"]) == (first, "succeeded")
    assert scheduling.later(889) == []
    assert len(scheduling.later(1)) == 1
    assert scheduling.show()["next_run"] == began + 1_800


def test_a_source_without_an_interval_does_not_run_by_itself(scheduling: Scheduling) -> None:
    assert scheduling.put()["state"] == "idle"
    assert [scheduling.later(3_600) for _ in range(3)] == [[], [], []]


def test_runs_that_were_missed_are_made_up_once(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    began = scheduling.clock.now
    scheduling.later()
    scheduling.end()
    scheduling.later(2)
    assert len(scheduling.later(10 * 60)) == 1
    assert scheduling.show()["next_run"] == began + 11 * 60
    scheduling.end()
    assert scheduling.later(2) == []


def test_a_run_waits_for_the_end_of_the_one_before(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    scheduling.later()
    for _ in range(5):
        assert scheduling.later(60) == []
    scheduling.end()
    scheduling.later(MAX_FOLLOW_S)
    assert len(scheduling.jobs()) == 2
    assert scheduling.show()["last_run"]["state"] == "succeeded"


@pytest.mark.parametrize("jump", [86_400 * 400, -86_400 * 400, -30])
def test_a_clock_that_is_set_runs_a_source_once_and_goes_on(
    scheduling: Scheduling, jump: float
) -> None:
    scheduling.put(interval=60)
    scheduling.later()
    scheduling.end()
    scheduling.later(2)
    before = len(scheduling.jobs())
    scheduling.later(jump)
    assert len(scheduling.jobs()) - before <= 1
    while len(scheduling.jobs()) == before:  # within an interval, and the hour of a set-back clock
        scheduling.later(5)
        assert scheduling.clock.now < 1_000_000.0 + jump + MAX_BACKOFF_S + 200
    scheduling.end()
    scheduling.later(2)
    assert scheduling.clock.now < scheduling.show()["next_run"] <= scheduling.clock.now + 60


def test_next_run_keeps_the_distance_of_the_schedule() -> None:
    assert next_run(100, 60, 100) == 160
    assert next_run(100, 60, 159.9) == 160
    assert next_run(100, 60, 160) == 220
    assert next_run(100, 60, 1_000) == 1_060
    assert next_run(100, 60, 40) == 160


def test_a_paused_source_runs_after_it_is_resumed_and_once(scheduling: Scheduling) -> None:
    scheduling.put(interval=60, paused=True)
    assert scheduling.later(600) == []
    shown = scheduling.show()
    assert (shown["state"], shown["next_run"]) == ("paused", None)
    path = "POST /v1/collections/acme/sources/s"
    assert scheduling.world.ask(f"{path}/resume", "admin").json()["paused"] is False
    assert len(scheduling.later()) == 1
    assert scheduling.world.ask(f"{path}/pause", "admin").json()["paused"] is True
    scheduling.end()
    assert scheduling.later(600) == []
    assert scheduling.show()["last_run"]["state"] == "succeeded"


def test_a_run_on_request_changes_no_schedule(scheduling: Scheduling) -> None:
    scheduling.put(interval=60, paused=True)
    before = scheduling.record().next_run
    path = "POST /v1/collections/acme/sources/s/run"
    started = scheduling.world.ask(path, "admin")
    assert (started.status_code, started.json()["source"]) == (202, "/pictures")
    assert started.headers["location"] == f"/v1/jobs/{started.json()['id']}"
    again = scheduling.world.ask(path, "admin")
    assert (again.status_code, again.json()["job"]) == (409, started.json()["id"])
    scheduling.end()
    assert scheduling.world.ask(path, "admin").status_code == 202
    assert scheduling.record().next_run == before


def test_a_job_that_was_deleted_ends_its_run(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    (job,) = scheduling.later()
    scheduling.ledger.remove(job)
    scheduling.later(MAX_FOLLOW_S)
    assert scheduling.show()["last_run"]["state"] == "deleted"
    assert len(scheduling.later(60)) == 1


def test_full_queues_postpone_a_run_and_lose_none(tmp_path: Path) -> None:
    scheduling = Scheduling(tmp_path, {"limits": {"active_jobs": 2}})
    scheduling.put("a", interval=60)
    scheduling.put("b", interval=60)
    (first,) = scheduling.later()  # job-other is active, too
    blocked = next(name for name in "ab" if scheduling.show(name)["state"] == "blocked")
    shown = scheduling.show(blocked)
    assert "the limit is 2 (CLIPFLEET_LIMITS__ACTIVE_JOBS)" in shown["problem"]
    assert shown["running"] is None
    assert scheduling.later(NO_ROOM_S) == []
    scheduling.end(first)
    (second,) = scheduling.later(NO_ROOM_S)
    shown = scheduling.show(blocked)
    assert (shown["running"]["job"], shown["problem"]) == (second, None)


REVOKED: list[tuple[dict[str, Any] | None, str]] = [
    (None, "the API key 'acme-write', which registered the source, was revoked"),
    ({"expires_at": "2020-01-31T00:00:00Z"}, "expired at 2020-01-31T00:00:00Z"),
    ({"scopes": ["read"]}, "may not write to 'acme' any more"),
    ({"collections": ["other"]}, "may not write to 'acme' any more"),
    ({"roots": []}, "'/pictures' is outside the folders that may be indexed"),
]


@pytest.mark.parametrize(("change", "problem"), REVOKED)
def test_a_key_without_its_rights_stops_its_sources(
    scheduling: Scheduling, change: dict[str, Any] | None, problem: str
) -> None:
    shown = scheduling.put(key="acme-write", interval=60)
    assert shown["key"] == "acme-write"
    scheduling.later()
    scheduling.end()
    scheduling.later(2)
    scheduling.write_keys(**{"acme-write": change})
    assert scheduling.later(60) == []
    shown = scheduling.show()
    assert shown["state"] == "blocked"
    assert problem in shown["problem"]
    refused = scheduling.world.ask("POST /v1/collections/acme/sources/s/run", "admin")
    assert (refused.status_code, refused.json()["detail"]) == (403, shown["problem"])
    assert [scheduling.later(BLOCKED_S) for _ in range(9)] == [[]] * 9
    assert len(scheduling.jobs()) == 1
    scheduling.put(key="admin", interval=60)
    assert len(scheduling.later()) == 1
    assert scheduling.show()["problem"] is None


def test_a_source_that_may_be_read_again_runs(scheduling: Scheduling) -> None:
    scheduling.put(key="acme-write", interval=60)
    scheduling.write_keys(**{"acme-write": {"roots": []}})
    assert scheduling.later() == []
    scheduling.write_keys(**{"acme-write": {"roots": ["/pictures"]}})
    (job,) = scheduling.later(BLOCKED_S)
    assert scheduling.show()["problem"] is None
    grant = scheduling.ledger.job(job).new.grant
    assert grant
    assert grant.roots == ("/pictures",)
    assert scheduling.ledger.job(job).key == "acme-write"


def test_a_source_that_cannot_be_read_is_tried_less_often(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    error = "/pictures cannot be read: Permission denied"
    times: list[float] = []
    while len(times) < 5:
        if scheduling.later(5):
            times.append(scheduling.clock.now)
            scheduling.end(error=error)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == pytest.approx([60, 120, 240, 480], abs=10)
    scheduling.later(5)
    assert scheduling.show()["problem"] == f"its last job failed: {error}"
    assert scheduling.show()["last_run"]["error"] == error
    scheduling.later(480 * 2)
    scheduling.end()
    scheduling.later(MAX_FOLLOW_S)
    assert scheduling.show()["problem"] is None
    assert len(scheduling.later(60)) == 1


class Killed(BaseException):
    """Ends the scheduler in the middle of a step, as kill -9 does."""


def _kill_before_creation(scheduling: Scheduling, create: Callable[..., Job]) -> Callable[..., Job]:
    def killed(*_: Any, **__: Any) -> Job:
        scheduling.ledger.create = create  # type: ignore[method-assign]
        raise Killed

    return killed


def _kill_after_creation(scheduling: Scheduling, create: Callable[..., Job]) -> Callable[..., Job]:
    def killed(new: NewJob, **options: Any) -> Job:
        scheduling.ledger.create = create  # type: ignore[method-assign]
        create(new, **options)
        raise Killed

    return killed


@pytest.mark.parametrize("kill", [_kill_before_creation, _kill_after_creation])
def test_a_scheduler_that_is_killed_loses_and_doubles_no_run(
    scheduling: Scheduling, kill: Callable[..., Callable[..., Job]]
) -> None:
    scheduling.put(interval=60)
    create = scheduling.ledger.create
    scheduling.ledger.create = kill(scheduling, create)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scheduling.later()
    scheduling.later(HOLD_S)
    (job,) = scheduling.jobs()
    assert scheduling.show()["running"]["job"] == job.id
    scheduling.end()
    scheduling.later(MAX_FOLLOW_S)
    assert len(scheduling.jobs()) == 1
    assert scheduling.show()["last_run"]["job"] == job.id


def test_a_run_that_was_begun_is_given_up_when_its_key_is_revoked_meanwhile(
    scheduling: Scheduling,
) -> None:
    scheduling.put(key="acme-write", interval=60)
    create = scheduling.ledger.create
    scheduling.ledger.create = _kill_before_creation(scheduling, create)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scheduling.later()
    scheduling.write_keys(**{"acme-write": None})
    scheduling.later(HOLD_S)
    assert scheduling.jobs() == []
    shown = scheduling.show()
    assert (shown["state"], shown["running"]) == ("blocked", None)


def test_a_mirror_of_the_same_source_is_waited_for(scheduling: Scheduling) -> None:
    mirrored = {**FOLDER, "mirror": {}}
    other = scheduling.world.ask("POST /v1/collections/acme/jobs", "admin", json=mirrored)
    assert other.status_code == 202
    scheduling.put(interval=60, mirror={})
    assert scheduling.later() == []
    assert f"job {other.json()['id']} mirrors this source" in scheduling.show()["problem"]
    scheduling.ledger.cancel(other.json()["id"])
    assert len(scheduling.later(NO_ROOM_S)) == 1
    assert scheduling.show()["problem"] is None


def test_a_round_without_redis_is_repeated(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    create = scheduling.ledger.create

    def away(*_: Any, **__: Any) -> Job:
        scheduling.ledger.create = create  # type: ignore[method-assign]
        raise Unavailable("Redis is away")

    scheduling.ledger.create = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        scheduling.later()
    assert len(scheduling.later(HOLD_S)) == 1


def test_the_sources_of_a_deleted_collection_are_deleted(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    assert scheduling.world.ask("DELETE /v1/collections/acme", "admin").status_code == 204
    assert scheduling.registry.find("acme", "s") is None
    scheduling.world.add("acme2")
    assert scheduling.later(600) == []


def test_a_source_whose_collection_is_gone_is_deleted_at_its_next_look(
    scheduling: Scheduling,
) -> None:
    scheduling.put(interval=60)
    acme = scheduling.world.parts.catalogue.find("acme")
    assert acme
    assert scheduling.world.parts.catalogue.remove(acme)  # the gateway was killed after this
    assert scheduling.later() == []
    assert scheduling.registry.find("acme", "s") is None
