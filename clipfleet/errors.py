"""Errors of the clients.

Error
├── ProblemError      the service refused the request; `problem` is its RFC 9457 document
│   ├── NotFound      404: no such collection, job or image
│   └── InvalidRequest  422: an argument is not valid, whether the client or the service found it
├── Unreachable       no clipfleet answers at the address, or the connection broke
└── JobFailed         `wait` saw a job end as `failed`; `job` is its last state
"""

from collections.abc import Mapping, Sequence
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
    """There is no such collection, job or image."""


class InvalidRequest(ProblemError, ValueError):
    """An argument is not valid, or the collection does not allow the request (422).

    The client raises it before it sends anything, and for a service that refuses the request. It is
    a ValueError, too.

    Attributes:
        field: the name of the argument and the place in it, such as "vectors.3.values"; "" if the
            service names none.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        errors = problem.get("errors") or [{}]
        self.field = _without_location(str(errors[0].get("field") or ""))
        self.detail = _without_location(self.detail)


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
    kind = {404: NotFound, 422: InvalidRequest}.get(code, ProblemError)
    return kind(code, problem)


def invalid_argument(name: str, message: str, *, is_sentence: bool = False) -> InvalidRequest:
    """The error for an argument that is not valid.

    Args:
        name: name of the argument, and the place in it. "": it is about no single argument.
        message: what is wrong with it.
        is_sentence: the message is clear without the name before it.
    """
    error = invalid_arguments([(name, message)])
    if is_sentence:
        return InvalidRequest(422, {**error.problem, "detail": message})
    return error


def invalid_arguments(faults: Sequence[tuple[str, str]]) -> InvalidRequest:
    """The error for arguments that are not valid, as the document that a service would send.

    Args:
        faults: (name, message) of each, as in `invalid_argument`.
    """
    errors = [
        {"field": name, "message": message.removeprefix("Value error, ")}
        for name, message in faults
    ]
    first = errors[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    problem = {
        "type": "urn:problem:clipfleet:invalid-request",
        "title": "The request cannot be carried out as it stands",
        "status": 422,
        "detail": detail,
        "errors": errors,
    }
    return InvalidRequest(422, problem)


def _without_location(text: str) -> str:
    """A field, or a text that begins with one, without the part of the request that it is in."""
    for part in ("body.", "query.", "header.", "path."):
        text = text.removeprefix(part)
    return text
