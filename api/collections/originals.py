"""Routes that return the original file of an image, and a preview that is larger than a thumbnail.

The gateway opens what it may read: files and buckets as far as jobs may, and uploads. It fetches
nothing from other servers: for an image of the web the answer is a redirect.
"""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import PurePath
from typing import Annotated, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from clipfleet.api.auth.access import AuthorizedRoute, Caller, needs
from clipfleet.api.collections.images import (
    JPEG,
    MAX_AGE_S,
    ImageId,
    Namespace,
    key_of,
    no_image,
)
from clipfleet.api.dependencies import CallerDep, CollectionDep, GatewayDep, GrantDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import DOCUMENTED, RESPONSES, problem
from clipfleet.api.originals.content import Content
from clipfleet.api.originals.finder import Origin
from clipfleet.api.originals.kinds import HEAD_BYTES, SUFFIXES, media_type
from clipfleet.common.collection import Collection
from clipfleet.common.errors import BadImage, Gone, NotFound, TooLarge
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.identity import DEFAULT_NAMESPACE
from clipfleet.common.imaging.decode import OVERSAMPLING, decode
from clipfleet.common.imaging.decode import SUFFIXES as IMAGE_SUFFIXES
from clipfleet.common.imaging.thumbnails import thumbnail
from clipfleet.common.settings import Settings
from clipfleet.common.versions import OtherVersion

router = APIRouter(
    prefix="/v1/collections/{name}/images",
    tags=["images"],
    responses={
        **RESPONSES,
        410: {"description": "The original is not there any more.", "content": DOCUMENTED},
    },
    route_class=AuthorizedRoute,
)

PIECE_BYTES = 1 << 18  # of an original that are in memory at once
PREVIEW_EDGE = 1_000  # pixels
# Nothing runs in an original that a browser shows by itself.
SAFE = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Authorization",
}
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")
_UNSAFE_IN_NAMES = re.compile(r'[^\x20-\x7e]|["\\/%]')


class OriginalChanged(Exception):
    """The original became shorter while it was sent. Raising it closes the connection."""


class Part(NamedTuple):
    """The bytes of an answer: from `begin` to before `end`."""

    begin: int
    end: int


async def _slot(gateway: GatewayDep) -> AsyncIterator[None]:
    """Hold one of the gateway's originals until the response has ended."""
    with gateway.original_slots.hold():
        yield


@router.get(
    "/original",
    summary="Get an original image",
    response_class=Response,
    dependencies=[Depends(_slot)],
    responses={
        200: {"content": {"image/*": {}}, "description": "The file as it was indexed."},
        206: {"content": {"image/*": {}}, "description": "The part that Range asks for."},
        304: {"description": "The client has the file already."},
        307: {"description": "The image is on another server; Location has its address."},
        416: {"description": "The file has no such part.", "content": DOCUMENTED},
    },
)
@needs("read")
async def get_original(
    request: Request,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    grant: GrantDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
    download: Annotated[
        bool, Query(description="Whether a browser saves the file instead of showing it.")
    ] = False,
) -> Response:
    """Return the file of an indexed image, as far as the service and the key may read it.

    An image of the web is answered with a redirect. Range, If-Range, If-None-Match and
    If-Modified-Since are understood. A file that has been replaced since is returned as it is now;
    one that is no image any more is not.
    """
    origin = await _origin(collection, gateway, caller, image_id, namespace)
    if address := origin.web_address:
        return RedirectResponse(address, 307, {**SAFE, "Cache-Control": "private, no-cache"})
    content = await _opened(origin, grant, gateway)
    try:
        head = await gateway.read_original(content.read, 0, HEAD_BYTES)
        kind = media_type(head)
        if not kind:
            raise Gone(f"{_shown(origin)} is no image any more")
        headers = {
            **SAFE,
            "Accept-Ranges": "bytes",
            "ETag": f'"{content.tag}"',
            "Cache-Control": "private, no-cache",
            "Content-Disposition": _disposition(origin, image_id, kind, download),
        }
        if content.modified:
            headers["Last-Modified"] = _http_date(content.modified)
        if _is_known(request, content):
            return Response(status_code=304, headers=headers)
        part = _part(request, content)
        if part is None:
            detail = f"the file has {content.size} bytes, and no part {request.headers['range']}"
            refusal = problem(request.scope, 416, "range-not-satisfiable", "No such part", detail)
            refusal.headers["Content-Range"] = f"bytes */{content.size}"
            return refusal
    except BaseException:
        content.close()
        raise
    is_whole = part == (0, content.size)
    if not is_whole:
        headers["Content-Range"] = f"bytes {part.begin}-{part.end - 1}/{content.size}"
    headers["Content-Length"] = str(part.end - part.begin)
    return _ContentResponse(content, part, gateway, 200 if is_whole else 206, headers, kind)


