"""Fetching what callers name by URL, so that it can be trusted with strangers' URLs.

Only http and https, only from addresses that may be fetched from (`addresses.py`, checked at each
connection of each redirect, `network.py`), bounded in time and bytes, tried again where that may
help. No cookies, no credentials, no proxies from the environment: a proxy would connect for us,
and nobody would check where to.
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
from clipfleet.common.fetch.content import PIECE, Body, CutShort, content, header, refuse_page
from clipfleet.common.fetch.memory import FREE, Memory, require_memory
from clipfleet.common.fetch.network import (
    Backend,
    Cancellation,
    Cancelled,
    LookUp,
    deadline,
    extend,
    look_up,
    pause,
)
from clipfleet.common.fetch.turns import PerHostLimit
from clipfleet.common.http.retry_after import retry_after_s
from clipfleet.common.settings import Fetch

__all__ = [
    "FREE",
    "Cancellation",
    "Cancelled",
    "Fetcher",
    "Memory",
    "Unreadable",
    "require_memory",
]

T = TypeVar("T")

LONGEST_BACKOFF_S = 10.0
CREDIT = 3.0  # times read_s: for so long a stream may fall behind its least rate
OK = (200, 203)
REDIRECTS = (301, 302, 303, 307, 308)
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
USER_AGENT = f"clipfleet/{__version__} (image search)"


class _TryAgain(Exception):
    """It may go better later.

    Attributes:
        after_s: what the server asked for.
        silent: the host that did not answer in time, if that is the reason.
    """

    def __init__(self, reason: str, after_s: float | None = None, silent: str = "") -> None:
        super().__init__(reason)
        self.after_s, self.silent = after_s, silent


@cache
def _default_tls() -> ssl.SSLContext:
    """One for all fetchers of a process: loading the authorities takes 40 ms."""
    return httpcore.default_ssl_context()


class Fetcher:
    """Safe to use from many threads; keeps connections open for the next fetch.

    `total_s` in place of the settings' own.
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
        self._turns = PerHostLimit(settings.per_host)
        self._breaker = Breaker(settings.breaker_timeouts, settings.breaker_s)
        self._backend = Backend(settings.allowed_networks, look_up)
        self._timeouts = {
            "connect": settings.connect_s,
            "read": settings.read_s,
            "write": settings.read_s,
        }
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or _default_tls(),
            max_connections=None,  # threads and turns bound them
            max_keepalive_connections=32,
            keepalive_expiry=15.0,
            network_backend=self._backend,
        )

    def close(self) -> None:
        self._pool.close()
        self._backend.close()

    def get(self, url: str, limit_bytes: int) -> bytes:
        """The whole file, of at most so many bytes. Unreadable, with the reason.

        Takes at most `total_s`, not counting the wait for a turn at the host.
        """
        return self._tried(partial(self._get, url, limit_bytes))

    def refusal(self, url: str) -> str:
        """Why it would be refused at once, since its server is left alone; "" when it would not."""
        parts = urlsplit(url)
        return self._breaker.refusal(f"{parts.scheme}://{parts.netloc}")

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        """A file to read as it comes, however long it is; Unreadable from here and from its
        `read`. It takes no turn at the host. Its server must send `stream_bytes_s`, and is waited
        for `stream_s` in all; the time between two calls of `read` does not count."""
        connection, response = self._tried(partial(self._open, url))
        with connection:
            body = Body(_paced(content(response), self._settings))
            yield cast("BinaryIO", io.BufferedReader(body, PIECE))

    def _get(self, url: str, limit_bytes: int) -> bytes:
        with self._answer(url, self._turn) as response:
            data = b"".join(content(response, limit_bytes))
            refuse_page(data, response)
            return data

    def _open(self, url: str) -> tuple[ExitStack, httpcore.Response]:
        with ExitStack() as connection:
            response = connection.enter_context(self._answer(url, _no_turn))
            return connection.pop_all(), response

    @contextmanager
    def _turn(self, host: str) -> Iterator[None]:
        with self._turns.of(host) as waited_s:
            extend(waited_s)
            yield

    def _tried(self, once: Callable[[], T]) -> T:
        """Backoff with full jitter: any time up to the doubled one, so that many who failed
        together do not come back together (M. Brooker, "Exponential Backoff And Jitter", AWS
        Architecture Blog, 2015)."""
        with deadline(self._total_s) as until:
            for attempt in count(1):
                try:
                    return once()
                except _TryAgain as error:
                    why = error
                most = min(LONGEST_BACKOFF_S, self._settings.backoff_s * 2.0 ** (attempt - 1))
                wait_s = random.uniform(0, most) if why.after_s is None else why.after_s
                is_last = attempt >= self._settings.tries
                if (is_last or wait_s >= until.left()) and why.silent:
                    self._breaker.timed_out(why.silent)
                if is_last:
                    raise Unreadable(f"{why} ({attempt} tries)") from why
                if wait_s >= until.left():
                    raise Unreadable(f"{why}, and more than {self._total_s:g} s it is not given")
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    @contextmanager
    def _answer(
        self, text: str, turn: Callable[[str], AbstractContextManager[None]]
    ) -> Iterator[httpcore.Response]:
        """The answer with the file, at the end of the redirects."""
        url = _checked(text)
        for _ in range(self._settings.redirects + 1):
            server = f"{url.scheme}://{url.netloc.decode()}"
            with turn(url.raw_host.decode()):
                self._breaker.check(server)
                with _understood(server), self._asked(url) as response:
                    if response.status not in REDIRECTS:
                        if response.status not in OK:
                            self._breaker.answered(server)
                            raise _failure(response)
                        yield response
                        self._breaker.answered(server)
                        return
                    self._breaker.answered(server)
                    url = _next(url, header(response, b"location"))
        raise Unreadable(f"it redirects more than {self._settings.redirects} times")

    def _asked(self, url: httpx.URL) -> AbstractContextManager[httpcore.Response]:
        """Identity, since images do not shrink and what is counted then is what is sent."""
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


