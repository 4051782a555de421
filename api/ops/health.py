"""Routes for liveness and readiness."""

import asyncio
import time
from collections.abc import Awaitable

from fastapi import APIRouter, Response

from clipfleet._version import __version__
from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import GatewayDep
from clipfleet.api.dispatch.gateway import REFRESH_INTERVAL_S, Gateway
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import LANES
from clipfleet.common.http.schemas import Health, Readiness
from clipfleet.common.process.checks import Finding

router = APIRouter(tags=["health"], route_class=AuthorizedRoute)


@router.get("/healthz", summary="Check that the gateway is alive")
@needs("nothing")
async def healthz() -> Health:
    """Answer as long as this gateway process runs, whatever the state of the other parts."""
    return Health(status="ok", version=__version__)


async def _state(part: Awaitable[object]) -> str:
    try:
        await part
    except Unavailable as error:
        return error.detail
    return "ok"


async def _redis(gateway: Gateway) -> None:
    """Check Redis again, as its configuration may have changed since this gateway started."""
    await gateway.call(gateway.probe.write)
    _require_none(await gateway.call(gateway.probe.findings))


async def _milvus(gateway: Gateway) -> None:
    await gateway.call(gateway.store.ping)
    _require_none(await gateway.milvus_findings())


def _require_none(findings: list[Finding]) -> None:
    errors = [str(finding) for finding in findings if finding.severity == "error"]
    if errors:
        raise Unavailable("; ".join(errors))


async def _planner(gateway: Gateway) -> None:
    if not await gateway.call(gateway.fleet.planners):
        raise Unavailable("no planner is alive")


@router.get(
    "/readyz",
    summary="Check that the service is ready",
    responses={503: {"model": Readiness, "description": "A part is not ready."}},
)
@needs("nothing")
async def readyz(gateway: GatewayDep, response: Response) -> Readiness:
    """Check every part that the service needs.

    Redis must accept writes and evict no keys, Milvus must answer, a planner must be alive, and
    workers must serve both lanes of the default model. The parts are checked at most once a second,
    however often this is called.
    """
    began, check = gateway.readiness
    if check is None or (check.done() and time.monotonic() - began > REFRESH_INTERVAL_S):
        check = asyncio.create_task(_check_parts(gateway))
        gateway.readiness = (time.monotonic(), check)
    parts = await asyncio.shield(check)
    ready = all(state == "ok" for state in parts.values())
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=parts)


async def _check_parts(gateway: Gateway) -> dict[str, str]:
    """The state of each part: "ok", or the reason why it is not ready."""
    checks: dict[str, Awaitable[object]] = {
        "redis": _redis(gateway),
        "milvus": _milvus(gateway),
        "planner": _planner(gateway),
    }
    for lane in LANES:
        checks[f"{lane} worker"] = gateway.worker(lane, gateway.settings.model)
    states = await asyncio.gather(*(_state(part) for part in checks.values()))
    return dict(zip(checks, states, strict=True))
