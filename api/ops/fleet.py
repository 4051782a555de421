"""Who is there, what there is to do, and what is wrong: what `clipfleet doctor` asks first."""

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

JOBS = 50  # that are asked why they wait


@router.get("/fleet")
@needs("admin")
async def fleet(gateway: GatewayDep, caller: CallerDep) -> FleetOut:
    """The workers and planners that are alive, and what can be seen to be wrong: of collections and
    jobs, what the key may see."""
    overview = await gateway.call(gateway.overviews.read)
    cards = await gateway.call(gateway.fleet.alive)
    planners = await gateway.call(gateway.fleet.planners)
    every = await gateway.call(gateway.catalogue.all)
    collections = [one for one in every if caller.sees(one.name)]
    under_way, sees = ["queued", "running"], None if caller.sees_all else caller.sees
    jobs = await gateway.call(gateway.ledger.jobs, JOBS, states=under_way, sees=sees)
    waiting = [job for job in jobs if job.waiting]
    return FleetOut(
        version=__version__,
        work_left=sum(overview.remaining.values()),
        planners=planners,
        workers=[_worker(card) for card in cards],
        findings=[
            FindingOut(severity=one.severity, part=one.part, what=one.what, advice=one.do)
            for one in [
                *await gateway.call(gateway.probe.findings),
                *await look_at_milvus(gateway),
                *diagnose(cards, planners, collections, waiting, gateway.settings.model),
            ]
        ],
    )


async def look_at_milvus(gateway: Gateway) -> list[Finding]:
    try:
        await gateway.call(gateway.store.ping)
        return await gateway.look_at_milvus()
    except Unavailable as error:
        return [Finding("milvus", error.detail, "look at its log, and at CLIPFLEET_MILVUS_URI")]


def _worker(card: WorkerCard) -> WorkerOut:
    told = {**card.model_dump(), **card.about.model_dump()}
    return WorkerOut(
        host=host_of(card), **{n: told[n] for n in WorkerOut.model_fields if n in told}
    )
