"""Finds what is wrong with a fleet without sending it work, for `clipfleet doctor`."""

from collections import defaultdict
from collections.abc import Sequence

from clipfleet._version import __version__
from clipfleet.common.collection import Collection, weights_problem
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
    """Return what is wrong with the fleet.

    Args:
        cards: the workers that are alive.
        planners: the planners that are alive.
        collections: the collections that the caller may see.
        waiting: the active jobs whose `waiting` names a reason.
        model: the default model of the gateway.
    """
    return [
        *_missing_parts(list(cards), planners, collections, model),
        *_other_weights(cards, collections),
        *_waiting_jobs(waiting),
        *_unused_gpus(cards),
        *_crowded_hosts(cards),
        *_other_versions(cards),
    ]


def _missing_parts(
    cards: list[WorkerCard], planners: Sequence[str], collections: Sequence[Collection], model: str
) -> list[Finding]:
    findings = []
    if not planners:
        what = "no planner is alive, so no job starts or continues"
        findings.append(_error("planner", what, "start one: clipfleet planner"))
    users: dict[str, list[str]] = defaultdict(list)
    users[model] = []
    for collection in collections:
        users[collection.model].append(collection.name)
    for needed, names in users.items():
        for lane in LANES:
            if serving(cards, lane, needed):
                continue
            needed_by = f" (needed by {_first_three(names)})" if names else ""
            what = f"no worker that is alive serves the {lane} lane of model {needed!r}{needed_by}"
            do = f"start one: CLIPFLEET_MODEL={needed} clipfleet worker --lane {lane}"
            others = sorted({card.model for card in cards} - {needed})
            if others:
                do += f" (the workers that are alive have {', '.join(others)})"
            findings.append(_error("worker", what, do))
    return findings


def _other_weights(cards: Sequence[WorkerCard], collections: Sequence[Collection]) -> list[Finding]:
    """Collections for whose model a worker has other weights."""
    return [
        _error(
            f"worker {card.id}",
            f"the folder of its model {card.model!r} has other weights than those with which "
            f"{_first_three(names)} was made: it neither indexes nor searches there by words or "
            "images",
            "put the old weights back and start the worker again, or give the new ones a folder of "
            "another name and index the images with that model",
        )
        for card in cards
        if (
            names := [
                collection.name
                for collection in collections
                if collection.model == card.model and weights_problem(collection, card.weights_id)
            ]
        )
    ]


def _waiting_jobs(waiting: Sequence[Job]) -> list[Finding]:
    return [
        _warning(f"job {job.id}", f"it waits: {job.waiting}", "it continues when that is fixed")
        for job in waiting
    ]


def _unused_gpus(cards: Sequence[WorkerCard]) -> list[Finding]:
    return [
        _warning(
            f"worker {card.id}",
            f"it computes on a CPU (torch {card.about.torch}), but its machine has GPUs: "
            f"{card.about.gpus}",
            "install torch with CUDA there (a +cpu build has none), and leave CLIPFLEET_DEVICE "
            "unset or set it to cuda",
        )
        for card in cards
        if card.about.gpus and card.device == "cpu"
    ]


def _crowded_hosts(cards: Sequence[WorkerCard]) -> list[Finding]:
    """Hosts whose ingest workers, or the feeders of several of them, are more than the cores."""
    hosts: dict[str, list[WorkerCard]] = defaultdict(list)
    for card in cards:
        if "ingest" in card.lanes and card.about.cores:
            hosts[host_of(card)].append(card)
    findings = []
    for host, workers in hosts.items():
        cores, feeders = workers[0].about.cores, sum(card.about.feeders for card in workers)
        computing = sum(card.device == "cpu" for card in workers)
        if computing > cores:
            what = f"{computing} ingest workers compute on {cores} cores"
            do = "more workers there do not index faster; run fewer, or run them elsewhere"
            findings.append(_warning(f"host {host}", what, do))
        elif feeders > max(cores, len(workers)) and len(workers) > 1:
            what = f"{len(workers)} ingest workers have {feeders} feeders on {cores} cores"
            share = max(1, cores // len(workers))
            do = (
                f"set CLIPFLEET_FEEDERS={share} for each of them, and OMP_NUM_THREADS={share} for "
                "those that compute on the CPU"
            )
            findings.append(_warning(f"host {host}", what, do))
    return findings


def _other_versions(cards: Sequence[WorkerCard]) -> list[Finding]:
    others = sorted({card.about.version for card in cards if card.about.version} - {__version__})
    if not others:
        return []
    what = f"workers have version {', '.join(others)}, the gateway has {__version__}"
    return [_warning("versions", what, "this is fine during an upgrade; complete the upgrade")]


def _first_three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _error(part: str, what: str, do: str) -> Finding:
    return Finding(part, what, do)


def _warning(part: str, what: str, do: str) -> Finding:
    return Finding(part, what, do, "warning")
