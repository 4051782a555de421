"""JSON log lines: their fields and the context that they carry."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from clipfleet.common.process.logs import (
    UVICORNS,
    OutageLog,
    configure_logs,
    in_context,
    log_context,
)

log = logging.getLogger("clipfleet.things")


@pytest.fixture
def whole_logging() -> Iterator[None]:
    """Restore the state of logging after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()  # pytest's own, which would be closed
    others = {name: logging.getLogger(name) for name in UVICORNS}
    kept = {name: (list(logger.handlers), logger.propagate) for name, logger in others.items()}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, logger in others.items():
        logger.handlers[:], logger.propagate = kept[name]


class Written:
    """The standard error output since logging was configured."""

    def __init__(self, kind: Literal["text", "json"]) -> None:
        with redirect_stderr(StringIO()) as self._stream:
            configure_logs(kind, "worker")

    def text(self) -> str:
        return self._stream.getvalue()

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def lines(whole_logging: None) -> Written:  # noqa: ARG001
    return Written("json")


def test_a_line_says_when_how_bad_who_and_what(lines: Written) -> None:
    log.warning("%d things in\ntwo lines: é", 3)
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "clipfleet.things",
        "message": "3 things in\ntwo lines: é",
        "part": "worker",
    }


def test_an_exception_is_in_the_same_line(lines: Written) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["message"] == "it failed"
    assert "ValueError: broken" in line["error"]


def test_lines_say_what_they_are_about_within_and_not_after(lines: Written) -> None:
    with log_context(job_id="j"):
        with log_context(chunk_id="j/1"):
            log.info("in")
        log.info("between")
    log.info("out", extra={"fields": {"status": 200}})
    contexts = [
        {name: line.get(name) for name in ("job_id", "chunk_id", "status")} for line in lines()
    ]
    assert contexts == [
        {"job_id": "j", "chunk_id": "j/1", "status": None},
        {"job_id": "j", "chunk_id": None, "status": None},
        {"job_id": None, "chunk_id": None, "status": 200},
    ]


def test_work_on_other_threads_is_about_the_same(lines: Written) -> None:
    with ThreadPoolExecutor(4) as threads:
        for job in ("a", "b", "c"):
            with log_context(job_id=job):
                threads.submit(in_context(log.info), "for %s", job)
        threads.submit(log.info, "for nobody")
    job_ids = {line["message"]: line.get("job_id") for line in lines()}
    assert job_ids == {"for a": "a", "for b": "b", "for c": "c", "for nobody": None}


def test_the_web_servers_lines_are_json_too(lines: Written) -> None:
    logging.getLogger("uvicorn.error").error("it broke")
    (line,) = lines()
    assert (line["logger"], line["message"]) == ("uvicorn.error", "it broke")


def test_what_cannot_be_json_is_written_as_text(lines: Written) -> None:
    log.info("odd", extra={"fields": {"thing": {1}}})
    assert [line["thing"] for line in lines()] == ["{1}"]


@pytest.mark.usefixtures("whole_logging")
def test_lines_for_people_stay_as_they_are() -> None:
    written = Written("text")
    with log_context(job_id="j"):
        log.info("hello")
    assert written.text().endswith(" INFO clipfleet.things: hello\n")


def test_an_outage_is_told_when_it_begins_when_its_reason_changes_and_when_it_ends(
    lines: Written,
) -> None:
    outage = OutageLog(log, "waiting for Redis")
    outage.back()
    for reason in ("no answer", "no answer", "no writes", "no writes"):
        outage.away(reason)
    outage.back()
    outage.back()
    outage.away("no writes")
    assert [line["message"] for line in lines()] == [
        "waiting for Redis: no answer",
        "waiting for Redis: no writes",
        "waiting for Redis: over after 0 s",
        "waiting for Redis: no writes",
    ]


def test_a_long_outage_is_told_again(lines: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1000.0, 1059.0, 1060.0, 1119.0, 1125.0))
    # Only the clock of this module: event loops of other threads would sleep by the wrong one.
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("clipfleet.common.process.logs.time", clock)
    outage = OutageLog(log, "waiting")
    for _ in range(4):
        outage.away("no answer")
    outage.back()
    assert [line["message"] for line in lines()] == [
        "waiting: no answer",
        "waiting: no answer",
        "waiting: over after 125 s",
    ]
