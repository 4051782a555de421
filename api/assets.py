"""Serves the web page, and the page about the HTTP interface.

The web page is the folder `page/`, at `/` and `/page/…`. The other page is the folder `reference/`
and Swagger UI, at `/docs` and `/docs/…`. Swagger UI is taken from the package fastapi-offline, so
that nothing comes from other hosts.
"""

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import RedirectResponse

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.common.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=AuthorizedRoute)

FOLDER = Path(__file__).parent / "page"
REFERENCE = Path(__file__).parent / "reference"
SWAGGER_UI = Path(str(files("fastapi_offline"))) / "static"
REFERENCE_FILES = {
    "start.js": REFERENCE / "start.js",
    "swagger-ui-bundle.js": SWAGGER_UI / "swagger-ui-bundle.js",
    "swagger-ui.css": SWAGGER_UI / "swagger-ui.css",
}
# Not the operating system's table: with nosniff, browsers do not run a script of another type.
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Scripts and styles come from this folder alone. No text becomes markup (trusted-types).
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
# Swagger UI makes markup of text, which it cleans (no trusted-types).
REFERENCE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # browsers keep a file, but check its tag before each use
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Tag = Annotated[str, Header()]


@router.get("/")
@needs("nothing")
async def page(if_none_match: Tag = "") -> Response:
    """Return the page."""
    return _file(FOLDER / "index.html", if_none_match)


@router.get("/page/{name}")
@needs("nothing")
async def asset(name: str, if_none_match: Tag = "") -> Response:
    """Return a script, a style sheet or a picture of the page."""
    paths = _files(FOLDER.stat().st_mtime_ns)
    if name not in paths:
        raise NotFound("the page has no such file")
    return _file(paths[name], if_none_match)


@router.get("/docs")
@needs("nothing")
def reference(if_none_match: Tag = "") -> Response:
    """Return the page about the HTTP interface."""
    return _file(REFERENCE / "index.html", if_none_match, REFERENCE_POLICY)


@router.get("/docs/{name}")
@needs("nothing")
def reference_asset(name: str, if_none_match: Tag = "") -> Response:
    """Return a script or the style sheet of that page."""
    if name not in REFERENCE_FILES:
        raise NotFound("the page about the HTTP interface has no such file")
    return _file(REFERENCE_FILES[name], if_none_match, REFERENCE_POLICY)


@router.get("/redoc")
@needs("nothing")
def earlier_reference() -> Response:
    """Redirect from the page of earlier releases."""
    return RedirectResponse("docs")


def _file(path: Path, if_none_match: str, policy: str = POLICY) -> Response:
    body, tag = _content(path, path.stat().st_mtime_ns)
    headers = {**HEADERS, "Content-Security-Policy": policy, "ETag": tag}
    if tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=TYPES[path.suffix])


@cache
def _files(_: int) -> dict[str, Path]:
    """The page's files by name, listed once as long as none is added or removed."""
    return {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}


@cache
def _content(path: Path, _: int) -> tuple[bytes, str]:
    """The bytes of a file and their tag, read once as long as the file does not change.

    Args:
        path: the file.
    """
    body = path.read_bytes()
    return body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
