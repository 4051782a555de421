"""Errors as RFC 9457 problem+json. Only named fields go out: no stack, no expression."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

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
SHOWN = 50  # faults of one request
UNEXPECTED = "something went wrong on our side"
DOCUMENTED = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": DOCUMENTED}
    for status, text in {
        400: "The body cannot be read as what its Content-Type says",
        401: "No API key, or one that is not in force",
        403: "The key, or the service, does not allow it",
        404: "There is no such thing",
        408: "The body came in too slowly",
        413: "Over a limit",
        422: "The request cannot be carried out as it stands",
        429: "More requests than the key has; Retry-After says when to come back",
        503: "A part is away or full; Retry-After says when to come back",
    }.items()
}


def register_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ClipfleetError, _handle_clipfleet_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def document(
    scope: Any, /, status: int, slug: str, title: str, detail: str, **more: Any
) -> dict[str, Any]:
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
    body = document(scope, status, slug, title, detail, **more)
    request_id = _request_id(scope)
    headers = {"X-Request-ID": request_id} if request_id else {}
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def _request_id(scope: Any) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


def _count(scope: Any, error: BaseException) -> None:
    if count := scope.get("state", {}).get("refused"):
        count(error)


def problem_for(scope: Any, error: BaseException) -> Problem:
    """The document alone, for one that failed among many in a request."""
    _count(scope, error)
    return Problem.model_validate(_any(scope, error))


def _any(scope: Any, error: BaseException) -> dict[str, Any]:
    if isinstance(error, ValidationError):
        return document(scope, 422, InvalidRequest.slug, **_said(error.errors()))
    if isinstance(error, ClipfleetError) and (error.status < 500 or isinstance(error, Unavailable)):
        return document(scope, error.status, error.slug, error.title, error.detail)
    log.error("one of many in a request failed", exc_info=error)
    slug, title = ClipfleetError.slug, ClipfleetError.title
    return document(scope, 500, slug, title, UNEXPECTED)


def response_for(scope: Any, error: ClipfleetError) -> JSONResponse:
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
        return await _unexpected(request, error)
    return response_for(request.scope, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem(request.scope, 422, InvalidRequest.slug, **_said(error.errors()))


def _said(faults: Sequence[Any]) -> dict[str, Any]:
    errors = [
        {"field": _short(".".join(str(part) for part in one["loc"])), "message": _short(one["msg"])}
        for one in faults[:SHOWN]
    ]
    first = errors[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return {"title": InvalidRequest.title, "detail": detail, "errors": errors}


def _short(text: str) -> str:
    """A field is called whatever the caller called it."""
    return text if len(text) <= 300 else f"{text[:297]}..."


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, BodyRefused):
        if isinstance(error.error, RequestValidationError):
            return await _invalid(request, error.error)
        return response_for(request.scope, error.error)
    text = str(error.detail)
    response = problem(request.scope, error.status_code, "http", text, text)
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """The stack goes to the log; the caller gets the request id to ask with."""
    kind = type(error).__name__
    request_id = _request_id(request.scope)
    log.error("request %s to %s failed: %s", request_id, request.scope.get("path"), kind)
    slug, title = ClipfleetError.slug, ClipfleetError.title
    return problem(request.scope, 500, slug, title, UNEXPECTED)