def _no_turn(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def _checked(text: str | httpx.URL) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise Unreadable("it is no valid URL") from error
    if url.scheme not in ("http", "https"):
        raise Unreadable("only http and https URLs are fetched")
    if url.userinfo:
        raise Unreadable("URLs with a user name or password are not fetched")
    host = url.raw_host.decode("ascii").rstrip(".")
    port = 80 if url.port is None else url.port
    if not host or "%" in host or not 0 < port < 65_536:
        raise Unreadable("it is no valid URL")
    return url.copy_with(host=host)


def _next(url: httpx.URL, location: str) -> httpx.URL:
    try:
        target = _checked(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise Unreadable("it redirects to what is no valid URL") from error
    except Unreadable as error:
        raise Unreadable(f"where it redirects to: {error}") from error
    if (url.scheme, target.scheme) == ("https", "http"):
        raise Unreadable("it redirects from https to http, where anybody may have changed it")
    return target


def _failure(response: httpcore.Response) -> Exception:
    status = response.status
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    said = f"the server answered {status} {phrase}".rstrip()
    if status not in WORTH_ANOTHER_TRY:
        return Unreadable(said)
    return _TryAgain(said, retry_after_s(header(response, b"retry-after")))


@contextmanager
def _understood(server: str) -> Iterator[None]:
    """What went wrong, in the caller's terms, and whether another try may help."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise _TryAgain("the server did not answer in time", silent=server) from error
    except httpcore.ConnectError as error:
        raise _TryAgain("the server cannot be reached") from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, CutShort) as error:
        raise _TryAgain("the server broke off") from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise Unreadable("it is no valid URL") from error


def _paced(pieces: Iterator[bytes], settings: Fetch) -> Iterator[bytes]:
    """What comes at the least rate or faster. Unreadable otherwise.

    A server has credit for so many seconds of silence, and earns more with each byte.
    """
    most = credit_s = CREDIT * settings.read_s
    left_s = settings.stream_s
    while True:
        began, given_s = time.monotonic(), min(credit_s, left_s)
        try:
            with _understood(""), deadline(given_s):
                piece = next(pieces, None)
        except _TryAgain as error:
            waited_s = time.monotonic() - began
            raise Unreadable(_too_slow(error, waited_s, credit_s, left_s, settings)) from error
        if piece is None:
            return
        waited_s = time.monotonic() - began
        left_s -= waited_s
        credit_s = min(most, credit_s - waited_s + len(piece) / settings.stream_bytes_s)
        yield piece


def _too_slow(
    error: Exception, waited_s: float, credit_s: float, left_s: float, settings: Fetch
) -> str:
    if waited_s >= left_s:
        return f"it took longer than {settings.stream_s:g} s (CLIPFLEET_FETCH__STREAM_S)"
    if waited_s >= credit_s:
        least = f"{settings.stream_bytes_s:g} bytes a second (CLIPFLEET_FETCH__STREAM_BYTES_S)"
        return f"the server sends less than {least}"
    return f"{error} on the way"
