"""Fetches files by URL, safely also for URLs from strangers. `workers.storage` reads the rest.

It fetches only http and https, and only from allowed addresses (`addresses.py`), which are checked
for each connection of each redirect (`network.py`). Time and bytes are limited, and temporary
failures are retried. It uses no cookies, no credentials and no proxies from the environment: a
proxy would connect to addresses that are not checked.
"""

import io
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from http import HTTPStatus
from itertools import count
from typing import BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import httpcore
import httpx

from clipfleet._version import __version__
from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.breaker import Breaker
from clipfleet.common.fetch.content import PIECE_BYTES, Body, CutShort, content, header, refuse_page
from clipfleet.common.fetch.fair_slots import FairSlots
from clipfleet.common.fetch.host_limit import PerHostLimit
from clipfleet.common.fetch.look_ups import LookUp, LookUpsBusy, look_up
from clipfleet.common.fetch.memory import FREE, Memory, require_memory
from clipfleet.common.fetch.network import (
    Backend,
    Cancellation,
    Cancelled,
    deadline,
    extend,
    pause,
)
from clipfleet.common.http.retry_after import retry_after_s
from clipfleet.common.settings import Fetch

__all__ = [
    "FREE",
    "Cancellation",
    "Cancelled",
    "FairSlots",
    "Fetcher",
    "LookUpsBusy",
    "Memory",
    "Unreadable",
    "require_memory",
]

T = TypeVar("T")

MAX_BACKOFF_S = 10.0
CREDIT_FACTOR = 3.0  # times `read_s`: how far a stream may fall behind its minimum rate
SUCCESSES = (200, 203)
REDIRECTS = (301, 302, 303, 307, 308)
RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
USER_AGENT = f"clipfleet/{__version__} (image search)"


class Retryable(Exception):
    """The fetch failed, and another try may succeed.

    Attributes:
        after_s: the seconds that the server asks to wait; None: it does not say.
        silent: the server that did not answer in time; "" for other failures.
    """

    def __init__(self, reason: str, after_s: float | None = None, silent: str = "") -> None:
        super().__init__(reason)
        self.after_s, self.silent = after_s, silent


@cache
def default_tls() -> ssl.SSLContext:
    """One TLS context for all fetchers of a process: loading the CA certificates takes 40 ms."""
    return httpcore.default_ssl_context()


