"""What is wrong with a fleet that can be seen without trying it: for `clipfleet doctor`."""

from collections import defaultdict
from collections.abc import Sequence

from clipfleet._version import __version__
from clipfleet.common.collection import Collection
from clipfleet.common.http.fleet import LANES
from clipfleet.common.ledger import Job
from clipfleet.common.process.checks import Finding
from clipfleet.common.queue.fleet import WorkerCard, host_of, serving


def diagnose(
    cards: Sequence[WorkerCard],
    planners: Sequence[str],
    collections: Sequence[Collection],
    waiting: Sequence[Job],
    model: str,
) -> list[Finding]:
    """`waiting`: jobs under way that say why they wait; `model`: the gateway's own."""
    return [
        *_missing(list(cards), planners, collections, model),
        *_jobs(waiting),
        *_devices(cards),
        *_crowded(cards),
        *_versions(cards),
    ]


def _missing(
    cards: list[WorkerCard], planners: Sequence[str], collections: Sequence[Collection], model: str
) -> list[Finding]:
    found = []
    if not planners:
        what = "none is alive, so that no job begins or goes on"
        found.append(_error("planner", what, "start one: clipfleet planner"))
    users: dict[str, list[str]] = defaultdict(list)
    users[model] = []
    for one in collections:
        users[one.model].append(one.name)
    for needed, names in users.items():
        for lane in LANES:
            if serving(cards, lane, needed):
                continue
            for_whom = f", which {_some(names)} needs" if names else ""
            what = f"none alive serves the {lane} lane of model {needed!r}{for_whom}"
            do = f"start one: CLIPFLEET_MODEL={needed} clipfleet worker --lane {lane}"
            others = sorted({card.model for card in cards} - {needed})
            if others:
                do += f" (those alive have {', '.join(others)})"
            found.append(_error("worker", what, do))
    return found


def _jobs(waiting: Sequence[Job]) -> list[Finding]:
    return [
        _warning(f"job {job.id}", f"it waits: {job.waiting}", "once that is mended it goes on")
        for job in waiting
    ]


def _devices(cards: Sequence[WorkerCard]) -> list[Finding]:
    return [
        _warning(
            f"worker {card.id}",
            f"it computes on a CPU (torch {card.about.torch}) where there are GPUs: "
            f"{card.about.gpus}",
            "install torch with CUDA there (a +cpu build has none), and leave CLIPFLEET_DEVICE "
            "unset or set it to cuda",
        )
        for card in cards
        if card.about.gpus and card.device == "cpu"
    ]


def _crowded(cards: Sequence[WorkerCard]) -> list[Finding]:
    """Workers of one machine share its cores, and each takes all that it may."""
    hosts: dict[str, list[WorkerCard]] = defaultdict(list)
    for card in cards:
        if card.device == "cpu" and "ingest" in card.lanes and card.about.cores:
            hosts[host_of(card)].append(card)
    return [
        _warning(
            f"host {host}",
            f"{len(there)} ingest workers compute on {there[0].about.cores} cores",
            "more workers there do not index faster; run fewer, or run them elsewhere",
        )
        for host, there in hosts.items()
        if len(there) > there[0].about.cores
    ]


def _versions(cards: Sequence[WorkerCard]) -> list[Finding]:
    others = sorted({card.about.version for card in cards if card.about.version} - {__version__})
    if not others:
        return []
    what = f"workers of version {', '.join(others)} beside a gateway of {__version__}"
    return [_warning("versions", what, "fine while you upgrade; finish it")]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _error(part: str, what: str, do: str) -> Finding:
    return Finding(part, what, do)


def _warning(part: str, what: str, do: str) -> Finding:
    return Finding(part, what, do, "warning")
