"""Serves the web page: the files of the folder `page/` at `/` and `/page/…`."""

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.common.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=AuthorizedRoute)

FOLDER = Path(__file__).parent / "page"
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
HEADERS = {
    "Cache-Control": "no-cache",  # browsers keep a file, but check its tag before each use
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Tag = Annotated[str, Header()]


@router.get("/")
@needs("nothing")
def page(if_none_match: Tag = "") -> Response:
    """Return the page."""
    return _file(FOLDER / "index.html", if_none_match)


@router.get("/page/{name}")
@needs("nothing")
def asset(name: str, if_none_match: Tag = "") -> Response:
    """Return a script, a style sheet or a picture of the page."""
    paths = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
    if name not in paths:
        raise NotFound("the page has no such file")
    return _file(paths[name], if_none_match)


def _file(path: Path, if_none_match: str) -> Response:
    body = path.read_bytes()
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=TYPES[path.suffix])
