"""The progress of a job that is shown while a client waits."""

import io
from typing import Any

import pytest
from rich.console import Console

from clipfleet import Job
from clipfleet.client.progress import LINE_INTERVAL_S, line, lines, listening
from support.clients import job


def a_job(state: str = "running", **known: Any) -> Job:
    return Job.model_validate(job(state, **known))


def test_a_line_has_counts_rate_and_the_services_own_estimate() -> None:
    now = a_job(total=1_200, done=300, skipped=20, failed=1, rate=45.2, eta_s=19.6)
    assert line(now) == "running, 321 of 1,200 images, 1 failed, 45/s, 0:00:20 left"


def test_what_is_not_known_yet_is_not_said() -> None:
    assert line(a_job("queued")) == "queued"
    assert line(a_job(total=5, done=1, rate=0.25)) == "running, 1 of 5 images, 0.25/s"


def test_a_name_from_outside_does_not_reach_the_terminal_as_a_command() -> None:
    assert line(a_job(waiting="for \x1b[2Jx")) == "for \\x1b[2Jx"


def test_without_a_terminal_there_is_a_line_at_every_change_and_now_and_then() -> None:
    out, now = io.StringIO(), 100.0
    tell = lines(Console(file=out, soft_wrap=True), lambda: now)
    tell(a_job("queued"))
    tell(a_job("queued"))
    tell(a_job(total=9))
    tell(a_job(total=9, done=1))
    now += LINE_INTERVAL_S
    tell(a_job(total=9, done=2))
    expected = ["j1: queued", "j1: running, 0 of 9 images", "j1: running, 2 of 9 images"]
    assert out.getvalue().splitlines() == expected


def terminal(out: io.StringIO, kind: str) -> Console:
    return Console(
        file=out, force_terminal=True, width=100, color_system=None, _environ={"TERM": kind}
    )


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_a_terminal_that_cannot_show_a_bar_gets_lines(kind: str) -> None:
    out = io.StringIO()
    with listening(True, terminal(out, kind)) as tell:
        tell(a_job("queued"))
    assert out.getvalue() == "j1: queued\n"


def test_where_no_terminal_is_lines_are_chosen() -> None:
    out = io.StringIO()
    with listening(True, Console(file=out)) as tell:
        tell(a_job("queued"))
    assert out.getvalue() == "j1: queued\n"


def test_a_terminal_has_a_bar_that_bears_a_total_which_is_unknown_and_then_grows() -> None:
    out = io.StringIO()
    with listening(True, terminal(out, "xterm")) as tell:
        for now in (
            a_job("queued"),
            a_job(waiting="for a worker with the model " + 60 * "x"),
            a_job(total=100, done=50, rate=10.0, eta_s=5.0),
            a_job(total=5_000, done=60, rate=10.0, eta_s=494.0),
        ):
            tell(now)
    last = out.getvalue().rpartition("\r")[0]
    assert out.getvalue().count("waiting: for a worker with the model") == 1
    assert "60/5000" in last
    assert "10/s, 0:08:14 left" in last


def test_a_listener_hears_the_job_itself() -> None:
    heard: list[Job] = []
    with listening(heard.append) as tell:
        tell(a_job("queued"))
    assert [update.state for update in heard] == ["queued"]
