"""Authorization of requests. Every route declares what it needs; it is checked before the body.

The path of a route about a collection has `{name}`, and the path of a route about a job has
`{job_id}`. Both are checked here, so that no route can omit the check. A collection or a job that a
key may not see is answered like one that does not exist.
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
from clipfleet.api.auth.origin import from_another_site, host_name, other_site_problem
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import (
    RULES,
    UNCOUNTED,
    Body,
    BodyRefused,
    Kind,
    Reservation,
    require_readable,
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
    StartupError,
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

LIMITER_TIMEOUT_S = 1.0  # after that this gateway counts the requests itself
NO_KEYS = (
    "this service has no keys, so it answers only clients on its own machine; its operator can "
    "create keys (`clipfleet keys create`, CLIPFLEET_KEYS_FILE) "
    "or open the service to everybody (CLIPFLEET_OPEN=true)"
)
NO_PAGES = (
    "a service without keys answers only clients on its own machine, not pages of other sites: "
    "call the service localhost or 127.0.0.1, or add its name to CLIPFLEET_ALLOWED_HOSTS"
)
PROXIED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class KeyExpired(Unauthorized):
    """The key was valid until its expiry."""

    slug = "key-expired"
    title = "The API key has expired"


class NoKeys(Unauthorized):
    """The service has no keys, and the client is not on its machine."""

    slug = "no-keys"
    title = "Only clients on this machine are answered"


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        key: the API key; None in a service without keys, where every caller may do anything.
    """

    key: Key | None = None

    def may(self, need: keys.Scope) -> bool:
        """Whether the caller has a scope."""
        return self.key is None or self.key.may(need)

    def sees(self, collection: str) -> bool:
        """Whether the caller may use a collection of this name."""
        return self.key is None or self.key.sees(collection)

    @property
    def name(self) -> str:
        """The name of the key; "" without a key."""
        return self.key.name if self.key else ""

    @property
    def sees_all(self) -> bool:
        """Whether the caller may use every collection."""
        return self.key is None or self.key.collections is None

    def grant(self, service: SourceGrant) -> SourceGrant | None:
        """Return the sources that the caller's jobs may read; None: the same as the service.

        A job lists its buckets, because planners and workers do not know whether the service has
        keys. Without that they could not tell which buckets may be read when none are listed.

        Args:
            service: what the service itself may read.
        """
        if self.key is None and service.buckets is None:
            return None
        key = self.key
        buckets = service.buckets if key is None or key.buckets is None else key.buckets
        return SourceGrant(roots=key.roots if key else None, buckets=buckets)


Parse = Callable[[bytes, Limits], Any]


def _parse_json(body: bytes, _: Limits) -> Any:
    """Parse a JSON body; a large one by pydantic, which needs less memory.

    `json` decodes the whole body to a string first. A single character outside the basic plane
    makes that four bytes a character (281 MB for a body of 42 MB).
    """
    if len(body) <= UNCOUNTED:
        return json.loads(body)
    try:
        return pydantic_core.from_json(body, cache_strings="none")
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def needs(
    need: Need, *, creates: bool = False, body: Kind = "json", parse: Parse = _parse_json
) -> Callable[[E], E]:
    """Declare what a route needs.

    Args:
        need: the scope that the caller's key must have; "nothing" for a route open to everybody.
        creates: whether the route may create the collection. A name that the key may not use is
            then answered with 403 instead of 404.
        body: the kind of the request's body, which has its own limits.
        parse: turns a JSON body into the input of the route's model. A large body is parsed on a
            thread.
    """

    def declare(endpoint: E) -> E:
        vars(endpoint).update(needs=need, creates=creates, body=body, parse=parse)
        return endpoint

    return declare


