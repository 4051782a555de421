"""What routes ask for."""

from typing import Annotated

from fastapi import Depends, Path, Request

from clipfleet.api.access import Caller
from clipfleet.api.gateway import Gateway
from clipfleet.common.collection import Collection


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


UsesGateway = Annotated[Gateway, Depends(gateway_of)]
UsesCaller = Annotated[Caller, Depends(caller_of)]
Name = Annotated[str, Path(max_length=256, examples=["photos"])]


async def collection_of(name: Name, gateway: UsesGateway) -> Collection:
    return await gateway.collection(name)


UsesCollection = Annotated[Collection, Depends(collection_of)]
