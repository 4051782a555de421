"""One line per event on standard error: for people, or as JSON for machines.

What a line is about (`request_id`, `job_id`, …) is said once, around the work, with `about`.
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
NOTHING: Mapping[str, str] = {}
REMIND_S = 60.0

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=NOTHING)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Every line written within, by this task or thread, carries these."""
    before = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(before)


def in_context(call: Callable[..., T]) -> Callable[..., T]:
    """For another thread, whose lines are then about the same as ours. To be called once."""
    context = copy_context()
    return lambda *args: context.run(call, *args)


class OutageLog:
    """Log lines about a part that is away, for loops that try again every second or so.

    A line when it begins, whenever the reason is another one, once a minute, and when it is over.

    Args:
        waiting: what is done meanwhile; begins the line.
    """

    def __init__(self, log: logging.Logger, waiting: str) -> None:
        self._log, self._waiting = log, waiting
        self._reason = ""
        self._began_at = self._logged_at = 0.0

    def away(self, reason: str) -> None:
        now = time.monotonic()
        if not self._reason:
            self._began_at = now
        if reason != self._reason or now - self._logged_at >= REMIND_S:
            self._log.warning("%s: %s", self._waiting, reason)
            self._logged_at = now
        self._reason = reason

    def back(self) -> None:
        if self._reason:
            self._log.warning(
                "%s: over after %.0f s", self._waiting, time.monotonic() - self._began_at
            )
        self._reason = ""


class JsonFormatter(logging.Formatter):
    """`extra={"said": {...}}` adds fields of one line's own."""

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
            **_about.get(),
            **getattr(record, "said", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(kind: Literal["text", "json"] = "text", part: str = "") -> None:
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter(part) if kind == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if kind == "json":
        logging.captureWarnings(True)
        for name in UVICORNS:  # it writes for people, with a handler of its own
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
