"""Is the process alive; can the service do its work."""

import asyncio
import time
from collections.abc import Awaitable

from fastapi import APIRouter, Response

from clipfleet._version import __version__
from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import GatewayDep
from clipfleet.api.dispatch.gateway import LOOK_S, Gateway
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import LANES
from clipfleet.common.http.schemas import Health, Readiness
from clipfleet.common.process.checks import Finding

router = APIRouter(tags=["health"], route_class=AuthorizedRoute)


@router.get("/healthz")
@needs("nothing")
async def healthz() -> Health:
    """The gateway process answers. Says nothing of the other parts."""
    return Health(status="ok", version=__version__)


async def _state(part: Awaitable[object]) -> str:
    try:
        await part
    except Unavailable as error:
        return error.detail
    return "ok"


async def _redis(gateway: Gateway) -> None:
    """Somebody may have set it otherwise since this gateway started."""
    await gateway.call(gateway.probe.write)
    _require_none(await gateway.call(gateway.probe.findings))


async def _milvus(gateway: Gateway) -> None:
    await gateway.call(gateway.store.ping)
    _require_none(await gateway.look_at_milvus())


def _require_none(found: list[Finding]) -> None:
    errors = [str(finding) for finding in found if finding.severity == "error"]
    if errors:
        raise Unavailable("; ".join(errors))


async def _planner(gateway: Gateway) -> None:
    if not await gateway.call(gateway.fleet.planners):
        raise Unavailable("no planner is alive")


@router.get("/readyz", responses={503: {"model": Readiness}})
@needs("nothing")
async def readyz(gateway: GatewayDep, response: Response) -> Readiness:
    """Redis takes writes and evicts none, Milvus answers, live workers serve both lanes of the
    default model. Asked at most once a second, whoever wants to know."""
    looked_at, look = gateway.readiness
    if look is None or (look.done() and time.monotonic() - looked_at > LOOK_S):
        look = asyncio.create_task(_parts(gateway))
        gateway.readiness = (time.monotonic(), look)
    parts = await asyncio.shield(look)
    ready = all(state == "ok" for state in parts.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=parts)


async def _parts(gateway: Gateway) -> dict[str, str]:
    """The state of each; "ok", or why it is not."""
    asked: dict[str, Awaitable[object]] = {
        "redis": _redis(gateway),
        "milvus": _milvus(gateway),
        "planner": _planner(gateway),
    }
    for lane in LANES:
        asked[f"{lane} worker"] = gateway.worker(lane, gateway.settings.model)
    states = await asyncio.gather(*(_state(part) for part in asked.values()))
    return dict(zip(asked, states, strict=True))