class Fetcher:
    """Fetches files by URL. Thread-safe; keeps connections open for the next fetch.

    Args:
        settings: see `Fetch`.
        total_s: replaces `settings.total_s`.
        look_up: looks up the addresses of a host name; for tests.
        sleep: waits between tries; for tests.
        tls: replaces the default TLS context; for tests.

    Example:
        fetcher = Fetcher(Fetch())
        data = fetcher.get("https://example.org/church.jpg", 32_000_000)
    """

    def __init__(
        self,
        settings: Fetch,
        *,
        total_s: float | None = None,
        look_up: LookUp = look_up,
        sleep: Callable[[float], None] = pause,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings, self._sleep = settings, sleep
        self._total_s = total_s or settings.total_s
        self._hosts = PerHostLimit(settings.per_host)
        self._breaker = Breaker(settings.breaker_timeouts, settings.breaker_s)
        self._timeouts = {
            "connect": settings.connect_s,
            "read": settings.read_s,
            "write": settings.read_s,
        }
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or default_tls(),
            max_connections=None,  # limited by threads and by slots
            max_keepalive_connections=32,
            keepalive_expiry=15.0,
            network_backend=Backend(settings.allowed_networks, look_up),
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def get(self, url: str, limit_bytes: int) -> bytes:
        """Fetch a whole file.

        It takes at most `total_s`, not counting the wait for a slot of the host.

        Args:
            limit_bytes: the size of the file at most.

        Raises:
            Unreadable: the file cannot be fetched; the text gives the reason.
            LookUpsBusy: its host name cannot be looked up now.
        """
        return self._with_retries(partial(self._get, url, limit_bytes))

    def refusal(self, url: str) -> str:
        """Why a fetch would fail at once because of the circuit breaker; "" when it would not."""
        parts = urlsplit(url)
        return self._breaker.refusal(f"{parts.scheme}://{parts.netloc}")

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        """Open a file of any length, to be read as it arrives. It takes no slot of the host.

        The server must send `stream_bytes_s` on average. The waits for it may take `stream_s` in
        all; the time between two calls of `read` does not count.

        Raises:
            Unreadable: the file cannot be fetched; also raised by `read` of the file.
            LookUpsBusy: its host name cannot be looked up now.
        """
        connection, response = self._with_retries(partial(self._open, url))
        with connection:
            body = Body(_at_minimum_rate(content(response), self._settings))
            yield cast("BinaryIO", io.BufferedReader(body, PIECE_BYTES))

    def _get(self, url: str, limit_bytes: int) -> bytes:
        with self._response(url, self._slot) as response:
            data = b"".join(content(response, limit_bytes))
            refuse_page(data, response)
            return data

    def _open(self, url: str) -> tuple[ExitStack, httpcore.Response]:
        with ExitStack() as connection:
            response = connection.enter_context(self._response(url, _no_slot))
            return connection.pop_all(), response

    @contextmanager
    def _slot(self, host: str) -> Iterator[None]:
        with self._hosts.of(host) as waited_s:
            extend(waited_s)
            yield

    def _with_retries(self, once: Callable[[], T]) -> T:
        """Retry with exponential backoff and full jitter.

        The wait is random, up to a time that doubles with each try, so that many fetches that fail
        together are not repeated together (M. Brooker, "Exponential Backoff And Jitter", AWS
        Architecture Blog, 2015).
        """
        with deadline(self._total_s) as until:
            for attempt in count(1):
                try:
                    return once()
                except Retryable as error:
                    failure = error
                max_wait_s = min(MAX_BACKOFF_S, self._settings.backoff_s * 2.0 ** (attempt - 1))
                wait_s = (
                    random.uniform(0, max_wait_s) if failure.after_s is None else failure.after_s
                )
                is_last = attempt >= self._settings.tries
                if (is_last or wait_s >= until.remaining()) and failure.silent:
                    self._breaker.timed_out(failure.silent)
                if is_last:
                    raise Unreadable(f"{failure} ({attempt} tries)") from failure
                if wait_s >= until.remaining():
                    raise Unreadable(
                        f"{failure}, and more than {self._total_s:g} s it is not given"
                    )
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    @contextmanager
    def _response(
        self, text: str, slot: Callable[[str], AbstractContextManager[None]]
    ) -> Iterator[httpcore.Response]:
        """The response with the file, after all redirects."""
        url = parse_url(text)
        for _ in range(self._settings.redirects + 1):
            server = f"{url.scheme}://{url.netloc.decode()}"
            with slot(url.raw_host.decode()):
                self._breaker.check(server)
                with translating_errors(server), self._request(url) as response:
                    if response.status not in REDIRECTS:
                        if response.status not in SUCCESSES:
                            self._breaker.answered(server)
                            raise _failure(response)
                        yield response
                        self._breaker.answered(server)
                        return
                    self._breaker.answered(server)
                    url = _redirect_target(url, header(response, b"location"))
        raise Unreadable(f"it redirects more than {self._settings.redirects} times")

    def _request(self, url: httpx.URL) -> AbstractContextManager[httpcore.Response]:
        """Send the request.

        The encoding is identity: images do not compress, and then the bytes that are counted are
        the bytes that are sent.
        """
        return self._pool.stream(
            "GET",
            httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers={
                "Host": url.netloc,
                "User-Agent": USER_AGENT,
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            },
            extensions={"timeout": self._timeouts},
        )


def _no_slot(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def parse_url(text: str | httpx.URL) -> httpx.URL:
    """The parts of a URL that may be fetched; Unreadable when it may not."""
    try:
        url = httpx.URL(text)
        _ = url.host  # decodes names such as xn--a, and not all of them are valid
    except (httpx.InvalidURL, ValueError, IndexError) as error:
        raise Unreadable("it is not a valid URL") from error
    if url.scheme not in ("http", "https"):
        raise Unreadable("only http and https URLs are fetched")
    if url.userinfo:
        raise Unreadable("URLs with a user name or password are not fetched")
    host = url.raw_host.decode("ascii").rstrip(".")
    port = 80 if url.port is None else url.port
    if not _can_be_a_host(host) or not 0 < port < 65_536:
        raise Unreadable("it is not a valid URL")
    return url.copy_with(host=host)


def _can_be_a_host(host: str) -> bool:
    """Whether a host is an IPv6 address, or a name that can be looked up (RFC 1035)."""
    if "%" in host:
        return False
    return ":" in host or (len(host) <= 253 and all(0 < len(x) <= 63 for x in host.split(".")))


def _redirect_target(url: httpx.URL, location: str) -> httpx.URL:
    if not location:
        raise Unreadable("the server redirects without a Location, so to nowhere")
    try:
        target = parse_url(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise Unreadable("it redirects to an invalid URL") from error
    except Unreadable as error:
        raise Unreadable(f"the target of its redirect: {error}") from error
    if (url.scheme, target.scheme) == ("https", "http"):
        raise Unreadable("it redirects from https to http, which does not protect the file")
    return target


def _failure(response: httpcore.Response) -> Exception:
    status = response.status
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    reason = f"the server answered {status} {phrase}".rstrip()
    if status not in RETRYABLE:
        return Unreadable(reason)
    return Retryable(reason, retry_after_s(header(response, b"retry-after")))


@contextmanager
def translating_errors(server: str) -> Iterator[None]:
    """Translate errors of httpcore into Unreadable, or Retryable when another try may help."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise Retryable("the server did not answer in time", silent=server) from error
    except httpcore.ConnectError as error:
        raise Retryable("the server cannot be reached") from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, CutShort) as error:
        raise Retryable("the server broke off the transfer") from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise Unreadable("it is not a valid URL") from error


def _at_minimum_rate(pieces: Iterator[bytes], settings: Fetch) -> Iterator[bytes]:
    """Pass on pieces that arrive at the minimum rate or faster; raise Unreadable otherwise.

    A server begins with a credit of seconds. Waiting for it uses the credit, and each byte adds to
    it.
    """
    max_credit_s = credit_s = CREDIT_FACTOR * settings.read_s
    remaining_s = settings.stream_s
    while True:
        began, limit_s = time.monotonic(), min(credit_s, remaining_s)
        try:
            with translating_errors(""), deadline(limit_s):
                piece = next(pieces, None)
        except Retryable as error:
            waited_s = time.monotonic() - began
            raise Unreadable(_too_slow(error, waited_s, credit_s, remaining_s, settings)) from error
        if piece is None:
            return
        waited_s = time.monotonic() - began
        remaining_s -= waited_s
        credit_s = min(max_credit_s, credit_s - waited_s + len(piece) / settings.stream_bytes_s)
        yield piece


def _too_slow(
    error: Exception, waited_s: float, credit_s: float, remaining_s: float, settings: Fetch
) -> str:
    if waited_s >= remaining_s:
        return f"it took longer than {settings.stream_s:g} s (CLIPFLEET_FETCH__STREAM_S)"
    if waited_s >= credit_s:
        rate = f"{settings.stream_bytes_s:g} bytes a second (CLIPFLEET_FETCH__STREAM_BYTES_S)"
        return f"the server sends less than {rate}"
    return f"{error} during the transfer"
