"""Defaults of the clients, and the arguments of the httpx clients."""

import os
from collections.abc import Callable
from typing import TypeVar
from urllib.request import getproxies

import httpx

from clipfleet._version import __version__
from clipfleet.client import arguments
from clipfleet.client.progress import Progress
from clipfleet.common.http.loopback import is_loopback
from clipfleet.errors import invalid_argument

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
OUTAGE_S = 60.0  # a longer outage ends a wait or an import
PAGE = 1_000  # failures in one request
PROXY_SETTINGS = "http_proxy, https_proxy, all_proxy and no_proxy"


def service_url(url: str | None) -> str:
    """The address of the service: the given one, that of the environment, or the default.

    An address without a scheme, such as `localhost` or `photos:8000`, gets `http://`.

    Raises:
        InvalidRequest: the address is not valid.
    """
    value = arguments.text("url", url or os.environ.get("CLIPFLEET_URL") or DEFAULT_URL).strip()
    address = value if "://" in value else f"http://{value}"
    try:
        parsed = httpx.URL(address)
        has_blanks = any(c.isspace() for c in address)
        is_valid = parsed.scheme in ("http", "https") and bool(parsed.host) and not has_blanks
    except (httpx.InvalidURL, ValueError, IndexError):  # of the host as well, such as xn--a
        is_valid = False
    if not is_valid:
        raise invalid_argument("url", f"{value!r} is no address such as {DEFAULT_URL}")
    return address


def http_client(kind: Callable[..., T], url: str, api_key: str | None, timeout_s: float) -> T:
    """Create the HTTP client of a client. It asks no proxy for a service on this machine.

    Args:
        kind: httpx.Client or httpx.AsyncClient.
        url: the address of the service.
        api_key: the API key; None: that of the environment.
        timeout_s: seconds for each step of a request.

    Raises:
        InvalidRequest: an argument is not valid, or the proxy settings of the environment are not.
    """
    api_key = api_key or os.environ.get("CLIPFLEET_API_KEY")
    timeout_s = arguments.seconds("timeout_s", timeout_s)
    headers = {"User-Agent": f"clipfleet/{__version__}"}
    if api_key:
        headers["Authorization"] = f"Bearer {arguments.header('api_key', api_key)}"
    options = {"base_url": httpx.URL(url), "headers": headers, "timeout": timeout_s}
    if is_loopback(url):  # without the environment, but with its SSL_CERT_FILE
        return kind(**options, trust_env=False, verify=httpx.create_ssl_context())
    try:
        return kind(**options)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        message = f"{PROXY_SETTINGS} of the environment cannot be used: {_proxy_problem(error)}"
        raise invalid_argument("", message) from error


def proxy_hint(url: str) -> str:
    """What to add to the error of a request that a proxy may have failed; "" for no proxy."""
    proxies = getproxies()
    is_asked = not is_loopback(url) and any(proxies.get(kind) for kind in ("http", "https", "all"))
    return f"; {PROXY_SETTINGS} of the environment may name a proxy for it" if is_asked else ""


def _proxy_problem(error: Exception) -> str:
    """The problem without the proxy's address, which may contain a password."""
    if isinstance(error, ImportError):
        return 'a SOCKS proxy needs another package: pip install "httpx[socks]"'
    return "one of them is not a URL such as http://proxy.example.org:3128"


def require_wait(wait: bool, progress: Progress) -> None:
    """InvalidRequest if progress is to be shown without waiting."""
    if progress and not wait:
        raise invalid_argument("progress", "progress= needs wait=True", is_sentence=True)
