"""The route that says what the caller's key may do."""

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep
from clipfleet.api.http.problems import RESPONSES
from clipfleet.common.auth.keys import SCOPES
from clipfleet.common.http.schemas import KeyOut

router = APIRouter(prefix="/v1", tags=["health"], responses=RESPONSES, route_class=AuthorizedRoute)


@router.get("/key", summary="Get the caller's key")
@needs("read")
async def get_key(caller: CallerDep) -> KeyOut:
    """Return what the API key of this request may do.

    In a service without keys, `name` is null and every scope is allowed.
    """
    key = caller.key
    return KeyOut(
        name=key.name if key else None,
        scopes=[scope for scope in SCOPES if caller.may(scope)],
        collections=list(key.collections) if key and key.collections is not None else None,
        expires_at=key.expires_at.timestamp() if key and key.expires_at else None,
    )
