"""The wire under the fetcher: it connects to checked addresses only, and waits no longer than the
deadline of the fetch that it works for.

The name is looked up here, once, and the connection goes to the very address that was checked: a
name that answers otherwise when asked again (DNS rebinding) gains nothing. TLS and the Host header
still go by the name, since httpcore never learns the address.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import httpcore

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.addresses import Network, may_connect

LookUp = Callable[[str, int], Sequence[str]]

MOST_ADDRESSES = 4  # of one name are tried
REFUSED = (
    "the address of {host!r} is not a public one; CLIPFLEET_FETCH__ALLOWED_NETWORKS lists others "
    "that may be fetched from"
)
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class Deadline:
    """When a fetch must have ended."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        return self._at - time.monotonic()

    def extend(self, seconds: float) -> None:
        self._at += seconds


class Cancelled(Unreadable):
    """Nobody wants it any more."""

    def __init__(self) -> None:
        super().__init__("it is not needed any more")


class Cancellation:
    """Ends from another thread what is read inside of its `scope`."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What this thread connects to and reads inside raises Cancelled after `cancel`."""
        token = _cancellation.set(self)
        try:
            yield
        finally:
            _cancellation.reset(token)

    def cancel(self) -> None:
        """A thread that waits for bytes wakes up; one that connects ends with its time limit."""
        self._cancelled.set()
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    # Not SSLSocket.shutdown: it takes the state away that the reader works with.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    def check(self) -> None:
        if self.is_cancelled:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Sleep until `cancel`, which raises Cancelled."""
        self._cancelled.wait(seconds)
        self.check()

    @contextmanager
    def reading(self, stream: httpcore.NetworkStream) -> Iterator[None]:
        each: socket.socket = stream.get_extra_info("socket")
        with self._lock:
            self.check()
            self._sockets.add(each)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(each)
            self.check()


# httpcore reads in the thread that asked, so these need no way through it.
_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
_cancellation: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def pause(seconds: float) -> None:
    """Sleep; Cancelled when nobody wants the fetch at hand any more."""
    if now := _cancellation.get():
        now.wait(seconds)
    else:
        time.sleep(seconds)


def check_cancelled() -> None:
    """Cancelled when nobody wants the fetch at hand any more."""
    if now := _cancellation.get():
        now.check()


def _cancellable(stream: httpcore.NetworkStream) -> AbstractContextManager[None]:
    now = _cancellation.get()
    return now.reading(stream) if now else nullcontext()


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Everything read and connected to inside ends within so many seconds."""
    made = Deadline(seconds)
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)


def extend(seconds: float) -> None:
    """More time for the fetch at hand, which waited for something else than its server."""
    if now := _current.get():
        now.extend(seconds)


def _within(timeout: float | None) -> float | None:
    """What is left for one step. A server that sends a byte now and then gets no more than this."""
    now = _current.get()
    if now is None:
        return timeout
    left = now.left()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left if timeout is None else min(timeout, left)


def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name. Also reads numbers as C does: 2130706433 is 127.0.0.1."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Stream(httpcore.NetworkStream):
    """A connection whose every step ends with the deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _cancellable(self._inner):
            return self._inner.read(max_bytes, _within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _cancellable(self._inner):
            self._inner.write(buffer, _within(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            return Stream(self._inner.start_tls(ssl_context, server_hostname, _within(timeout)))
        except httpcore.ConnectError as error:
            if distrust := _distrust(error.__cause__):
                raise Unreadable(f"no secure connection to the server: {distrust}") from error
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _distrust(cause: BaseException | None) -> str:
    """Why TLS did not come about; empty when it is just that the connection broke."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return str(cause.verify_message)
    broke = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, broke):
        return str(cause.reason)
    return ""


class Backend(httpcore.NetworkBackend):
    """Refuses names of which any address is not allowed: one that mixes is broken, or a trick."""

    def __init__(self, allowed: Sequence[Network], look_up: LookUp) -> None:
        self._allowed, self._look_up = allowed, look_up
        self._inner = httpcore.SyncBackend()
        # A look-up cannot be given a time limit; on a thread it can at least be left behind.
        self._threads = ThreadPoolExecutor(16, "look-up")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        check_cancelled()
        addresses = self._addresses(host, port, _within(timeout))
        if not all(may_connect(address, self._allowed) for address in addresses):
            raise Unreadable(REFUSED.format(host=host))
        *others, last = addresses[:MOST_ADDRESSES]
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return self._connect(address, port, timeout, local_address, socket_options)
        return self._connect(last, port, timeout, local_address, socket_options)

    def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        raise Unreadable("sockets of this machine are not fetched from")

    def _connect(self, address: str, port: int, timeout: float | None, *rest: Any) -> Stream:
        return Stream(self._inner.connect_tcp(address, port, _within(timeout), *rest))

    def _addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        try:
            found = self._threads.submit(self._look_up, host, port).result(timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"the name {host!r} was not looked up in time") from error
        except UnicodeError as error:
            raise Unreadable(f"{host!r} is no valid host name") from error
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise Unreadable(f"there is no host {host!r}") from error
            raise httpcore.ConnectError(f"the name {host!r} cannot be looked up") from error
        if not found:
            raise Unreadable(f"the host {host!r} has no address")
        return found
