"""Who is there, what there is to do, and what is wrong: what `clipfleet doctor` asks first."""

from fastapi import APIRouter

import clipfleet
from clipfleet.api.access import GuardedRoute, needs
from clipfleet.api.depends import UsesGateway
from clipfleet.api.diagnosis import diagnose
from clipfleet.api.problems import RESPONSES
from clipfleet.common.checks import check_milvus
from clipfleet.common.fleet import WorkerCard, host_of
from clipfleet.common.fleet_schemas import FindingOut, FleetOut, WorkerOut

router = APIRouter(prefix="/v1", tags=["health"], responses=RESPONSES, route_class=GuardedRoute)


@router.get("/fleet")
@needs("admin")
async def fleet(gateway: UsesGateway) -> FleetOut:
    """The workers and planners that are alive, and what can be seen to be wrong."""
    overview = await gateway.call(gateway.overviews.read)
    cards = await gateway.call(gateway.fleet.alive)
    planners = await gateway.call(gateway.fleet.planners)
    collections = await gateway.call(gateway.catalogue.all)
    jobs = await gateway.call(gateway.ledger.jobs, 50, states=["queued", "running"])
    waiting = [job for job in jobs if job.waiting]
    return FleetOut(
        version=clipfleet.__version__,
        work_left=sum(overview.left.values()),
        planners=planners,
        workers=[_worker(card) for card in cards],
        findings=[
            FindingOut(severity=one.severity, part=one.part, what=one.what, advice=one.do)
            for one in [
                *await gateway.call(gateway.look_at_redis),
                *await gateway.call(check_milvus, gateway.store),
                *diagnose(cards, planners, collections, waiting, gateway.settings.model),
            ]
        ],
    )


def _worker(card: WorkerCard) -> WorkerOut:
    told = {**card.model_dump(), **card.about.model_dump()}
    return WorkerOut(
        host=host_of(card), **{n: told[n] for n in WorkerOut.model_fields if n in told}
    )
