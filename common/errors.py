"""One error tree. An error carries facts; one handler turns it into problem+json.

ClipfleetError                 500
├── InvalidRequest             422  the request says something that cannot be done
│   └── BadImage               422  bytes that are no image we accept, with a reason
├── Unauthorized               401  no key, or one that is not in force
├── Forbidden                  403  beyond the key's scopes, or outside the configured roots
├── NotFound                   404  no such collection, job or image
├── Conflict                   409  exists, but different
├── TooLarge                   413  over a documented limit
├── RateLimited                429  more requests than the key has; says when to come back
├── Unavailable                503  a part is away or full; says when to come back
└── StartupError               (never over HTTP) a part cannot start; says the way out

Beside it `Unreadable`: one item of many, which fails alone; whoever reads it says for whom.
"""

from collections.abc import Sequence
from typing import ClassVar


class ClipfleetError(Exception):
    """The root. `detail` is one sentence in the caller's terms."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **facts: str | int | float) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class InvalidRequest(ClipfleetError):
    status = 422
    slug = "invalid-request"
    title = "The request cannot be carried out as it stands"


class BadImage(InvalidRequest):
    slug = "bad-image"
    title = "The image cannot be used"


class Unauthorized(ClipfleetError):
    status = 401
    slug = "unauthorized"
    title = "An API key is needed"


class Forbidden(ClipfleetError):
    status = 403
    slug = "forbidden"
    title = "Not allowed"


class NotFound(ClipfleetError):
    status = 404
    slug = "not-found"
    title = "Not found"


class Conflict(ClipfleetError):
    status = 409
    slug = "conflict"
    title = "It exists already, and differs"


class TooLarge(ClipfleetError):
    status = 413
    slug = "too-large"
    title = "Over a limit"


class RateLimited(ClipfleetError):
    """`headers`: what a client needs to know to come back in time."""

    status = 429
    slug = "rate-limited"
    title = "Too many requests"

    def __init__(self, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.headers = headers


class Unavailable(ClipfleetError):
    """A part is away or full. `retry_after_s` goes out as the Retry-After header."""

    status = 503
    slug = "unavailable"
    title = "Not available just now"

    def __init__(self, detail: str, retry_after_s: int = 2, **facts: str | int | float) -> None:
        super().__init__(detail, **facts)
        self.retry_after_s = retry_after_s


class StartupError(ClipfleetError):
    slug = "startup"
    title = "Cannot start"


class Unreadable(Exception):
    """This item cannot be read; the text is the reason."""
