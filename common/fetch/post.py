"""Sends small bodies to URLs from strangers, by the rules for fetching: addresses, TLS, time.

It follows no redirect, keeps no connection, and reads nothing of an answer but its head.
"""

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpcore
import httpx

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import (
    USER_AGENT,
    Retryable,
    default_tls,
    parse_url,
    translating_errors,
)
from clipfleet.common.fetch.addresses import Network, may_connect
from clipfleet.common.fetch.content import header
from clipfleet.common.fetch.look_ups import LookUp, look_up
from clipfleet.common.fetch.network import REFUSED, AddressRefused, Backend, deadline
from clipfleet.common.http.retry_after import retry_after_s
from clipfleet.common.settings import Fetch


@dataclass(frozen=True)
class Reply:
    """The answer of a receiver.

    Attributes:
        status: the HTTP status.
        retry_after_s: the seconds that the receiver asks to wait; None: it does not say.
    """

    status: int
    retry_after_s: float | None = None


class Poster:
    """Sends requests with a body. Thread-safe.

    Args:
        settings: the allowed networks.
        timeout_s: the time for one request, with the look-up of its host.
        look_up: looks up the addresses of a host name; for tests.
        tls: replaces the default TLS context; for tests.
    """

    def __init__(
        self,
        settings: Fetch,
        timeout_s: float,
        *,
        look_up: LookUp = look_up,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or default_tls(),
            max_connections=None,  # limited by the caller
            max_keepalive_connections=0,
            network_backend=Backend(settings.allowed_networks, look_up),
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a request.

        Raises:
            AddressRefused: the service may not connect to the address.
            Unreadable: the request cannot be sent; the text gives the reason.
            LookUpsBusy: the host name cannot be looked up now.
        """
        target = parse_url(url)
        try:
            with deadline(self._timeout_s), translating_errors(""):
                return self._post(target, body, headers)
        except Retryable as error:
            raise Unreadable(str(error)) from error

    def _post(self, target: httpx.URL, body: bytes, headers: Mapping[str, str]) -> Reply:
        own: dict[str | bytes, str | bytes] = {
            "Host": target.netloc,
            "User-Agent": USER_AGENT,
            "Content-Length": str(len(body)),
        }
        timeouts = dict.fromkeys(("connect", "read", "write"), self._timeout_s)
        with self._pool.stream(
            "POST",
            httpcore.URL(
                scheme=target.raw_scheme,
                host=target.raw_host,
                port=target.port,
                target=target.raw_path,
            ),
            headers=[*own.items(), *headers.items()],
            content=body,
            extensions={"timeout": timeouts},
        ) as response:
            wait_s = retry_after_s(header(response, b"retry-after"))
            return Reply(response.status, wait_s)


def require_sendable(url: str, allowed: Sequence[Network]) -> None:
    """Check a URL before it is used, without a look-up of its host.

    Args:
        url: the URL.
        allowed: networks that are allowed in addition to public addresses.

    Raises:
        Unreadable: it is not a URL that may be used, or names an address that is refused.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise Unreadable("it must begin with https:// or http://")
    host = parse_url(url).host
    address = "127.0.0.1" if host.rpartition(".")[2] == "localhost" else host
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return  # a name, whose addresses are checked at each connection
    if not may_connect(address, allowed):
        raise AddressRefused(REFUSED.format(host=host))
