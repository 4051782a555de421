"""Image search as a service: index images in bulk, find them by words or by image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipfleet._version import __version__

if TYPE_CHECKING:
    from clipfleet.client import AsyncClient, Client
    from clipfleet.errors import (
        Error,
        InvalidRequest,
        JobFailed,
        NotFound,
        ProblemError,
        Unreachable,
        WebhookError,
    )
    from clipfleet.results import (
        Alias,
        Collection,
        Export,
        Failure,
        Failures,
        Fleet,
        Image,
        Job,
        Match,
        Migration,
        Mirror,
        Missing,
        Recall,
        RegisteredSource,
        SearchResult,
        Timing,
        UnreadableImages,
        Updated,
    )
    from clipfleet.webhooks import WebhookEvent, verify_webhook

__all__ = [
    "Alias",
    "AsyncClient",
    "Client",
    "Collection",
    "Error",
    "Export",
    "Failure",
    "Failures",
    "Fleet",
    "Image",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "Match",
    "Migration",
    "Mirror",
    "Missing",
    "NotFound",
    "ProblemError",
    "Recall",
    "RegisteredSource",
    "SearchResult",
    "Timing",
    "Unreachable",
    "UnreadableImages",
    "Updated",
    "WebhookError",
    "WebhookEvent",
    "__version__",
    "verify_webhook",
]

_HOMES = ("clipfleet.errors", "clipfleet.results", "clipfleet.client", "clipfleet.webhooks")


def __getattr__(name: str) -> Any:
    """Import the client when it is first used: workers import this package and need no httpx."""
    if name in __all__:
        for home in map(import_module, _HOMES):
            if name in vars(home):
                return vars(home)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
