"""What routes ask for."""

from typing import Annotated

from fastapi import Depends, Path, Request

from clipfleet.api.auth.access import Access, Caller
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.http.source_grants import SourceGrant


def get_gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def access_of(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


def grant_of(caller: "CallerDep", access: "AccessDep") -> SourceGrant | None:
    return access.grant(caller)


GatewayDep = Annotated[Gateway, Depends(get_gateway)]
CallerDep = Annotated[Caller, Depends(caller_of)]
AccessDep = Annotated[Access, Depends(access_of)]
GrantDep = Annotated[SourceGrant | None, Depends(grant_of)]
"""What the caller's jobs may read."""
Name = Annotated[str, Path(max_length=256, examples=["photos"])]


async def collection_of(name: Name, gateway: GatewayDep) -> Collection:
    return await gateway.collection(name)


CollectionDep = Annotated[Collection, Depends(collection_of)]
