"""The errors of the service. Each carries facts; one handler turns it into problem+json.

ClipfleetError                 500
├── InvalidRequest             422  the request asks for something that is not possible
│   └── BadImage               422  the bytes are not an accepted image; `detail` gives the reason
├── Unauthorized               401  no API key, or one that is not active
├── Forbidden                  403  not in the key's scopes, or outside the configured roots
├── NotFound                   404  no such collection, job or image
├── Gone                       410  it was there, and is not any more
├── Conflict                   409  it exists and is different
├── TooLarge                   413  over a documented limit
├── RateLimited                429  more requests than the key may send; `headers` say when to retry
├── Unavailable                503  a part is away or full; `retry_after_s` says when to retry
└── StartupError               (never over HTTP) a part cannot start; `detail` gives the remedy

`Unreadable` is not one of them: it is the failure of one item of many. Its caller knows the item.
"""

from collections.abc import Sequence
from typing import ClassVar


class ClipfleetError(Exception):
    """The root of the errors.

    Args:
        detail: one sentence in the caller's terms, without a full stop.
        facts: further fields of the problem+json, such as the name of the collection.

    Attributes:
        status: the HTTP status.
        slug: the last part of the problem's `type`.
        title: the problem's title, the same for all errors of a class.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **facts: str | int | float) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class InvalidRequest(ClipfleetError):
    """The request asks for something that is not possible."""

    status = 422
    slug = "invalid-request"
    title = "The request cannot be carried out as it stands"


class BadImage(InvalidRequest):
    """The bytes are not an accepted image. `detail` gives the reason."""

    slug = "bad-image"
    title = "The image cannot be used"


class Unauthorized(ClipfleetError):
    """The request has no API key, or one that is not active."""

    status = 401
    slug = "unauthorized"
    title = "An API key is required"


class Forbidden(ClipfleetError):
    """The API key, or the service itself, may not do this."""

    status = 403
    slug = "forbidden"
    title = "Not allowed"


class NotFound(ClipfleetError):
    """The named collection, job or image does not exist."""

    status = 404
    slug = "not-found"
    title = "Not found"


class Gone(ClipfleetError):
    """What the record of an image names is not there any more, or is something else now."""

    status = 410
    slug = "gone"
    title = "Not there any more"


class Conflict(ClipfleetError):
    """The thing exists and differs from the request, or its state forbids the request."""

    status = 409
    slug = "conflict"
    title = "The request conflicts with what exists"


class TooLarge(ClipfleetError):
    """The request, or its answer, is over a documented limit. `detail` names the setting."""

    status = 413
    slug = "too-large"
    title = "Over a limit"


class RateLimited(ClipfleetError):
    """The key has sent more requests than it may.

    Args:
        headers: the headers of the answer, Retry-After among them.
    """

    status = 429
    slug = "rate-limited"
    title = "Too many requests"

    def __init__(self, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.headers = headers


class Unavailable(ClipfleetError):
    """A part is away or full.

    Args:
        retry_after_s: seconds after which a client should retry; the Retry-After header.
    """

    status = 503
    slug = "unavailable"
    title = "Temporarily unavailable"

    def __init__(self, detail: str, retry_after_s: int = 2, **facts: str | int | float) -> None:
        super().__init__(detail, **facts)
        self.retry_after_s = retry_after_s


class StartupError(ClipfleetError):
    """A part cannot start with its settings. `detail` says what to change."""

    slug = "startup"
    title = "Cannot start"


class Unreadable(Exception):
    """One item cannot be read. The text is the reason, without the name of the item."""


def reason_of(error: OSError | ValueError) -> str:
    """The reason why a file or a socket cannot be used, such as "Permission denied".

    It is the system's text, without error number and path. An error that does not come from the
    system, such as the ValueError for a NUL in a path, gives its own text.
    """
    return getattr(error, "strerror", None) or str(error)
