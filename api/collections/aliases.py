"""Routes of aliases: further names of collections, which can be moved in one step."""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Response

from clipfleet.api.auth.access import AuthorizedRoute, Caller, needs
from clipfleet.api.dependencies import CallerDep, GatewayDep
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.common.collection import Alias, check_collection_name
from clipfleet.common.errors import Conflict, Forbidden, NotFound
from clipfleet.common.http.collections import AliasIn, AliasList, AliasOut
from clipfleet.common.ledger.catalogue import unknown_collection

router = APIRouter(
    prefix="/v1/aliases", tags=["collections"], responses=RESPONSES, route_class=AuthorizedRoute
)

AliasName = Annotated[
    str, Path(max_length=256, description="Name of the alias.", examples=["photos"])
]


@router.put(
    "/{alias}",
    summary="Create or move an alias",
    responses={201: {"model": AliasOut, "description": "The new alias."}, 409: CONFLICT},
)
@needs("admin")
async def put_alias(
    alias: AliasName, body: AliasIn, gateway: GatewayDep, caller: CallerDep, response: Response
) -> AliasOut:
    """Let a name stand for a collection, in one step.

    Every request looks its collection up once: it is answered from the old collection or from the
    new one, never from both. Other gateways follow within a second. The key must be allowed to use
    the name of the alias, the collection, and the collection that the alias stood for.
    """
    check_collection_name(alias, "an alias")
    if not caller.sees(alias):
        detail = f"this key may not use an alias called {alias[:80]!r}"
        raise Forbidden(detail, alias=alias[:80])
    if not caller.sees(body.collection):
        raise unknown_collection(body.collection)
    known = await gateway.call(gateway.catalogue.find_alias, alias)
    if known is not None and not caller.sees(known.collection):
        raise Conflict(f"{alias!r} is an alias of a collection that this key may not use")
    new = Alias(name=alias, collection=body.collection, changed_at=time.time())
    before = await gateway.call(gateway.catalogue.set_alias, new)
    gateway.forget(alias)
    response.status_code = 201 if before is None else 200
    return _alias_out(new)


@router.get("/{alias}", summary="Get an alias")
@needs("read")
async def get_alias(alias: AliasName, gateway: GatewayDep, caller: CallerDep) -> AliasOut:
    """Return the collection that an alias stands for."""
    known = await gateway.call(gateway.catalogue.find_alias, alias)
    return _alias_out(_visible(known, alias, caller))


@router.get("", summary="List aliases")
@needs("read")
async def list_aliases(gateway: GatewayDep, caller: CallerDep) -> AliasList:
    """Return the aliases of the collections that the key may see."""
    aliases = await gateway.call(gateway.catalogue.aliases)
    return AliasList(
        aliases=[_alias_out(alias) for alias in aliases if caller.sees(alias.collection)]
    )


@router.delete("/{alias}", status_code=204, summary="Delete an alias")
@needs("admin")
async def delete_alias(alias: AliasName, gateway: GatewayDep, caller: CallerDep) -> None:
    """Delete an alias. The collection stays."""
    known = await gateway.call(gateway.catalogue.find_alias, alias)
    _visible(known, alias, caller)
    if not caller.sees(alias):
        raise Forbidden(f"this key may not use an alias called {alias[:80]!r}", alias=alias[:80])
    await gateway.call(gateway.catalogue.remove_alias, alias)
    gateway.forget(alias)


def _visible(known: Alias | None, name: str, caller: Caller) -> Alias:
    """The alias, unless the caller may not use its collection: then it does not exist."""
    if known is None or not caller.sees(known.collection):
        raise NotFound(
            f"there is no alias {name[:80]!r}; create it with PUT /v1/aliases/NAME", alias=name[:80]
        )
    return known


def _alias_out(alias: Alias) -> AliasOut:
    return AliasOut(**alias.model_dump(exclude={"v"}))
