"""Errors of the clients.

Error
├── ProblemError      the service refused the request; `problem` is its RFC 9457 document
│   ├── NotFound      404, 410: no such collection, job or image, or not any more
│   └── InvalidRequest  422: an argument is not valid, whether the client or the service found it
├── Unreachable       no clipfleet answers at the address, or the connection broke
├── JobFailed         `wait` saw a job end as `failed`; `job` is its last state
└── WebhookError      a request is not a webhook that the service has signed
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
    """There is no such collection, job or image, or its original is not there any more.

    Attributes:
        collection: the name of the collection, if that is what does not exist; else "".
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.collection = str(problem.get("collection") or "")
        if self.collection:
            self.detail = (
                f"there is no collection {self.collection!r}: create_collection() creates it, and "
                "collections() lists those that there are"
            )


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
        named = errors[0].get("field") or problem.get("field") or ""
        self.field = _without_location(str(named))
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


class WebhookError(Error):
    """A request is not a webhook that the service has signed with the secret a moment ago."""


def problem_of(response: httpx.Response) -> Error:
    """The error for a response with an error status.

    A server or a proxy that is not clipfleet may have sent it. Its text is not shown: it may be a
    page for browsers.
    """
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return problem_error(problem, response.status_code)
    return _foreign_error(response)


def _foreign_error(response: httpx.Response) -> Error:
    status, address = response.status_code, _address(response)
    sender = response.headers.get("Server", "")[:60]
    by = f" ({sender})" if sender.isprintable() and sender else ""
    if response.has_redirect_location:
        target = response.headers["Location"][:200]
        return Unreachable(f"{address}{by} redirects to {target}: give that address instead")
    if status in _FOREIGN:
        detail = f"a server before clipfleet{by} answered {status}: {_FOREIGN[status]}"
        return ProblemError(status, {"status": status, "detail": detail})
    return Unreachable(
        f"no clipfleet service answers at {address}: another server{by} is there, whose answer is "
        f"{status} {response.reason_phrase}".rstrip()
    )


# What proxies answer in the place of clipfleet, and what to do.
_FOREIGN = {
    401: "it asks for credentials of its own",
    403: "it does not allow this",
    408: "the request took too long",
    413: "the body is too large for it; in nginx client_max_body_size is the limit",
    429: "too many requests; try again later",
    500: "its log says why",
    502: "it does not reach clipfleet",
    503: "it does not reach clipfleet now",
    504: "clipfleet did not answer it in time; in nginx proxy_read_timeout is the limit",
}


def _address(response: httpx.Response) -> str:
    url = response.request.url
    return f"{url.scheme}://{url.netloc.decode()}"


def problem_error(problem: Mapping[str, Any], status: int | None = None) -> ProblemError:
    """The error for a problem document.

    Args:
        problem: the document.
        status: HTTP status of the response. Default: the status in the document.
    """
    code = int(problem.get("status", 0)) if status is None else status
    kinds = {404: NotFound, 410: NotFound, 422: InvalidRequest}
    kind = kinds.get(code, ProblemError)
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