class AuthorizedRoute(APIRoute):
    """A route that authorizes each request as `needs` declares.

    Raises:
        TypeError: the endpoint has no such declaration.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        declaration = vars(endpoint)
        if "needs" not in declaration:
            raise TypeError(
                f"{path}: the route does not declare what it needs; see clipfleet.api.auth.access"
            )
        self.needs: Need = declaration["needs"]
        self.creates: bool = declaration["creates"]
        self.body: Kind = declaration["body"]
        self.parse: Parse = declaration["parse"]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which parses a JSON body with the route's own `parse`."""
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            return await handle(_ParsedRequest(request.scope, request.receive, self.parse))

        return handle_parsed

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of an authorized caller, whose memory counts against the budget."""
        if self.needs == "nothing":
            await super().handle(scope, receive, send)
            return
        caller = scope["state"]["caller"] = await self._authorize(scope)
        with reserving(scope["app"].state.gateway.memory, caller.name) as reserved:
            receive = await self._limit_body(scope, receive, reserved)
            await super().handle(scope, receive, send)

    async def _limit_body(self, scope: Scope, receive: Receive, reserved: Reservation) -> Receive:
        """Return a `receive` that enforces the limits of the route's body."""
        reads = self.body_field is not None or self.body == "upload"
        if not reads or scope["method"] not in (self.methods or ()):
            return receive
        rule, limits = RULES[self.body], scope["app"].state.gateway.settings.limits
        require_readable(scope, rule, limits)
        body = Body(receive, rule, limits, reserved)
        return await body.whole() if rule.whole else body.receive

    async def _authorize(self, scope: Scope) -> Caller:
        app = scope["app"]
        access: Access = app.state.access
        caller = access.caller(scope)
        if caller.key:
            scope["state"]["rate_limit"] = await access.take_request(caller, app.state.gateway)
        assert self.needs != "nothing"
        if not caller.may(self.needs):
            raise Forbidden(f"this needs a key with the scope {self.needs!r}", scope=self.needs)
        await self._require_visible(caller, scope, app.state.gateway)
        return caller

    async def _require_visible(self, caller: Caller, scope: Scope, gateway: Gateway) -> None:
        """Check that the caller may use what the path names.

        What counts is the collection, also where the path has an alias of it: an alias gives no key
        more than the key has. The collection is kept for the route, because the alias may be moved.
        """
        if caller.sees_all:
            return
        params = scope["path_params"]
        if "name" in params and self.creates:
            if not caller.sees(params["name"]):
                detail = f"this key may not use a collection called {params['name'][:80]!r}"
                raise Forbidden(detail, collection=params["name"][:80])
        elif "name" in params:
            collection = await gateway.collection(params["name"])
            if not caller.sees(collection.name):
                raise unknown_collection(params["name"])
            scope["state"]["collection"] = collection
        if "job_id" in params:
            job = await gateway.call(gateway.ledger.job, params["job_id"])
            if not caller.sees(job.new.collection):
                raise unknown_job(params["job_id"])


class _ParsedRequest(Request):
    """A request whose large body is parsed on a thread, and released once it is parsed."""

    def __init__(self, scope: Scope, receive: Receive, parse: Parse) -> None:
        super().__init__(scope, receive)
        self._parse = parse
        self._whole: bytes | None = None

    async def body(self) -> bytes:
        """Return the first byte, which tells FastAPI that there is a body.

        FastAPI would hold the whole body until the request has ended.
        """
        if self._whole is None:
            self._whole = await super().body()
            self._body = self._whole[:1]
        return self._body

    async def json(self) -> Any:
        """Return the parsed body.

        Raises:
            BodyRefused: carries the error of `parse`.
        """
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
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except RecursionError as error:
            raise json.JSONDecodeError("it is nested too deeply", "", 0) from error
        except ValueError as error:  # Python reads numbers of up to 4,300 digits
            raise json.JSONDecodeError("a number has too many digits", "", 0) from error


