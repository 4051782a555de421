"""Limits on the size of a request's body, its duration, and the memory of all requests together.

Each kind of route has its own limit. A body is read after its caller was authorized. A body that is
read as a whole stays in memory until the response, and counts against the gateway's memory budget.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from clipfleet.common.errors import ClipfleetError, TooLarge, Unavailable
from clipfleet.common.settings import Limits
from clipfleet.common.shares import may_take

Kind = Literal["json", "search", "batch", "picture", "vectors", "job", "upload"]

UNCOUNTED = 65_536  # bytes of a body or an answer that every request may hold
LONG_TEXT = 65_536  # bytes: a longer text in a JSON document is an image


class TooSlow(ClipfleetError):
    """The client sent the body too slowly."""

    status = 408
    slug = "too-slow"
    title = "The request arrived too slowly"


class Compressed(ClipfleetError):
    """The body has a Content-Encoding."""

    status = 415
    slug = "compressed-body"
    title = "The body is compressed"


class MemoryFull(Unavailable):
    """The requests in progress fill the gateway's memory budget."""

    slug = "overloaded"
    title = "Too many large requests are in progress"


class BodyRefused(HTTPException):
    """Carries `error` through FastAPI, which answers other errors during the reading of a body with
    400."""

    def __init__(self, error: ClipfleetError | RequestValidationError) -> None:
        super().__init__(400)
        self.error = error


