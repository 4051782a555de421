"""Errors in the shape of OpenAI's API, for the routes whose clients expect it."""

from collections.abc import Mapping
from typing import Any

from clipfleet.common.http.openai import OpenAIError, OpenAIErrorOut

FIRST_PARTS = ("embeddings", "models")  # of paths below /v1
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
TYPES = {429: "rate_limit_error"}
_TEXTS: dict[int | str, str] = {
    400: "The request is not valid.",
    401: "The API key is missing, unknown or expired.",
    403: "The key or the service does not allow this request.",
    404: "No worker serves the model.",
    408: "The body arrived too slowly.",
    413: "The request exceeds a limit.",
    429: "The key has reached its rate limit. Retry-After has the seconds to wait.",
    503: "A part is unavailable or overloaded. Retry-After has the seconds to wait.",
    "4XX": "The request was refused.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": OpenAIErrorOut} for status, text in _TEXTS.items()
}


def applies(scope: Mapping[str, Any]) -> bool:
    """Whether the errors of a request have this shape."""
    path: str = scope.get("path", "").removeprefix(scope.get("root_path", "").rstrip("/"))
    _, version, first, *_ = [*path.split("/"), "", ""]
    return version == "v1" and first in FIRST_PARTS


def status_of(status: int) -> int:
    """The status that OpenAI's API has in place of this one."""
    return 400 if status == 422 else status


def error_of(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error for a problem document.

    Args:
        problem: the document. Its field `param` names the part of the request that is wrong, where
            its `errors` do not.
    """
    status = status_of(problem["status"])
    message, param = problem["detail"], problem.get("param")
    if faults := problem.get("errors"):
        param = faults[0]["field"].removeprefix("body").lstrip(".") or None
        message = f"{param}: {faults[0]['message']}" if param else faults[0]["message"]
    slug = problem["type"].rpartition(":")[2].replace("-", "_")
    error = OpenAIError(
        message=message,
        type=TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        param=param,
        code=CODES.get(status, slug),
    )
    return OpenAIErrorOut(error=error).model_dump()
