"""What the clients raise.

Error
├── ProblemError      the service said no; `problem` is its RFC 9457 document
│   └── NotFound      404: no such collection, job or image
├── Unreachable       no clipfleet answers at the address, or it went away
└── JobFailed         a job that was waited for ended as `failed`; `job` is its last state
"""

from collections.abc import Mapping
from typing import Any

import httpx

from clipfleet.common.http.schemas import JobOut


class Error(Exception):
    """The root of what the clients raise."""


class ProblemError(Error):
    """The service said no. `slug` is the stable name of the problem, for programs."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        self.slug = str(problem.get("type") or "").rpartition(":")[2]
        self.title = str(problem.get("title") or f"HTTP {status}")
        self.detail = str(problem.get("detail") or self.title)
        super().__init__(status, problem)  # as called, so that it can be pickled

    def __str__(self) -> str:
        return self.detail


class NotFound(ProblemError):
    """There is no such collection, job or image."""


class Unreachable(Error):
    """No clipfleet answers at the address, or it went away while answering."""


class JobFailed(Error):
    """A job that was waited for ended as `failed`."""

    def __init__(self, job: JobOut) -> None:
        self.job = job
        super().__init__(job)

    def __str__(self) -> str:
        return f"job {self.job.id} failed: {self.job.error or 'no reason given'}"


def problem_of(response: httpx.Response) -> ProblemError:
    """The error that an answer with an error status stands for, whoever sent it."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": response.status_code, "detail": response.text[:300]}
    return problem_error(problem, response.status_code)


def problem_error(problem: Mapping[str, Any], status: int | None = None) -> ProblemError:
    """`status`: that of the answer; else the problem says it itself."""
    told = int(problem.get("status", 0)) if status is None else status
    kind = NotFound if told == 404 else ProblemError
    return kind(told, problem)
