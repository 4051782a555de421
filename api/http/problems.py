"""Errors as RFC 9457 problem+json. A response has no stack trace and no expression of the code."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from clipfleet.api.http import openai_errors
from clipfleet.api.http.bodies import BodyRefused
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from clipfleet.common.http.schemas import Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 50  # that are listed for one request
NO_OBJECT = ("model_attributes_type", "model_type", "dict_type")
UNEXPECTED = "the service failed to handle this request; its log has the error"
DOCUMENTED = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": DOCUMENTED}
    for status, text in {
        400: "The body does not have the format of its Content-Type.",
        401: "The API key is missing, unknown or expired.",
        403: "The key or the service does not allow this request.",
        404: "The collection, job or image does not exist.",
        408: "The body arrived too slowly.",
        413: "The request exceeds a limit.",
        415: "The body is compressed.",
        422: "The request is not valid.",
        429: "The key has reached its rate limit. Retry-After has the seconds to wait.",
        503: "A part is unavailable or overloaded. Retry-After has the seconds to wait.",
    }.items()
}
CONFLICT: dict[str, Any] = {
    "description": "The request conflicts with the collection, or with an earlier request that had "
    "the same Idempotency-Key.",
    "content": DOCUMENTED,
}


def register_handlers(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.add_exception_handler(ClipfleetError, _handle_clipfleet_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(Exception, _handle_unexpected_error)


def document(
    scope: Any, /, status: int, slug: str, title: str, detail: str, **more: Any
) -> dict[str, Any]:
    """Return a problem document.

    Args:
        scope: the ASGI scope of the request.
        status: the HTTP status.
        slug: the last part of the problem's `type`.
        title: the kind of problem, the same for every problem of this type.
        detail: what is wrong with this request.
        more: further fields of the document.
    """
    return {
        "type": f"urn:problem:clipfleet:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": scope.get("path", ""),
        "request_id": _request_id(scope),
        **more,
    }


def problem(
    scope: Any, /, status: int, slug: str, title: str, detail: str, **more: Any
) -> JSONResponse:
    """Return a response with a problem document; the arguments are those of `document`.

    A route in the shape of OpenAI's API has errors in that shape.
    """
    body = document(scope, status, slug, title, detail, **more)
    request_id = _request_id(scope)
    headers = {"X-Request-ID": request_id} if request_id else {}
    if openai_errors.applies(scope):
        error, status = openai_errors.error_of(body), openai_errors.status_of(status)
        return JSONResponse(error, status, headers=headers)
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def _request_id(scope: Any) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


def _count(scope: Any, error: BaseException) -> None:
    if count := scope.get("state", {}).get("refused"):
        count(error)


def problem_for(scope: Any, error: BaseException) -> Problem:
    """Return the problem document for one query that failed among several in a request."""
    _count(scope, error)
    return Problem.model_validate(_document_for(scope, error))


def _document_for(scope: Any, error: BaseException) -> dict[str, Any]:
    if isinstance(error, ValidationError):
        return document(scope, 422, InvalidRequest.slug, **_faults(error.errors()))
    if isinstance(error, ClipfleetError) and (error.status < 500 or isinstance(error, Unavailable)):
        return document(scope, error.status, error.slug, error.title, error.detail)
    log.error("one of several queries in a request failed", exc_info=error)
    slug, title = ClipfleetError.slug, ClipfleetError.title
    return document(scope, 500, slug, title, UNEXPECTED)


def response_for(scope: Any, error: ClipfleetError) -> JSONResponse:
    """Return the response for an error, with the headers that belong to it, and count it."""
    _count(scope, error)
    response = problem(scope, error.status, error.slug, error.title, error.detail, **error.facts)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Bearer realm="clipfleet"'
    if isinstance(error, RateLimited):
        response.headers.update(dict(error.headers))
    return response


async def _handle_clipfleet_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ClipfleetError)
    if error.status >= 500 and not isinstance(error, Unavailable):
        log.error("internal error", exc_info=error)
        return await _handle_unexpected_error(request, error)
    return response_for(request.scope, error)


async def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [_with_format(fault, error.body, request) for fault in error.errors()]
    return problem(request.scope, 422, InvalidRequest.slug, **_faults(faults))


def _with_format(fault: Any, body: Any, request: Request) -> Any:
    """The fault, which says where a body is no JSON, or that its content type is missing."""
    if fault["type"] == "json_invalid":
        reason, place = fault["ctx"]["error"], int(fault["loc"][1])
        if isinstance(body, str) and body:
            line, column = body.count("\n", 0, place) + 1, place - body.rfind("\n", 0, place)
            reason += f" at line {line}, column {column}"
        return {**fault, "loc": ("body",), "msg": f"not JSON: {reason}"}
    sent = request.headers.get("content-type", "")
    is_whole = fault["loc"] == ("body",) and fault["type"] in NO_OBJECT
    is_raw = fault["loc"][:1] == ("body",) and isinstance(body, bytes)
    if (is_whole or is_raw) and "json" not in sent:
        kind = f"the content type {sent!r}" if sent else "no content type"
        message = f"it has {kind}; send Content-Type: application/json"
        return {**fault, "loc": ("body",), "msg": message}
    return fault


def _faults(faults: Sequence[Any]) -> dict[str, Any]:
    """Title, detail and errors of a problem document for pydantic's errors."""
    errors = [
        {
            "field": _short(".".join(str(part) for part in fault["loc"])),
            "message": _short(fault["msg"]),
        }
        for fault in faults[:MAX_FAULTS]
    ]
    first = errors[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return {"title": InvalidRequest.title, "detail": detail, "errors": errors}


def _short(text: str) -> str:
    """At most 300 characters: the caller chooses the names of the fields."""
    return text if len(text) <= 300 else f"{text[:297]}..."


async def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, BodyRefused):
        if isinstance(error.error, RequestValidationError):
            return await _handle_validation_error(request, error.error)
        return response_for(request.scope, error.error)
    if isinstance(error.__cause__, UnicodeDecodeError):
        return response_for(request.scope, InvalidRequest("body: it is not UTF-8"))
    text = str(error.detail)
    response = problem(request.scope, error.status_code, "http", text, text)
    response.headers.update(error.headers or {})
    return response


async def _handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    """Log the error. The response has the request id, by which an operator finds it in the log."""
    kind = type(error).__name__
    request_id = _request_id(request.scope)
    log.error("request %s to %s failed: %s", request_id, request.scope.get("path"), kind)
    slug, title = ClipfleetError.slug, ClipfleetError.title
    return problem(request.scope, 500, slug, title, UNEXPECTED)