@router.get(
    "/preview",
    summary="Get a preview",
    response_class=Response,
    dependencies=[Depends(_slot)],
    responses={200: {"content": JPEG}, 304: {}},
)
@needs("read")
async def get_preview(
    request: Request,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    grant: GrantDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> Response:
    """Return a JPEG of at most 1,000 pixels a side, made of the original, without its metadata.

    It is made at each request, and not for images of the web, which the gateway does not fetch.
    Where there is none, the thumbnail remains.
    """
    origin = await _origin(collection, gateway, caller, image_id, namespace)
    if origin.web_address:
        raise NotFound("the original is on another server, and the gateway does not fetch it")
    content = await _opened(origin, grant, gateway)
    try:
        headers = {
            **SAFE,
            "ETag": f'"{content.tag}-{PREVIEW_EDGE}"',
            "Cache-Control": f"private, max-age={MAX_AGE_S}",
        }
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        limit = gateway.settings.fetch.query_bytes
        if content.size > limit:
            raise TooLarge(
                f"the original has {content.size} bytes; a preview is made of at most {limit} "
                "(CLIPFLEET_FETCH__QUERY_BYTES)"
            )
        try:
            jpeg = await gateway.make_preview(_preview, content, gateway.settings)
        except BadImage as error:
            raise BadImage(f"no preview can be made: {error.detail}") from error
    finally:
        content.close()
    return Response(jpeg, headers=headers, media_type="image/jpeg")


def _preview(content: Content, settings: Settings) -> bytes:
    limits, edge = settings.limits, -(-PREVIEW_EDGE // OVERSAMPLING)
    data = content.read(0, content.size)
    return thumbnail(decode(data, limits, edge=edge, in_memory=limits.query_pixels), PREVIEW_EDGE)


async def _origin(
    collection: Collection, gateway: Gateway, caller: Caller, image_id: str, namespace: str
) -> Origin:
    """Where the original of an image is.

    A vector that a client wrote has the uri that the client gave. A file that it names is opened
    only for callers that could index the file themselves.
    """
    key = key_of(namespace, image_id)
    records = await gateway.call(gateway.store.fetch, collection, [key])
    if key not in records:
        raise no_image(image_id)
    record = records[key]
    origin = Origin(record.uri, record.job_id)
    if not (record.job_id or origin.web_address or caller.may("write")):
        raise NotFound(
            f"{image_id[:200]!r} was written as a vector, and the service has read no file for it; "
            "what its uri names is shown to keys with the scope write"
        )
    if origin.upload not in ("", record.job_id):
        await _require_upload(origin.upload, collection, gateway)
    return origin


async def _require_upload(job_id: str, collection: Collection, gateway: Gateway) -> None:
    """Check that another job than that of the record uploaded into this collection.

    The job of the record is a retry, or the record is a vector whose uri a client wrote.
    """
    try:
        new = (await gateway.call(gateway.ledger.job, job_id)).new
    except NotFound as error:
        detail = "the uploaded file is not there any more: it is kept as long as its job"
        raise Gone(detail) from error
    if (new.collection, new.generation) != (collection.name, collection.generation):
        raise NotFound("the uploaded file does not belong to this collection")


async def _opened(origin: Origin, grant: SourceGrant | None, gateway: Gateway) -> Content:
    access = gateway.sources.within(await _both_grants(origin, grant, gateway))
    return await gateway.read_original(gateway.originals.open, origin, access)


async def _both_grants(
    origin: Origin, grant: SourceGrant | None, gateway: Gateway
) -> SourceGrant | None:
    """What both the caller and the job that read the file may read, as long as the job is known.

    Otherwise a link that is swapped after the job would lead a key without roots to files that the
    key of the job could not index.
    """
    if origin.job_id:
        with suppress(NotFound, OtherVersion):
            job = await gateway.call(gateway.ledger.job, origin.job_id)
            if job.new.grant is not None:
                return job.new.grant.and_only(grant or SourceGrant())
    return grant


class _ContentResponse(StreamingResponse):
    """Sends a part of content piece by piece, and closes it in any case."""

    def __init__(
        self,
        content: Content,
        part: Part,
        gateway: Gateway,
        status: int,
        headers: dict[str, str],
        kind: str,
    ) -> None:
        super().__init__(_pieces(content, part, gateway), status, headers, kind)
        self._opened = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._opened.close()


async def _pieces(content: Content, part: Part, gateway: Gateway) -> AsyncIterator[bytes]:
    at = part.begin
    while at < part.end:
        size = min(PIECE_BYTES, part.end - at)
        piece = await gateway.read_original(content.read, at, size)
        if not piece:
            raise OriginalChanged(f"the original ends after {at} of {part.end} bytes")
        at += len(piece)
        yield piece


def _is_known(request: Request, content: Content) -> bool:
    """Whether the client has this version already, as its headers say."""
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or f'"{content.tag}"' in tags
    since = _parsed_date(request.headers.get("if-modified-since", ""))
    return bool(since and content.modified and int(content.modified) <= since)


def _part(request: Request, content: Content) -> Part | None:
    """The part that Range asks for; the whole without one, or with one that is not understood.

    None if the content has no such part.
    """
    whole = Part(0, content.size)
    spec = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if spec is None or not _is_same(request.headers.get("if-range"), content):
        return whole
    first, last, length = spec.groups()
    if length is not None:
        begin, end = max(0, content.size - int(length)), content.size
    else:
        begin, end = int(first), min(content.size, int(last) + 1 if last else content.size)
        if last and int(last) < begin:  # not valid, so it does not count
            return whole
    return Part(begin, end) if begin < end else None


def _is_same(if_range: str | None, content: Content) -> bool:
    """Whether the content is still what If-Range names. A missing header says yes."""
    if if_range is None:
        return True
    if if_range.strip().startswith('"'):
        return if_range.strip() == f'"{content.tag}"'
    at = _parsed_date(if_range)
    return bool(at and content.modified and int(content.modified) == at)


def _parsed_date(text: str) -> int:
    with suppress(ValueError, TypeError):
        return int(parsedate_to_datetime(text).timestamp())
    return 0


def _http_date(at: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(at), UTC), usegmt=True)


def _disposition(origin: Origin, image_id: str, kind: str, download: bool) -> str:
    """The header with the name of the file, whose suffix is that of an image in any case."""
    name = re.split(r"[/\\]", image_id.rstrip("/"))[-1]
    name = (origin.name if PurePath(origin.name).suffix.lower() in IMAGE_SUFFIXES else name)[-200:]
    if PurePath(name).suffix.lower() not in IMAGE_SUFFIXES:
        name += SUFFIXES[kind]
    how = "attachment" if download else "inline"
    plain = _UNSAFE_IN_NAMES.sub("_", name)
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _shown(origin: Origin) -> str:
    return f"the file {origin.uri[:500]!r}"
