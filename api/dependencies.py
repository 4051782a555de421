"""What routes ask for."""

from typing import Annotated

from fastapi import Depends, Path, Request

from clipfleet.api.auth.access import Access, Caller
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.http.source_grants import SourceGrant


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def access_of(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


def grant_of(caller: "UsesCaller", access: "UsesAccess") -> SourceGrant | None:
    return access.grant(caller)


UsesGateway = Annotated[Gateway, Depends(gateway_of)]
UsesCaller = Annotated[Caller, Depends(caller_of)]
UsesAccess = Annotated[Access, Depends(access_of)]
UsesGrant = Annotated[SourceGrant | None, Depends(grant_of)]
"""What the caller's jobs may read."""
Name = Annotated[str, Path(max_length=256, examples=["photos"])]


async def collection_of(name: Name, gateway: UsesGateway) -> Collection:
    return await gateway.collection(name)


UsesCollection = Annotated[Collection, Depends(collection_of)]
