"""The network backend of the fetcher: it connects to checked addresses only, within the deadline.

A name is looked up once, and the connection goes to the address that was checked: a name with
another address in the next look-up (DNS rebinding) is of no use. TLS and the Host header use the
name, since httpcore does not see the address.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import httpcore

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.addresses import Network, may_connect
from clipfleet.common.fetch.look_ups import MAX_LOOK_UPS, LookUp, LookUps
from clipfleet.common.shares import NOBODY, Owner

MAX_ADDRESSES = 4  # that are tried of one name
REFUSED = (
    "the address of {host!r} is not a public one; CLIPFLEET_FETCH__ALLOWED_NETWORKS lists other "
    "networks to fetch from"
)
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class AddressRefused(Unreadable):
    """The service may not connect to this address."""


class Deadline:
    """The time at which a fetch must end, `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def remaining(self) -> float:
        """The seconds until then; negative when it is over."""
        return self._at - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Move it to a later time."""
        self._at += seconds


class Cancelled(Unreadable):
    """The fetch was cancelled."""

    def __init__(self) -> None:
        super().__init__("it is not needed any more")


class Cancellation:
    """Cancels fetches from another thread: those inside its `scope`.

    Args:
        owner: whom the fetches are for; owners share the look-ups of host names.
    """

    def __init__(self, owner: Owner = NOBODY) -> None:
        self.owner = owner
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Context in which connections and reads of this thread raise Cancelled after `cancel`."""
        token = _cancellation.set(self)
        try:
            yield
        finally:
            _cancellation.reset(token)

    def cancel(self) -> None:
        """Cancel all fetches in the scope.

        A thread that waits for bytes wakes up at once; one that connects ends with its timeout.
        """
        self._cancelled.set()
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    # Not SSLSocket.shutdown, which deletes the TLS state that the reader uses.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise Cancelled after `cancel`."""
        if self.is_cancelled:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        """Sleep; raise Cancelled when `cancel` is called."""
        self._cancelled.wait(seconds)
        self.check()

    @contextmanager
    def reading(self, stream: httpcore.NetworkStream) -> Iterator[None]:
        """Context of a read or a write, which `cancel` ends."""
        connection: socket.socket = stream.get_extra_info("socket")
        with self._lock:
            self.check()
            self._sockets.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)
            self.check()


# httpcore reads in the calling thread, so context variables reach the backend.
_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
_cancellation: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def pause(seconds: float) -> None:
    """Sleep; raise Cancelled when the current fetch is cancelled."""
    if current := _cancellation.get():
        current.wait(seconds)
    else:
        time.sleep(seconds)


def check_cancelled() -> None:
    """Raise Cancelled when the current fetch is cancelled."""
    if current := _cancellation.get():
        current.check()


def _owner() -> Owner:
    current = _cancellation.get()
    return current.owner if current else NOBODY


def _cancellable(stream: httpcore.NetworkStream) -> AbstractContextManager[None]:
    current = _cancellation.get()
    return current.reading(stream) if current else nullcontext()


@contextmanager
def deadline(seconds: float) -> Iterator[Deadline]:
    """Context in which all connections and reads of this thread end within `seconds`."""
    created = Deadline(seconds)
    token = _current.set(created)
    try:
        yield created
    finally:
        _current.reset(token)


def extend(seconds: float) -> None:
    """Extend the deadline of the current fetch, which waited for something else than its server."""
    if current := _current.get():
        current.extend(seconds)


def _remaining(timeout: float | None) -> float | None:
    """The timeout of one step: what remains of the deadline, if that is less than `timeout`."""
    current = _current.get()
    if current is None:
        return timeout
    remaining = current.remaining()
    if remaining <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return remaining if timeout is None else min(timeout, remaining)


class Stream(httpcore.NetworkStream):
    """A connection of which every step ends with the deadline."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _cancellable(self._inner):
            return self._inner.read(max_bytes, _remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _cancellable(self._inner):
            self._inner.write(buffer, _remaining(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            return Stream(self._inner.start_tls(ssl_context, server_hostname, _remaining(timeout)))
        except httpcore.ConnectError as error:
            if reason := _tls_failure(error.__cause__):
                raise Unreadable(f"no secure connection to the server: {reason}") from error
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _tls_failure(cause: BaseException | None) -> str:
    """Why the TLS handshake failed; "" when only the connection broke."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return str(cause.verify_message)
    broke = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, broke):
        return str(cause.reason)
    return ""


class Backend(httpcore.NetworkBackend):
    """Connects to allowed addresses.

    A name with at least one address that is not allowed is refused: it is wrong, or an attack.

    Args:
        allowed: networks that are allowed in addition to public addresses.
        look_up: looks up the addresses of a host name.
    """

    def __init__(self, allowed: Sequence[Network], look_up: LookUp) -> None:
        self._allowed, self._look_ups = allowed, LookUps(look_up, MAX_LOOK_UPS)
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        check_cancelled()
        addresses = self._addresses(host, port, _remaining(timeout))
        if not all(may_connect(address, self._allowed) for address in addresses):
            raise AddressRefused(REFUSED.format(host=host))
        *others, last = addresses[:MAX_ADDRESSES]
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
        raise Unreadable("Unix sockets are not supported")

    def _connect(self, address: str, port: int, timeout: float | None, *rest: Any) -> Stream:
        return Stream(self._inner.connect_tcp(address, port, _remaining(timeout), *rest))

    def _addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        try:
            addresses = self._look_ups.addresses(host, port, _owner(), timeout)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"the name {host!r} was not looked up in time") from error
        except UnicodeError as error:
            raise Unreadable(f"{host!r} is not a valid host name") from error
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise Unreadable(f"there is no host {host!r}") from error
            raise httpcore.ConnectError(f"the name {host!r} cannot be looked up") from error
        if not addresses:
            raise Unreadable(f"the host {host!r} has no address")
        return addresses
