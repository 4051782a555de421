"""Errors of the clients.

Error
├── ProblemError      the service refused the request; `problem` is its RFC 9457 document
│   └── NotFound      404, 410: no such collection, job or image, or not any more
├── Unreachable       no clipfleet answers at the address, or the connection broke
└── JobFailed         `wait` saw a job end as `failed`; `job` is its last state
"""

from collections.abc import Mapping
from typing import Any

import httpx

from clipfleet.common.http.schemas import JobOut


class Error(Exception):
    """The base class of all errors of the clients."""


class ProblemError(Error):
    """The service refused a request.

    Attributes:
        status: HTTP status.
        problem: the RFC 9457 document.
        slug: stable name of the kind of problem, such as "not-found".
        title: short text for this kind of problem.
        detail: text for this problem.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        self.slug = str(problem.get("type") or "").rpartition(":")[2]
        self.title = str(problem.get("title") or f"HTTP {status}")
        self.detail = str(problem.get("detail") or self.title)
        super().__init__(status, problem)  # the arguments of __init__, so that it can be pickled

    def __str__(self) -> str:
        return self.detail


class NotFound(ProblemError):
    """There is no such collection, job or image, or its original is not there any more."""


class Unreachable(Error):
    """No clipfleet answers at the address, or the connection broke."""


class JobFailed(Error):
    """A job ended as `failed` while the client waited for it.

    Attributes:
        job: the job as it ended.
    """

    def __init__(self, job: JobOut) -> None:
        self.job = job
        super().__init__(job)

    def __str__(self) -> str:
        return f"job {self.job.id} failed: {self.job.error or 'no reason given'}"


def problem_of(response: httpx.Response) -> ProblemError:
    """The error for a response with an error status. A proxy may have sent it."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": response.status_code, "detail": response.text[:300]}
    return problem_error(problem, response.status_code)


def problem_error(problem: Mapping[str, Any], status: int | None = None) -> ProblemError:
    """The error for a problem document.

    Args:
        problem: the document.
        status: HTTP status of the response. Default: the status in the document.
    """
    code = int(problem.get("status", 0)) if status is None else status
    kind = NotFound if code in (404, 410) else ProblemError
    return kind(code, problem)
