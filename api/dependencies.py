"""FastAPI dependencies and parameters that several routes share.

All are coroutines: FastAPI runs a plain function on a thread, which costs a request 0.1 ms.
"""

from typing import Annotated

from fastapi import Depends, Header, Path, Request

from clipfleet.api.auth.access import Access, Caller
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.ledger.catalogue import unknown_collection


async def get_gateway(request: Request) -> Gateway:
    """Return the gateway of this application."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def get_caller(request: Request) -> Caller:
    """Return the caller that `AuthorizedRoute` has admitted."""
    caller: Caller = request.state.caller
    return caller


async def get_access(request: Request) -> Access:
    """Return the access rules of this application."""
    access: Access = request.app.state.access
    return access


async def get_grant(caller: "CallerDep", access: "AccessDep") -> SourceGrant | None:
    """Return the sources that the caller's jobs may read."""
    return access.grant(caller)


GatewayDep = Annotated[Gateway, Depends(get_gateway)]
CallerDep = Annotated[Caller, Depends(get_caller)]
AccessDep = Annotated[Access, Depends(get_access)]
GrantDep = Annotated[SourceGrant | None, Depends(get_grant)]
"""The sources that the caller's jobs may read; None: the same as the service."""

CollectionName = Annotated[
    str, Path(max_length=256, description="Name of the collection.", examples=["photos"])
]
JobId = Annotated[str, Path(description="Id of the job.")]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=256,
        description="A key chosen by the client. A request with the same key, body and collection "
        "within 24 hours returns the job of the first request. Another request with the same key "
        "is answered with 409.",
    ),
]


async def get_collection(name: CollectionName, gateway: GatewayDep, request: Request) -> Collection:
    """Return the collection that the path names, by its name or by an alias.

    A request looks it up once, so that an alias that is moved meanwhile cannot mix two collections.

    Raises:
        NotFound: it does not exist.
    """
    authorized: Collection | None = getattr(request.state, "collection", None)
    return authorized or await gateway.collection(name)


CollectionDep = Annotated[Collection, Depends(get_collection)]


class Renewal:
    """Looks up again what the path of one request names.

    Args:
        name: the name of the collection, or the alias.
        gateway: the gateway.
        caller: the sender of the request.
    """

    def __init__(self, name: str, gateway: Gateway, caller: Caller) -> None:
        self._name, self._gateway, self._caller = name, gateway, caller

    async def of(self, collection: Collection) -> Collection:
        """Return the present collection, after the store did not have `collection` any more.

        Raises:
            NotFound: there is none that the caller may use.
        """
        for name in {self._name, collection.name}:
            self._gateway.forget(name)
        current = await self._gateway.collection(self._name)
        if not self._caller.sees(current.name):
            raise unknown_collection(self._name)
        return current


async def get_renewal(name: CollectionName, gateway: GatewayDep, caller: CallerDep) -> Renewal:
    """Return what looks up the collection of the path again."""
    return Renewal(name, gateway, caller)


RenewalDep = Annotated[Renewal, Depends(get_renewal)]
