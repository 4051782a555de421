"""How much of a request's body is read, and for how long. Each route has a limit of its own.

A body is read once its caller is admitted. What is read at once is held until the request is
answered, and counts against what the gateway may hold for all requests together.
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

Kind = Literal["json", "search", "batch", "picture", "vectors", "job", "upload"]

UNCOUNTED = 65_536  # bytes of a body or an answer that every request may hold
LONG_TEXT = 65_536  # bytes: a longer text in a JSON document is an image


class TooSlow(ClipfleetError):
    status = 408
    slug = "too-slow"
    title = "The request came in too slowly"


class Overfull(Unavailable):
    slug = "overloaded"
    title = "Too many large requests are under way"


class BodyRefused(HTTPException):
    """Carries `error` out of FastAPI, which reports other errors of reading a body as a 400."""

    def __init__(self, error: ClipfleetError | RequestValidationError) -> None:
        super().__init__(400)
        self.error = error


@dataclass(frozen=True)
class BodyRule:
    """What the body of a kind of route may be.

    Attributes:
        setting: the field of `Limits` that bounds it, in bytes.
        images: whether the images in it count for themselves, against `inline_bytes`.
        whole: whether it is held in memory as a whole. Otherwise the route reads it piece by piece.
        text: whether it is JSON, in which images are base64.
    """

    setting: str
    images: bool = False
    whole: bool = True
    text: bool = True

    def beside(self, limits: Limits) -> int:
        """Bytes that are no images."""
        return int(getattr(limits, self.setting))

    def most(self, limits: Limits) -> int:
        """Bytes in all."""
        if not self.images:
            return self.beside(limits)
        images = limits.inline_bytes
        return self.beside(limits) + (-(-images // 3) * 4 if self.text else images)

    def too_large(self, limits: Limits) -> TooLarge:
        setting = f"CLIPFLEET_LIMITS__{self.setting.upper()}"
        said = f"the request is larger than {self.beside(limits)} bytes ({setting})"
        if self.images:
            said += f" and {limits.inline_bytes} of images (CLIPFLEET_LIMITS__INLINE_BYTES)"
        return TooLarge(said, limit_bytes=self.most(limits))


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
    """The bytes that all requests of a gateway hold together. For its event loop alone.

    Attributes:
        limit: bytes that all of them may hold.
        used: bytes that all of them hold.
        held_by: the same by the name of the API key, without the requests that have no key.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.held_by: Counter[str] = Counter()


class Reservation:
    """What one request holds of the budget.

    Attributes:
        caller: the name of the key that asks, "" without one.
    """

    def __init__(self, budget: MemoryBudget, caller: str = "") -> None:
        self.caller = caller
        self._budget, self._held, self._reserved = budget, 0, 0

    def add(self, count: int) -> None:
        """Hold so many bytes more. Overfull when all requests together hold too many, or those of
        one key more than half. A single request may have more than half: it may be one that is as
        large as its route allows.
        """
        more = max(0, self._held + count - UNCOUNTED) - self._reserved
        if more > 0 and self._budget.used + more > self._budget.limit:
            raise Overfull(
                f"large requests and answers fill the {self._budget.limit} bytes that this gateway "
                "has for them (CLIPFLEET_LIMITS__IN_HAND_BYTES); try again"
            )
        of_key = self._budget.held_by[self.caller]
        if more > 0 and of_key > self._reserved and of_key + more > self._budget.limit // 2:
            raise Overfull(
                f"large requests and answers of this key fill half of the {self._budget.limit} "
                "bytes that this gateway has for them (CLIPFLEET_LIMITS__IN_HAND_BYTES); try again"
            )
        self._held += count
        self._reserve(more)

    def release(self) -> None:
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
    """That of the request which is being carried out. Outside of one: a new one without limits."""
    return _current.get() or Reservation(MemoryBudget(2**62))


@contextmanager
def reserving(budget: MemoryBudget, caller: str) -> Iterator[Reservation]:
    """A reservation for the length of the block."""
    made = Reservation(budget, caller)
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)
        made.release()


class Meter:
    """Counts the bytes of a JSON document, fed in pieces, that do not belong to a long text of
    base64. `beside` is how many there are so far, without a text that has not ended yet."""

    def __init__(self) -> None:
        self.beside = 0
        self._run = self._other = 0  # bytes since the last quote, and those that are no base64

    def feed(self, piece: bytes) -> None:
        runs = piece.split(b'"')
        for n, run in enumerate(runs):
            if n:
                self._end()
                self.beside += 1
            if 0 < n < len(runs) - 1 and len(run) <= LONG_TEXT:
                self.beside += len(run)
            else:
                self._run += len(run)
                self._other += len(run.translate(None, _BASE64))

    def _end(self) -> None:
        self.beside += self._other if self._run > LONG_TEXT else self._run
        self._run = self._other = 0

    @property
    def open(self) -> int:
        """Bytes of the text that has not ended yet which count in any case."""
        return self._other


_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


class Body:
    """A request's body as it comes in: `receive` is what ASGI calls so, counted and timed.

    BodyRefused when it is too large, comes too slowly, or finds too much held already.
    """

    def __init__(
        self, receive: Receive, rule: BodyRule, limits: Limits, reserved: Reservation
    ) -> None:
        self._receive, self._rule, self._limits, self._reserved = receive, rule, limits, reserved
        self._meter = Meter() if rule.text and rule.images else None
        self._seen, self._waited_s = 0, 0.0
        self._ended = False

    async def receive(self) -> Message:
        message = await (self._receive() if self._ended else self._in_time())
        data = message.get("body", b"")
        self._ended = self._ended or not message.get("more_body", False)
        try:
            self._count(data)
        except ClipfleetError as error:
            raise BodyRefused(error) from error
        return message

    async def whole(self) -> Receive:
        """All of it, to be received at once; then whatever else there is to receive."""
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
        if self._seen > self._rule.most(self._limits):
            raise self._rule.too_large(self._limits)
        if self._meter:
            self._meter.feed(data)
            if self._meter.beside + self._meter.open > self._rule.beside(self._limits):
                raise self._rule.too_large(self._limits)
        if self._rule.setting != "request_bytes":
            self._reserved.add(len(data))

    async def _in_time(self) -> Message:
        """Only the time in which we wait for the client counts."""
        limits = self._limits
        left = limits.body_s + self._seen / limits.body_rate - self._waited_s
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(left):
                return await self._receive()
        except TimeoutError as error:
            said = (
                f"the request's body did not come in: {limits.body_s:g} s "
                f"(CLIPFLEET_LIMITS__BODY_S) and {limits.body_rate} bytes a second "
                "(CLIPFLEET_LIMITS__BODY_RATE) are the least"
            )
            raise BodyRefused(TooSlow(said)) from error
        finally:
            self._waited_s += loop.time() - began


def require_small(scope: Scope, rule: BodyRule, limits: Limits) -> None:
    """TooLarge when the request says itself that it is."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) > rule.most(limits):
        raise rule.too_large(limits)


def _once(message: Message, then: Receive) -> Receive:
    given = [message]

    async def receive() -> Message:
        return given.pop() if given else await then()

    return receive