class Access:
    """The rules of one gateway: who is answered, and how often.

    Args:
        settings: the settings of the service.

    Raises:
        StartupError: the settings contradict each other, or the keys file is not valid.
    """

    def __init__(self, settings: Settings) -> None:
        self._open, self._default_rate = settings.open, settings.limits.requests_per_minute
        self._allowed_hosts, self._cors_origins = settings.allowed_hosts, settings.cors_origins
        self._local_limiter = MemoryRateLimiter()
        path = keys.keys_path(settings.keys_file, settings.open)
        if not path and "*" in self._cors_origins:
            raise StartupError(
                "CLIPFLEET_CORS_ORIGINS allows the pages of every site (*), which needs API keys: "
                "without keys any page in a browser on this machine could use the service"
            )
        self._service = grant_of_service(settings)
        self._ring = KeyRing(path, service=self._service) if path else None

    def log_mode(self) -> None:
        """Log whether the service has keys, is open, or answers only its own machine."""
        if self._ring:
            log.info("%d keys are in force", len(self._ring.active_keys()))
        elif self._open:
            log.warning("CLIPFLEET_OPEN: every client that reaches this service may do anything")
        else:
            log.info("no keys: only clients on this machine are answered")

    def caller(self, scope: Scope) -> Caller:
        """Return the caller of a request.

        Raises:
            Unauthorized: the key is missing, unknown or expired, or the service has no keys and the
                client is not on this machine.
            Forbidden: the service has no keys, and a page of another site makes the request.
        """
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
        """Raise NoKeys for a client elsewhere and Forbidden for a page of another site.

        A browser on this machine is local, but the pages that it shows may be of any site, even
        under a name that resolves to this machine (DNS rebinding).
        """
        if not _is_local(scope, headers):
            raise NoKeys(NO_KEYS)
        if _over_unix_socket(scope):
            return
        name = host_name(headers.get(b"host", b"").decode("latin-1"))
        if name not in (self._allowed_hosts or LOOPBACK_NAMES):
            raise Forbidden(NO_PAGES)
        if from_another_site(scope["method"], headers, self._cors_origins):
            raise Forbidden(other_site_problem(headers))

    def grant(self, caller: Caller) -> SourceGrant | None:
        """Return the sources that the caller's jobs may read; None: the same as the service."""
        return caller.grant(self._service)

    def owner(self, name: str, collection: str) -> Caller:
        """Return the caller for whom the service starts a job later, with today's rights of a key.

        Args:
            name: the name of the key that registered the source; "": there were no keys.
            collection: the collection that the job writes to.

        Raises:
            Forbidden: the key may not start it any more. The text says why, and what to do.
        """
        if self._ring is None:
            return Caller()
        again = "register the source again with a key that may write to it"
        if not name:
            raise Forbidden(f"the source was registered when the service had no API keys; {again}")
        key = next((key for key in self._ring.active_keys() if key.name == name), None)
        if key is None:
            raise Forbidden(
                f"the API key {name!r}, which registered the source, was revoked; {again}"
            )
        if key.expired(keys.now()):
            raise Forbidden(
                f"the API key {name!r}, which registered the source, expired at "
                f"{key.expires_at:%FT%TZ}; {again}"
            )
        if not (key.may("write") and key.sees(collection)):
            raise Forbidden(
                f"the API key {name!r}, which registered the source, may not write to "
                f"{collection!r} any more; {again}"
            )
        return Caller(key)

    def require_valid_key(self, caller: Caller, need: keys.Scope, collection: str) -> None:
        """Check the key again during a long response.

        Raises:
            Unauthorized: the key has expired, was revoked, or has lost the scope or the collection.
        """
        if self._ring is None or caller.key is None:
            return
        same = (key for key in self._ring.active_keys() if key.hash == caller.key.hash)
        key = next(same, None)
        if key is None or key.expired(keys.now()) or not (key.may(need) and key.sees(collection)):
            raise Unauthorized("the API key is no longer valid")

    async def take_request(self, caller: Caller, gateway: Gateway) -> RateLimit | None:
        """Count a request against the rate limit of the caller's key.

        While Redis is unavailable, each gateway counts for itself.

        Returns:
            The state of the limit after this request; None for a key without a limit.

        Raises:
            RateLimited: the limit is reached.
        """
        assert caller.key
        rate = caller.key.requests_per_minute or self._default_rate
        if not rate:
            return None
        take = gateway.limiter.take
        try:
            rate_limit = await gateway.call(
                take, caller.key.name, rate, timeout_s=LIMITER_TIMEOUT_S
            )
        except Unavailable:
            rate_limit = self._local_limiter.take(caller.key.name, rate)
        if not rate_limit.allowed:
            raise RateLimited(
                f"the limit of this key is {rate} requests a minute", rate_limit.headers()
            )
        return rate_limit


def _over_unix_socket(scope: Scope) -> bool:
    """Whether the server is a UNIX socket, for which uvicorn gives a path and no port."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _is_local(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the client is on this machine: on loopback, or on a UNIX socket without an address.

    A client that has closed its connection has no address either; it may have been anywhere.

    A proxy may be on loopback while its clients are elsewhere, and any client can send a header
    that names loopback. Therefore a request that passed a proxy is never local.
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
