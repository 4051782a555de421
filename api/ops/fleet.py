"""The route that shows the fleet and what is wrong with it; `clipfleet doctor` asks it first."""

from fastapi import APIRouter

from clipfleet._version import __version__
from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.ops.diagnosis import diagnose
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import FindingOut, FleetOut, WorkerOut
from clipfleet.common.process.checks import Finding
from clipfleet.common.queue.fleet import WorkerCard, host_of

router = APIRouter(prefix="/v1", tags=["health"], responses=RESPONSES, route_class=AuthorizedRoute)

MAX_JOBS = 50  # that are checked for a reason to wait


@router.get("/fleet", summary="Show the fleet")
@needs("admin")
async def fleet(gateway: GatewayDep, caller: CallerDep) -> FleetOut:
    """Return the workers and planners that are alive, and what is wrong with the service.

    The findings name only collections and jobs that the key may see.
    """
    overview = await gateway.call(gateway.overviews.read)
    cards = await gateway.call(gateway.fleet.alive)
    planners = await gateway.call(gateway.fleet.planners)
    catalogued = await gateway.call(gateway.catalogue.all)
    collections = [collection for collection in catalogued if caller.sees(collection.name)]
    active, sees = ["queued", "running"], None if caller.sees_all else caller.sees
    jobs = await gateway.call(gateway.ledger.jobs, MAX_JOBS, states=active, sees=sees)
    waiting = [job for job in jobs if job.waiting]
    return FleetOut(
        version=__version__,
        work_left=sum(overview.remaining.values()),
        planners=planners,
        workers=[_worker(card) for card in cards],
        findings=[
            FindingOut(
                severity=finding.severity, part=finding.part, what=finding.what, advice=finding.do
            )
            for finding in [
                *await gateway.call(gateway.probe.findings),
                *await milvus_findings(gateway),
                *diagnose(cards, planners, collections, waiting, gateway.settings.model),
            ]
        ],
    )


async def milvus_findings(gateway: Gateway) -> list[Finding]:
    """Return what is wrong with Milvus; an outage is a finding, too."""
    try:
        await gateway.call(gateway.store.ping)
        return await gateway.milvus_findings()
    except Unavailable as error:
        return [Finding("milvus", error.detail, "check the log of Milvus and CLIPFLEET_MILVUS_URI")]


def _worker(card: WorkerCard) -> WorkerOut:
    fields = {**card.model_dump(), **card.about.model_dump()}
    return WorkerOut(
        host=host_of(card),
        **{name: fields[name] for name in WorkerOut.model_fields if name in fields},
    )
