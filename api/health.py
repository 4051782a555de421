"""Is the process alive; can the service do its work."""

from fastapi import APIRouter, Response

import clipfleet
from clipfleet.api.depends import UsesGateway
from clipfleet.api.gateway import Gateway
from clipfleet.common.errors import Unavailable
from clipfleet.common.messages import LANES
from clipfleet.common.schemas import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The gateway process answers. Says nothing of the other parts."""
    return Health(status="ok", version=clipfleet.__version__)


async def _planned(gateway: Gateway) -> bool:
    try:
        return bool(await gateway.call(gateway.fleet.planners))
    except Unavailable:
        return False


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(gateway: UsesGateway, response: Response) -> Readiness:
    """Redis and Milvus answer, and live workers serve both lanes of the default model."""
    parts: dict[str, str] = {}
    for name, ping in (("redis", gateway.ping_redis), ("milvus", gateway.store.ping)):
        try:
            await gateway.call(ping)
            parts[name] = "ok"
        except Unavailable as error:
            parts[name] = error.detail
    for lane in LANES:
        try:
            await gateway.worker(lane, gateway.settings.model)
            parts[f"{lane} worker"] = "ok"
        except Unavailable as error:
            parts[f"{lane} worker"] = error.detail
    parts["planner"] = "ok" if await _planned(gateway) else "no planner is alive"
    ready = all(state == "ok" for state in parts.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=parts)
