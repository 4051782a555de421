"""Who may do what. Every route says what it needs, and asks here before it reads the body.

A route of a collection has `{name}` in its path, one of a job `{job_id}`: both are checked here, so
that no route can forget to. What a key may not see is not there.
"""

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from clipfleet.api.gateway import Gateway
from clipfleet.api.keyring import KeyRing
from clipfleet.common import keys
from clipfleet.common.catalogue import unknown_collection
from clipfleet.common.errors import (
    Forbidden,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from clipfleet.common.keys import Key
from clipfleet.common.ledger import unknown_job
from clipfleet.common.rate_limit import Ration
from clipfleet.common.settings import Settings

log = logging.getLogger(__name__)

Need = Literal["nothing", "read", "write", "admin"]
E = TypeVar("E", bound=Callable[..., Any])

LIMITER_S = 1.0  # a Redis that takes longer is away, and nothing is counted
NO_KEYS = (
    "this service has no keys, so it answers only clients on its own machine; "
    "its operator can make keys (`clipfleet keys create`, CLIPFLEET_KEYS_FILE) "
    "or open it to everybody (CLIPFLEET_OPEN=true)"
)
PROXIED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class KeyExpired(Unauthorized):
    slug = "key-expired"
    title = "The API key has expired"


class NoKeys(Unauthorized):
    slug = "no-keys"
    title = "Only clients on this machine are answered"


@dataclass(frozen=True)
class Caller:
    """Who asks. Without a key: everybody who is answered at all, and may do anything."""

    key: Key | None = None

    def may(self, need: keys.Scope) -> bool:
        return self.key is None or self.key.may(need)

    def sees(self, collection: str) -> bool:
        return self.key is None or self.key.sees(collection)

    @property
    def sees_all(self) -> bool:
        return self.key is None or self.key.collections is None


def needs(need: Need, *, makes: bool = False) -> Callable[[E], E]:
    """What a caller of this route needs. `makes`: a collection that need not be there; a name that
    the key may not use is refused, not unknown."""

    def declared(endpoint: E) -> E:
        vars(endpoint).update(needs=need, makes=makes)
        return endpoint

    return declared


class GuardedRoute(APIRoute):
    """A route that has declared what it needs; one that has not cannot be made."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **told: Any) -> None:
        said = vars(endpoint)
        if "needs" not in said:
            raise TypeError(
                f"{path}: the route does not say what it needs; see clipfleet.api.access"
            )
        self.needs: Need = said["needs"]
        self.makes: bool = said["makes"]
        super().__init__(path, endpoint, **told)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.needs != "nothing":
            caller, ration = await self._admitted(scope)
            scope["state"]["caller"] = caller
            send = _told(send, ration) if ration else send
        await super().handle(scope, receive, send)

    async def _admitted(self, scope: Scope) -> tuple[Caller, Ration | None]:
        app = scope["app"]
        access: Access = app.state.access
        caller = access.caller(scope)
        ration = await access.ration(caller, app.state.gateway) if caller.key else None
        assert self.needs != "nothing"
        if not caller.may(self.needs):
            raise Forbidden(f"this needs a key with the scope {self.needs!r}", scope=self.needs)
        await self._require_seen(caller, scope["path_params"], app.state.gateway)
        return caller, ration

    async def _require_seen(self, caller: Caller, named: Any, gateway: Gateway) -> None:
        if caller.sees_all:
            return
        if "name" in named and not caller.sees(named["name"]):
            if self.makes:
                said = f"this key may not use a collection called {named['name'][:80]!r}"
                raise Forbidden(said, collection=named["name"][:80])
            raise unknown_collection(named["name"])
        if "job_id" in named:
            job = await gateway.call(gateway.ledger.job, named["job_id"])
            if not caller.sees(job.new.collection):
                raise unknown_job(named["job_id"])


class Access:
    """StartupError when the settings contradict each other, or the keys file is no good."""

    def __init__(self, settings: Settings) -> None:
        self._open, self._most = settings.open, settings.limits.requests_per_minute
        path = keys.keys_path(settings.keys_file, settings.open)
        self._ring = KeyRing(path) if path else None

    def say(self) -> None:
        if self._ring:
            log.info("%d keys are in force", len(self._ring.in_force()))
        elif self._open:
            log.warning("CLIPFLEET_OPEN: everybody who reaches this service may do anything")
        else:
            log.info("no keys: only clients on this machine are answered")

    def caller(self, scope: Scope) -> Caller:
        """Unauthorized when there is no reason to answer."""
        headers = dict(scope["headers"])
        if self._ring is None:
            if self._open or _is_local(scope.get("client"), headers):
                return Caller()
            raise NoKeys(NO_KEYS)
        kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY")
        key = keys.find_key(secret.strip(), self._ring.in_force())
        if key is None:
            raise Unauthorized("there is no such API key")
        if key.expired(keys.now()):
            raise KeyExpired(f"the API key {key.name!r} expired at {key.expires_at:%FT%TZ}")
        return Caller(key)

    async def ration(self, caller: Caller, gateway: Gateway) -> Ration | None:
        """What is left to this key, this request taken off; RateLimited when that is nothing. None
        when it has no limit, or when nobody can count: then the request goes on to its own 503."""
        assert caller.key
        most = caller.key.requests_per_minute or self._most
        if not most:
            return None
        take = gateway.limiter.take
        try:
            ration = await gateway.call(take, caller.key.name, most, seconds=LIMITER_S)
        except Unavailable:
            return None
        if not ration.granted:
            raise RateLimited(f"{most} requests a minute are what this key has", ration.headers())
        return ration


def _is_local(client: tuple[str, int] | None, headers: dict[bytes, bytes]) -> bool:
    """Whether the client is on this machine: loopback, or a UNIX socket, which has no address.

    A proxy may be on loopback while its clients are elsewhere, and anybody can send the header that
    names a client on loopback. So what has passed a proxy is never local.
    """
    if any(name in headers for name in PROXIED):
        return False
    if client is None:
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _told(send: Send, ration: Ration) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            said = [(name.lower().encode(), text.encode()) for name, text in ration.headers()]
            message = {**message, "headers": [*message.get("headers", ()), *said]}
        await send(message)

    return told
