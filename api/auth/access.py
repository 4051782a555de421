"""Who may do what. Every route says what it needs, and asks here before it reads the body.

A route of a collection has `{name}` in its path, one of a job `{job_id}`: both are checked here, so
that no route can forget to. What a key may not see is not there.
"""

import ipaddress
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pydantic_core
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from clipfleet.api.auth.keyring import KeyRing
from clipfleet.api.auth.origin import from_another_site, host_name
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import (
    RULES,
    UNCOUNTED,
    Body,
    BodyRefused,
    Kind,
    Reservation,
    require_small,
    reserving,
)
from clipfleet.common.auth import keys
from clipfleet.common.auth.keys import Key
from clipfleet.common.auth.rate_limit import MemoryRateLimiter, RateLimit
from clipfleet.common.auth.source_access import grant_of_service
from clipfleet.common.errors import (
    ClipfleetError,
    Forbidden,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.ledger import unknown_job
from clipfleet.common.ledger.catalogue import unknown_collection
from clipfleet.common.settings import LOOPBACK_NAMES, Limits, Settings

log = logging.getLogger(__name__)

Need = Literal["nothing", "read", "write", "admin"]
E = TypeVar("E", bound=Callable[..., Any])

LIMITER_S = 1.0  # a Redis that takes longer is away, and nothing is counted
NO_KEYS = (
    "this service has no keys, so it answers only clients on its own machine; "
    "its operator can make keys (`clipfleet keys create`, CLIPFLEET_KEYS_FILE) "
    "or open it to everybody (CLIPFLEET_OPEN=true)"
)
NO_PAGES = (
    "without keys only what runs on this machine is answered, not pages of other sites: call the "
    "service localhost or 127.0.0.1, or list its name in CLIPFLEET_ALLOWED_HOSTS"
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
    def name(self) -> str:
        """Of the key."""
        return self.key.name if self.key else ""

    @property
    def sees_all(self) -> bool:
        return self.key is None or self.key.collections is None

    def grant(self, service: SourceGrant) -> SourceGrant | None:
        """What its jobs may read; None: as much as the service.

        The other parts need not know whether there are keys, and so which buckets may be read where
        none are listed. Therefore a job says which.
        """
        if self.key is None and service.buckets is None:
            return None
        key = self.key
        buckets = service.buckets if key is None or key.buckets is None else key.buckets
        return SourceGrant(roots=key.roots if key else None, buckets=buckets)


Parse = Callable[[bytes, Limits], Any]


def _parse_json(body: bytes, _: Limits) -> Any:
    """`json` decodes all of a body first: one letter outside the basic plane makes it four bytes
    for each (281 MB for a body of 42 MB)."""
    if len(body) <= UNCOUNTED:
        return json.loads(body)
    try:
        return pydantic_core.from_json(body, cache_strings="none")
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def needs(
    need: Need, *, makes: bool = False, body: Kind = "json", parse: Parse = _parse_json
) -> Callable[[E], E]:
    """What a caller of this route needs.

    Args:
        makes: the collection need not be there; a name that the key may not use is refused, not
            unknown.
        body: the limits of the request's body.
        parse: makes of a JSON body what the route's model is made of; on a thread if it is large.
    """

    def declared(endpoint: E) -> E:
        vars(endpoint).update(needs=need, makes=makes, body=body, parse=parse)
        return endpoint

    return declared


class AuthorizedRoute(APIRoute):
    """A route that has declared what it needs; one that has not cannot be made."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **told: Any) -> None:
        said = vars(endpoint)
        if "needs" not in said:
            raise TypeError(
                f"{path}: the route does not say what it needs; see clipfleet.api.auth.access"
            )
        self.needs: Need = said["needs"]
        self.makes: bool = said["makes"]
        self.body: Kind = said["body"]
        self.parse: Parse = said["parse"]
        super().__init__(path, endpoint, **told)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            return await handle(_ParsedRequest(request.scope, request.receive, self.parse))

        return handle_parsed

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.needs == "nothing":
            await super().handle(scope, receive, send)
            return
        caller = scope["state"]["caller"] = await self._admitted(scope)
        with reserving(scope["app"].state.gateway.memory, caller.name) as reserved:
            receive = await self._body(scope, receive, reserved)
            await super().handle(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive, reserved: Reservation) -> Receive:
        """What the route receives."""
        reads = self.body_field is not None or self.body == "upload"
        if not reads or scope["method"] not in (self.methods or ()):
            return receive
        rule, limits = RULES[self.body], scope["app"].state.gateway.settings.limits
        require_small(scope, rule, limits)
        body = Body(receive, rule, limits, reserved)
        return await body.whole() if rule.whole else body.receive

    async def _admitted(self, scope: Scope) -> Caller:
        app = scope["app"]
        access: Access = app.state.access
        caller = access.caller(scope)
        if caller.key:
            scope["state"]["rate_limit"] = await access.take_request(caller, app.state.gateway)
        assert self.needs != "nothing"
        if not caller.may(self.needs):
            raise Forbidden(f"this needs a key with the scope {self.needs!r}", scope=self.needs)
        await self._require_seen(caller, scope["path_params"], app.state.gateway)
        return caller

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


class _ParsedRequest(Request):
    """A large body is parsed on a thread, and let go as soon as it is."""

    def __init__(self, scope: Scope, receive: Receive, parse: Parse) -> None:
        super().__init__(scope, receive)
        self._parse = parse
        self._whole: bytes | None = None

    async def body(self) -> bytes:
        """The beginning, by which FastAPI sees that there is one: it would hold all of it."""
        if self._whole is None:
            self._whole = await super().body()
            self._body = self._whole[:1]
        return self._body

    async def json(self) -> Any:
        gateway: Gateway = self.app.state.gateway
        await self.body()
        whole, self._whole = self._whole or b"", b""
        limits = gateway.settings.limits
        try:
            if len(whole) <= UNCOUNTED:
                return self._parse(whole, limits)
            return await gateway.parse(self._parse, whole, limits)
        except (ClipfleetError, RequestValidationError) as error:
            raise BodyRefused(error) from error


class Access:
    """StartupError when the settings contradict each other, or the keys file is no good."""

    def __init__(self, settings: Settings) -> None:
        self._open, self._most = settings.open, settings.limits.requests_per_minute
        self._names = settings.allowed_hosts
        self._uncounted = MemoryRateLimiter()
        path = keys.keys_path(settings.keys_file, settings.open)
        self._service = grant_of_service(settings)
        self._ring = KeyRing(path, service=self._service) if path else None

    def log_mode(self) -> None:
        if self._ring:
            log.info("%d keys are in force", len(self._ring.active_keys()))
        elif self._open:
            log.warning("CLIPFLEET_OPEN: everybody who reaches this service may do anything")
        else:
            log.info("no keys: only clients on this machine are answered")

    def caller(self, scope: Scope) -> Caller:
        """Unauthorized when there is no reason to answer."""
        headers = dict(scope["headers"])
        if self._ring is None:
            if not self._open:
                self._require_local(scope, headers)
            return Caller()
        kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY")
        key = keys.find_key(secret.strip(), self._ring.active_keys())
        if key is None:
            raise Unauthorized("there is no such API key")
        if key.expired(keys.now()):
            raise KeyExpired(f"the API key {key.name!r} expired at {key.expires_at:%FT%TZ}")
        return Caller(key)

    def _require_local(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """A browser on this machine is local, and the pages that it shows are not: they may be
        anybody's, under a name that leads here (DNS rebinding)."""
        if not _is_local(scope, headers):
            raise NoKeys(NO_KEYS)
        if _over_unix_socket(scope):
            return
        name = host_name(headers.get(b"host", b"").decode("latin-1"))
        ours = self._names or LOOPBACK_NAMES
        if name not in ours or from_another_site(scope["method"], headers):
            raise Forbidden(NO_PAGES)

    def grant(self, caller: Caller) -> SourceGrant | None:
        return caller.grant(self._service)

    def require_in_force(self, caller: Caller, need: keys.Scope, collection: str) -> None:
        """Unauthorized when the caller would not be let in any more: its key was revoked, has
        expired, or was given less since. For answers that take their time."""
        if self._ring is None or caller.key is None:
            return
        known = (key for key in self._ring.active_keys() if key.hash == caller.key.hash)
        key = next(known, None)
        if key is None or key.expired(keys.now()) or not (key.may(need) and key.sees(collection)):
            raise Unauthorized("the API key is not in force any more")

    async def take_request(self, caller: Caller, gateway: Gateway) -> RateLimit | None:
        """What is left to this key, this request taken off; RateLimited when that is nothing. None
        when it has no limit. While Redis cannot count, each gateway counts for itself."""
        assert caller.key
        most = caller.key.requests_per_minute or self._most
        if not most:
            return None
        take = gateway.limiter.take
        try:
            rate_limit = await gateway.call(take, caller.key.name, most, seconds=LIMITER_S)
        except Unavailable:
            rate_limit = self._uncounted.take(caller.key.name, most)
        if not rate_limit.allowed:
            raise RateLimited(
                f"the limit of this key is {most} requests a minute", rate_limit.headers()
            )
        return rate_limit


def _over_unix_socket(scope: Scope) -> bool:
    """uvicorn names its path, and no port."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _is_local(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the client is on this machine: loopback, or a UNIX socket, which has no address. One
    that has hung up has none, either, and may have been anywhere.

    A proxy may be on loopback while its clients are elsewhere, and anybody can send the header that
    names a client on loopback. So what has passed a proxy is never local.
    """
    if any(name in headers for name in PROXIED):
        return False
    client = scope.get("client")
    if client is None:
        return _over_unix_socket(scope)
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