@dataclass(frozen=True)
class BodyRule:
    """The limits of the body for one kind of route.

    Attributes:
        setting: the field of `Limits` that limits the body, in bytes.
        images: whether images in the body count separately, against `inline_bytes`.
        whole: whether the body is read into memory as a whole; otherwise piece by piece.
        text: whether the body is JSON, in which images are base64.
    """

    setting: str
    images: bool = False
    whole: bool = True
    text: bool = True

    def max_other_bytes(self, limits: Limits) -> int:
        """Return the limit in bytes on everything but images."""
        return int(getattr(limits, self.setting))

    def max_bytes(self, limits: Limits) -> int:
        """Return the limit in bytes on the whole body."""
        if not self.images:
            return self.max_other_bytes(limits)
        images = limits.inline_bytes
        return self.max_other_bytes(limits) + (-(-images // 3) * 4 if self.text else images)

    def too_large(self, limits: Limits) -> TooLarge:
        """Return the error for a body that exceeds a limit."""
        setting = f"CLIPFLEET_LIMITS__{self.setting.upper()}"
        detail = f"the request is larger than {self.max_other_bytes(limits)} bytes ({setting})"
        if self.images:
            detail += f" and {limits.inline_bytes} of images (CLIPFLEET_LIMITS__INLINE_BYTES)"
        return TooLarge(detail, limit_bytes=self.max_bytes(limits))


RULES: dict[Kind, BodyRule] = {
    "json": BodyRule("json_bytes"),
    "search": BodyRule("json_bytes", images=True),
    "batch": BodyRule("batch_bytes", images=True),
    "picture": BodyRule("json_bytes", images=True, whole=False, text=False),
    "vectors": BodyRule("vectors_bytes"),
    "job": BodyRule("job_bytes"),
    "upload": BodyRule("request_bytes", whole=False, text=False),
}


class MemoryBudget:
    """Counts the bytes that all requests of a gateway hold. Only for use on its event loop.

    Attributes:
        limit: bytes at most.
        used: bytes held now.
        held_by: bytes held now by the name of the API key, without the requests that have no key.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.held_by: Counter[str] = Counter()


class Reservation:
    """The part of the memory budget that one request holds.

    Attributes:
        caller: the name of the caller's API key; "" without a key.
    """

    def __init__(self, budget: MemoryBudget, caller: str = "") -> None:
        self.caller = caller
        self._budget, self._held, self._reserved = budget, 0, 0

    def add(self, count: int) -> None:
        """Hold `count` more bytes.

        Raises:
            MemoryFull: all requests together would hold more than the budget, or several of one
                key more than would remain (`may_take`). A single request may hold more, because it
                may be as large as its route allows.
        """
        more = max(0, self._held + count - UNCOUNTED) - self._reserved
        remaining = self._budget.limit - self._budget.used - more
        if more > 0 and remaining < 0:
            raise MemoryFull(
                f"large requests and answers fill the {self._budget.limit} bytes that this gateway "
                "has for them (CLIPFLEET_LIMITS__IN_HAND_BYTES); try again"
            )
        of_key = self._budget.held_by[self.caller]
        is_only = of_key <= self._reserved
        if more > 0 and not is_only and not may_take(of_key + more, remaining + 1):
            raise MemoryFull(
                "large requests and answers of this key fill its share of the "
                f"{self._budget.limit} bytes that this gateway has for them "
                "(CLIPFLEET_LIMITS__IN_HAND_BYTES); try again"
            )
        self._held += count
        self._reserve(more)

    def release(self) -> None:
        """Hold nothing any more."""
        self._reserve(-self._reserved)
        self._held = 0

    def _reserve(self, more: int) -> None:
        self._reserved += more
        self._budget.used += more
        if self.caller:
            self._budget.held_by[self.caller] += more
            self._budget.held_by += Counter()  # forgets the keys that hold nothing


_current: ContextVar[Reservation | None] = ContextVar("reservation", default=None)


def reservation() -> Reservation:
    """Return the reservation of the current request; outside of a request, one without a limit."""
    return _current.get() or Reservation(MemoryBudget(2**62))


@contextmanager
def reserving(budget: MemoryBudget, caller: str) -> Iterator[Reservation]:
    """Make a reservation for the length of the block.

    Args:
        budget: the memory budget of the gateway.
        caller: the name of the caller's API key; "" without a key.
    """
    created = Reservation(budget, caller)
    token = _current.set(created)
    try:
        yield created
    finally:
        _current.reset(token)
        created.release()


class Meter:
    """Counts the bytes of a JSON document outside of its images, which are long base64 strings.

    Attributes:
        other_bytes: bytes outside of images so far, without the string that has not ended yet.
    """

    def __init__(self) -> None:
        self.other_bytes = 0
        self._run = self._other = 0  # bytes since the last quote, and those that are not base64

    def feed(self, piece: bytes) -> None:
        """Count the next piece of the document."""
        runs = piece.split(b'"')
        for n, run in enumerate(runs):
            if n:
                self._end()
                self.other_bytes += 1
            if 0 < n < len(runs) - 1 and len(run) <= LONG_TEXT:
                self.other_bytes += len(run)
            else:
                self._run += len(run)
                self._other += len(run.translate(None, _BASE64))

    def _end(self) -> None:
        self.other_bytes += self._other if self._run > LONG_TEXT else self._run
        self._run = self._other = 0

    @property
    def open_bytes(self) -> int:
        """Bytes of the string that has not ended yet which are not base64, and so always count."""
        return self._other


_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_\\"


class Body:
    """Receives a request's body and enforces its limits.

    Args:
        receive: the ASGI `receive` of the request.
        rule: the limits of this kind of route.
        limits: the limits of the service.
        reserved: counts the bytes that are held in memory.
    """

    def __init__(
        self, receive: Receive, rule: BodyRule, limits: Limits, reserved: Reservation
    ) -> None:
        self._receive, self._rule, self._limits, self._reserved = receive, rule, limits, reserved
        self._meter = Meter() if rule.text and rule.images else None
        self._seen, self._waited_s = 0, 0.0
        self._ended = False

    async def receive(self) -> Message:
        """Return the next ASGI message.

        Raises:
            BodyRefused: the body is too large or too slow, or the memory budget is full.
        """
        message = await (self._receive() if self._ended else self._receive_in_time())
        data = message.get("body", b"")
        self._ended = self._ended or not message.get("more_body", False)
        try:
            self._count(data)
        except ClipfleetError as error:
            raise BodyRefused(error) from error
        return message

    async def whole(self) -> Receive:
        """Read the whole body and return a `receive` that gives it in one message.

        Raises:
            BodyRefused: as `receive`.
        """
        pieces: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                return _once(message, self._receive)
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(pieces)
                pieces.clear()
                return _once({"type": "http.request", "body": body}, self._receive)

    def _count(self, data: bytes) -> None:
        self._seen += len(data)
        if self._seen > self._rule.max_bytes(self._limits):
            raise self._rule.too_large(self._limits)
        if self._meter:
            self._meter.feed(data)
            other_bytes = self._meter.other_bytes + self._meter.open_bytes
            if other_bytes > self._rule.max_other_bytes(self._limits):
                raise self._rule.too_large(self._limits)
        if self._rule.setting != "request_bytes":
            self._reserved.add(len(data))

    async def _receive_in_time(self) -> Message:
        """Receive within the time for the body, which runs only while we wait for the client."""
        limits = self._limits
        remaining_s = limits.body_s + self._seen / limits.body_rate - self._waited_s
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(remaining_s):
                return await self._receive()
        except TimeoutError as error:
            detail = (
                f"the request's body arrived too slowly: it may take {limits.body_s:g} s "
                f"(CLIPFLEET_LIMITS__BODY_S) and a second for each {limits.body_rate} bytes "
                "(CLIPFLEET_LIMITS__BODY_RATE)"
            )
            raise BodyRefused(TooSlow(detail)) from error
        finally:
            self._waited_s += loop.time() - began


def require_readable(scope: Scope, rule: BodyRule, limits: Limits) -> None:
    """Check what the headers say of a body.

    Raises:
        Compressed: it has a Content-Encoding.
        TooLarge: the Content-Length is over the limit.
    """
    headers = dict(scope["headers"])
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding not in ("", "identity"):
        detail = f"the body has Content-Encoding {encoding[:80]!r}; send it uncompressed"
        raise Compressed(detail)
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > rule.max_bytes(limits):
        raise rule.too_large(limits)


def _once(message: Message, then: Receive) -> Receive:
    """A `receive` that gives this message first."""
    first = [message]

    async def receive() -> Message:
        return first.pop() if first else await then()

    return receive
