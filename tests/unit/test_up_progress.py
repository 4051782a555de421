"""What `clipfleet up` shows while it starts and once it is ready."""

from pathlib import Path

import pytest

from clipfleet.cli import show, up


def test_without_a_terminal_a_line_says_what_is_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "LINE_INTERVAL_S", 0)
    waiting = up._waiting(show.err.status("starting"))
    waiting("worker-query: loading [a/b], 12 MB are here", 3.2)
    assert capsys.readouterr().err == (
        "clipfleet: starting worker-query: loading [a/b], 12 MB are here (3 s)\n"
    )


def test_lines_are_seconds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = up._waiting(show.err.status("starting"))
    for seconds in range(100):
        waiting("planner", seconds)
    assert capsys.readouterr().err == ""


def test_a_service_that_is_ready_names_the_page_and_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    up.announce("http://127.0.0.1:8000", Path("data"))
    up.announce("http://127.0.0.1:8123", Path("data"))
    first, page, command, _, other_page, other_command = capsys.readouterr().out.splitlines()
    assert first == "clipfleet is ready: http://127.0.0.1:8000  (data in data, Ctrl-C stops)"
    assert "http://127.0.0.1:8000/docs" in page
    assert command.endswith("clipfleet index FOLDER --label-from-folder")
    assert "http://127.0.0.1:8123/" in other_page
    assert other_command.endswith("--url http://127.0.0.1:8123")
