"""What `clipfleet doctor` reports before it runs any probe."""

import asyncio
from collections.abc import Sequence
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
from clipfleet.common.http.fleet import LANES, FleetOut, WorkerOut
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


def test_a_worker_with_other_weights_than_a_collection_is_named() -> None:
    options = {"metric": "dot", "model": "m", "dim": 4, "fields": {}}
    collections = [Collection.new(f"c{n}", **options, weights_id=f"a{n}") for n in range(2)]  # type: ignore[arg-type]
    worker = card(weights_id="a1")
    ((severity, what),) = seen(worker, collections=collections)
    assert severity == "error"
    assert what.startswith("worker one-1-abc: the folder of its model 'm' has other weights")
    assert "with which c0 was made" in what
    assert seen(card(), collections=collections) == seen(worker, collections=collections[1:]) == []


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


def test_feeders_of_several_workers_that_are_more_than_the_cores_are_named() -> None:
    def worker(number: int, feeders: int, host: str = "one") -> WorkerCard:
        about = ABOUT.model_copy(update={"cores": 16, "feeders": feeders})
        return card(number, host, device=f"cuda:{number}", about=about)

    (finding,) = diagnose([worker(0, 15), worker(1, 15)], ["p"], [], [], "m")
    assert str(finding.what) == "2 ingest workers have 30 feeders on 16 cores"
    assert "CLIPFLEET_FEEDERS=8 " in finding.do
    assert seen(worker(0, 8), worker(1, 8)) == []
    assert seen(worker(0, 15), worker(1, 15, "two")) == []
    assert seen(worker(0, 32)) == []  # files on a slow disk may need more feeders than cores


def test_workers_of_other_versions_are_mentioned() -> None:
    old = ABOUT.model_copy(update={"version": "0.0.9"})
    silent = WorkerInfo()
    what = f"workers have version 0.0.9, the gateway has {clipfleet.__version__}"
    assert seen(card(1, about=old), card(2, about=silent)) == [("warning", f"versions: {what}")]


def fleet_of(workers: Sequence[WorkerOut]) -> FleetOut:
    return FleetOut(version="", work_left=0, planners=[], workers=list(workers), findings=[])


def worker_out(number: int = 1, **fields: Any) -> WorkerOut:
    """A worker with a GPU and 8 cores, of which feeders have 7."""
    at_once = {"fetch": 256, "blob": 8, "read": 7, "decode": 7, "model": 1, "store": 2}
    plain: dict[str, Any] = {
        "id": f"one-{number}-abc", "host": "one", "model": "m", "lanes": LANES, "device": "cuda",
        "rate": None, "version": "", "torch": "", "cores": 8, "gpus": 1, "feeders": 7,
        "concurrency": at_once, "images": 0, "spent": {},
    }  # fmt: skip
    return WorkerOut(**{**plain, **fields})


def stages_of(images: int, spent: dict[str, float], **fields: Any) -> dict[str, float]:
    """What each stage could do alone, slowest first, of two workers that worked alike."""
    before = [worker_out(number, **fields) for number in (1, 2)]
    done = {"images": images, "spent": spent}
    after = [worker.model_copy(update=done) for worker in before]
    rates = doctor_probe.stages(fleet_of(before), fleet_of(after))
    return {rate.name: rate.alone for rate in rates}


def test_a_stage_alone_does_what_it_works_on_at_once_in_its_time() -> None:
    spent = {"blob": 1.0, "read": 1.0, "decode": 13.0, "model": 1.0, "store": 1.0}
    seen = stages_of(1_000, spent)
    assert list(seen) == ["feeders", "device", "store", "blobs"]
    # Two workers: 7 feeders each, and 14 ms an image; one device each, and 1 ms an image.
    assert [round(rate) for rate in seen.values()] == [1_000, 2_000, 4_000, 16_000]


def test_a_worker_that_announces_its_feeders_alone_is_measured_likewise() -> None:
    spent = {"read": 1.0, "decode": 13.0, "model": 1.0, "store": 1.0}
    seen = stages_of(1_000, spent, concurrency={})
    assert {name: round(rate) for name, rate in seen.items()} == {
        "feeders": 1_000, "device": 2_000, "store": 2_000
    }  # fmt: skip


def test_cores_are_free_when_a_host_with_gpus_has_more_than_feeders_and_workers() -> None:
    spare = doctor_probe.has_spare_cores
    assert not spare([worker_out(cores=8, feeders=7)])
    assert spare([worker_out(cores=9, feeders=7)])
    assert not spare([worker_out(1, cores=16, feeders=7), worker_out(2, cores=16, feeders=7)])
    assert not spare([worker_out(device="cpu", cores=64)])  # the model needs these cores
    assert not spare([worker_out(lanes=("query",), cores=64, feeders=0)])


def stages(**alone: float) -> list[doctor_probe.StageRate]:
    rates = [doctor_probe.StageRate(name, 1.0, rate) for name, rate in alone.items()]
    return sorted(rates, key=lambda stage: stage.alone)


def feeders(**parts: float) -> list[doctor_probe.StageRate]:
    return [doctor_probe.StageRate("feeders", sum(parts.values()), 100, parts)]


@pytest.mark.parametrize(
    ("parts", "spare_cores", "word"),
    [
        ({"read": 1, "decode": 3}, True, "raise CLIPFLEET_FEEDERS up to the number of cores"),
        ({"read": 1, "decode": 3}, False, "use smaller images, or add ingest workers"),
        ({"read": 3, "decode": 1}, False, "move the images nearer, or raise CLIPFLEET_FEEDERS"),
    ],
)
def test_the_larger_part_of_a_feeders_time_says_what_to_do(
    parts: dict[str, float], spare_cores: bool, word: str
) -> None:
    advice = doctor_probe.advice(feeders(**parts), 90, on_gpu=True, spare_cores=spare_cores)
    assert advice.startswith("the device is starved: ")
    assert word in advice


@pytest.mark.parametrize(
    ("rates", "rate", "on_gpu", "word"),
    [
        ({"device": 100, "feeders": 900}, 90, False, "use a GPU"),
        ({"device": 900, "feeders": 1000}, 800, True, "one per GPU"),
        ({"device": 900, "fetch": 100}, 90, True, "starved: servers of others are the slowest"),
        ({"device": 900, "blobs": 50}, 45, False, "starved: reading uploads"),
        ({"device": 900, "store": 50}, 45, True, "the store is behind: Milvus is the slowest"),
        ({"device": 900, "feeders": 1000}, 100, True, "the workers were idle"),
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
