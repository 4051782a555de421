"""What `clipfleet doctor` reports before it runs any probe."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import clipfleet
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.ops.diagnosis import diagnose
from clipfleet.api.ops.fleet import milvus_findings
from clipfleet.cli import doctor_probe
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.fleet import LANES
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import Job, NewJob
from clipfleet.common.process.machine import gpus
from clipfleet.common.queue.fleet import WorkerCard, WorkerInfo
from clipfleet.common.settings import Settings
from clipfleet.testing import MemoryStore, memory_parts

ABOUT = WorkerInfo(version=clipfleet.__version__, torch="2.13.0+cpu", cores=2)


def card(number: int = 1, host: str = "one", **fields: Any) -> WorkerCard:
    plain: dict[str, Any] = {
        "id": f"{host}-{number}-abc",
        "model": "m",
        "dim": 4,
        "lanes": LANES,
        "device": "cpu",
        "preprocess": HashEmbedder().preprocess,
        "started_at": 0.0,
        "progress_at": 0.0,
        "about": ABOUT,
    }
    return WorkerCard(**{**plain, **fields})


def seen(*cards: WorkerCard, **overrides: Any) -> list[tuple[str, str]]:
    defaults: dict[str, Any] = {"planners": ["p"], "collections": [], "waiting": [], "model": "m"}
    findings = diagnose(cards, **{**defaults, **overrides})
    assert all(finding.do for finding in findings)
    return [(finding.severity, f"{finding.part}: {finding.what}") for finding in findings]


def test_nothing_is_wrong_with_a_planner_and_both_lanes() -> None:
    assert seen(card()) == []
    assert seen(card(1, lanes=("ingest",)), card(2, lanes=("query",))) == []


def test_who_is_missing_is_an_error() -> None:
    assert seen(card(), planners=[]) == [
        ("error", "planner: no planner is alive, so no job starts or continues")
    ]
    assert seen(card(lanes=("query",))) == [
        ("error", "worker: no worker that is alive serves the ingest lane of model 'm'")
    ]


def test_a_collection_of_a_model_that_nobody_has_is_named() -> None:
    other = Collection.new("old", metric="dot", model="another", dim=4, fields={})
    findings = diagnose([card()], ["p"], [other], [], "m")
    assert [finding.what for finding in findings] == [
        f"no worker that is alive serves the {lane} lane of model 'another' (needed by old)"
        for lane in LANES
    ]
    assert all("the workers that are alive have m" in finding.do for finding in findings)


def test_a_job_that_waits_says_why() -> None:
    new = NewJob(id="j", collection="c", generation="g", model="m", namespace="n", source={})
    job = Job(new, "running", 0.0, waiting="Milvus does not answer")
    assert seen(card(), waiting=[job]) == [("warning", "job j: it waits: Milvus does not answer")]


def test_a_cpu_torch_on_a_gpu_machine_is_seen(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    assert gpus(tmp_path) == 2
    idle = ABOUT.model_copy(update={"gpus": gpus(tmp_path)})
    assert [what for _, what in seen(card(about=idle))] == [
        "worker one-1-abc: it computes on a CPU (torch 2.13.0+cpu), but its machine has GPUs: 2"
    ]
    assert seen(card(about=idle, device="cuda")) == []


def test_more_cpu_workers_than_cores_are_too_many_on_one_host_only() -> None:
    three = [card(number) for number in range(3)]
    crowded = "host one: 3 ingest workers compute on 2 cores"
    assert seen(*three) == [("warning", crowded)]
    assert seen(*three[:2], card(3, host="two-more")) == []
    assert seen(*(worker.model_copy(update={"device": "cuda"}) for worker in three)) == []


def test_workers_of_other_versions_are_mentioned() -> None:
    old = ABOUT.model_copy(update={"version": "0.0.9"})
    silent = WorkerInfo()
    what = f"workers have version 0.0.9, the gateway has {clipfleet.__version__}"
    assert seen(card(1, about=old), card(2, about=silent)) == [("warning", f"versions: {what}")]


def stages(**alone: float) -> list[doctor_probe.StageRate]:
    rates = [doctor_probe.StageRate(name, 1.0, rate) for name, rate in alone.items()]
    return sorted(rates, key=lambda stage: stage.alone)


@pytest.mark.parametrize(
    ("rates", "rate", "on_gpu", "word"),
    [
        ({"model": 100, "decode": 900}, 90, False, "use a GPU"),
        ({"model": 900, "decode": 1000}, 800, True, "one per GPU"),
        ({"model": 900, "decode": 100}, 90, True, "idle part of the time: decoding is the slowest"),
        ({"model": 900, "read": 50}, 45, False, "reading the sources is the slowest"),
        ({"model": 900, "store": 50}, 45, True, "idle part of the time: Milvus is the slowest"),
        ({"model": 900, "decode": 1000}, 100, True, "the workers were idle"),
        ({}, 100, False, "no image was indexed"),
    ],
)
def test_the_slowest_stage_is_what_to_change_first(
    rates: dict[str, float], rate: float, on_gpu: bool, word: str
) -> None:
    assert word in doctor_probe.advice(stages(**rates), rate, on_gpu=on_gpu)


def test_a_milvus_that_is_away_is_one_finding_among_others() -> None:
    class Away(MemoryStore):
        def ping(self) -> None:
            raise Unavailable("Milvus does not answer just now")

    settings = Settings(blobs="memory://clipfleet-unit-tests/diagnosis")
    gateway = Gateway(settings, memory_parts(settings, store=Away()))
    findings = asyncio.run(milvus_findings(gateway))
    assert [str(finding) for finding in findings] == [
        "Milvus does not answer just now; check the log of Milvus and CLIPFLEET_MILVUS_URI"
    ]
