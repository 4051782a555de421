"""Addresses of Redis Sentinels in `CLIPFLEET_REDIS_URL`.

    redis+sentinel://[user:password@]host[:26379][,host[:26379]…]/service[/database][?options]

Redis-Sentinel-Url, RedisVL and Prefect read the same form. `rediss+sentinel://` means TLS, to the
Sentinels and to Redis. The options `sentinel_username` and `sentinel_password` are for Sentinels
that have a password.
"""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
PORT = 26379
OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class SentinelAddress:
    """The Sentinels that know the primary, and how to log in.

    Attributes:
        nodes: host and port of each Sentinel.
        service: the name under which the Sentinels watch the primary.
        database: the number of the primary's database.
        credentials: `username` and `password` for Redis, as redis-py names them; only those that
            are set.
        sentinel_credentials: `username` and `password` for the Sentinels; only those that are set.
        tls: whether Sentinels and Redis use TLS.
    """

    nodes: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    credentials: dict[str, str] = field(default_factory=dict)
    sentinel_credentials: dict[str, str] = field(default_factory=dict)
    tls: bool = False

    @property
    def broker_url(self) -> str:
        """One address for each Sentinel, joined with `;`, as kombu reads them.

        The service is not part of it: kombu has an option for it.
        """
        user, password = (self.credentials.get(name, "") for name in ("username", "password"))
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        return ";".join(
            f"sentinel://{login}{_bracketed(host)}:{port}/{self.database}"
            for host, port in self.nodes
        )


def sentinel_address(url: str) -> SentinelAddress | None:
    """Parse a URL of Sentinels. None for a URL with another scheme.

    Raises:
        ValueError: the scheme is one of Sentinels, and the rest cannot be parsed.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        return None
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    login, _, hosts = authority.rpartition("@")
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("no name of a service")
    options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    if unknown := options.keys() - set(OPTIONS):
        raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
    user, _, password = login.partition(":")
    return SentinelAddress(
        nodes=tuple(_node(host) for host in hosts.split(",")),
        service=unquote(service),
        database=int(database or 0),
        credentials=_set(username=unquote(user), password=unquote(password)),
        sentinel_credentials=_set(
            **{name.removeprefix("sentinel_"): value for name, value in options.items()}
        ),
        tls=SCHEMES[scheme],
    )


def _node(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a Sentinel without a host")
    return parts.hostname, parts.port or PORT


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _set(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
