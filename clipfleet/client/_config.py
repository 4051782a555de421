"""Defaults of the clients, and the arguments of the httpx clients."""

import os
from typing import Any

from clipfleet._version import __version__
from clipfleet.client.progress import Progress

DEFAULT_URL = "http://127.0.0.1:8000"
OUTAGE_S = 60.0  # a longer outage ends a wait or an import
PAGE = 1_000  # failures in one request


def http_options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Keyword arguments of httpx.Client and httpx.AsyncClient."""
    api_key = api_key or os.environ.get("CLIPFLEET_API_KEY")
    headers = {"User-Agent": f"clipfleet/{__version__}"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": timeout_s}


def require_wait(wait: bool, progress: Progress) -> None:
    """ValueError if progress is to be shown without waiting."""
    if progress and not wait:
        raise ValueError("progress= needs wait=True")
