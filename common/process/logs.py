"""Logging to standard error, one line per event: as text for people, or as JSON for machines.

The ids of what a line is about (`request_id`, `job_id`, …) are bound once, around the work, with
`log_context`.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

T = TypeVar("T")

NOISY = ("httpx", "kombu", "celery.worker.strategy", "celery.app.trace", "celery.redirected")
UVICORNS = ("uvicorn", "uvicorn.error", "uvicorn.access")
NO_CONTEXT: Mapping[str, str] = {}
REMIND_INTERVAL_S = 60.0

_context: ContextVar[Mapping[str, str]] = ContextVar("about", default=NO_CONTEXT)


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Add fields to every JSON line that this task or thread writes inside.

    Example:
        with log_context(job_id=job.id):
            log.info("planning")
    """
    before = _context.set({**_context.get(), **ids})
    try:
        yield
    finally:
        _context.reset(before)


def in_context(call: Callable[..., T]) -> Callable[..., T]:
    """Wrap a function for another thread, so that its lines carry this thread's log context.

    The wrapped function can be called once.
    """
    context = copy_context()
    return lambda *args: context.run(call, *args)


class OutageLog:
    """Log lines about a part that is away, for loops that retry about every second.

    It writes a line when the outage begins, when the reason changes, once a minute, and when the
    outage is over.

    Args:
        waiting: the beginning of each line, such as "waiting for Redis".
    """

    def __init__(self, log: logging.Logger, waiting: str) -> None:
        self._log, self._waiting = log, waiting
        self._reason = ""
        self._began_at = self._logged_at = 0.0

    def away(self, reason: str) -> None:
        """Record a failed try."""
        now = time.monotonic()
        if not self._reason:
            self._began_at = now
        if reason != self._reason or now - self._logged_at >= REMIND_INTERVAL_S:
            self._log.warning("%s: %s", self._waiting, reason)
            self._logged_at = now
        self._reason = reason

    def back(self) -> None:
        """Record a successful try."""
        if self._reason:
            self._log.warning(
                "%s: over after %.0f s", self._waiting, time.monotonic() - self._began_at
            )
        self._reason = ""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: the time, the level, the message, the log context.

    `log.info("…", extra={"fields": {...}})` adds fields to one line.

    Args:
        part: the value of the field `part`, such as "gateway".
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "part": self._part,
            **_context.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(kind: Literal["text", "json"] = "text", part: str = "") -> None:
    """Configure the root logger of this process.

    Args:
        kind: the format of the lines (`CLIPFLEET_LOG`).
        part: the part that this process is, for JSON lines.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter(part) if kind == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if kind == "json":
        logging.captureWarnings(True)
        for name in UVICORNS:  # uvicorn installs handlers of its own, which write text
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
