"""What the machine of a process has, and how workers of one machine share it."""

import math
import os
import threading
from pathlib import Path

import pytest

from clipfleet.common.process import machine
from clipfleet.common.process.machine import cores, cpu_quota, shares
from clipfleet.common.settings import Settings
from clipfleet.embedded.stack import Options, Stack
from clipfleet.embedded.supervisor import MAX_NICENESS, NICENESS, NICENESS_STEP, bulk_niceness


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process' cgroup, a/b of a tree of its own."""
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    monkeypatch.setattr(machine, "cpu_quota", lambda: cpu_quota(own, tmp_path))
    return group


def quota(group: Path) -> float:
    return cpu_quota(group.parents[1] / "own", group.parents[1])


def test_the_smallest_quota_of_the_cgroups_counts(cgroup: Path) -> None:
    assert quota(cgroup) == math.inf
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert quota(cgroup) == math.inf
    (cgroup / "cpu.max").write_text("250000 100000\n")
    assert quota(cgroup) == 2.5
    (cgroup.parent / "cpu.max").write_text("50000 100000\n")
    assert quota(cgroup) == 0.5


def test_there_is_no_quota_without_cgroups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) == math.inf
    (tmp_path / "own").write_text("3:cpu,cpuacct:/user\n")  # cgroup v1
    assert cpu_quota(tmp_path / "own", tmp_path) == math.inf


def test_in_a_container_the_cgroup_is_the_root(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path / "own", tmp_path) == 1.5


def test_a_quota_bounds_the_cores(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores() == 8
    (cgroup / "cpu.max").write_text("250000 100000\n")
    assert cores() == 3
    (cgroup / "cpu.max").write_text("10000 100000\n")
    assert cores() == 1


@pytest.mark.parametrize(
    ("total", "parts", "expected"),
    [(16, 1, [16]), (16, 3, [6, 5, 5]), (2, 2, [1, 1]), (2, 3, [1, 1, 1])],
)
def test_cores_are_shared_out(total: int, parts: int, expected: list[int]) -> None:
    assert shares(total, parts) == expected


def variables(
    tmp_path: Path, workers: int, settings: Settings
) -> list[tuple[str | None, str | None]]:
    """OMP_NUM_THREADS and CLIPFLEET_FEEDERS that `clipfleet up` gives to each ingest worker."""
    options = Options(tmp_path, "127.0.0.1", 8000, workers, settings)
    parts = Stack(options, threading.Event()).own_parts()
    ours = [part.env for part in parts if part.name.startswith("worker-ingest")]
    others = [part.env for part in parts if not part.name.startswith("worker-ingest")]
    assert not any("OMP_NUM_THREADS" in env for env in others)
    return [(env.get("OMP_NUM_THREADS"), env.get("CLIPFLEET_FEEDERS")) for env in ours]


@pytest.mark.parametrize(
    ("total", "workers", "expected"),
    [
        (16, 1, [("16", "15")]),
        (16, 3, [("6", "5"), ("5", "4"), ("5", "4")]),
        (2, 2, [("1", "1"), ("1", "1")]),
        (2, 3, [("1", "1"), ("1", "1"), ("1", "1")]),
    ],
)
def test_workers_of_one_host_share_its_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    workers: int,
    expected: list[tuple[str, str]],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("clipfleet.embedded.stack.cores", lambda: total)
    settings = Settings(redis_url="redis://localhost:1/0")
    assert variables(tmp_path, workers, settings) == expected


def test_what_the_user_has_set_is_not_shared_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the parts inherit it
    settings = Settings(redis_url="redis://localhost:1/0", feeders=6)
    assert variables(tmp_path, 2, settings) == [(None, "6"), (None, "6")]


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_workers_together_weigh_as_much_as_one(workers: int) -> None:
    weight = workers / NICENESS_STEP ** (bulk_niceness(workers) - NICENESS)
    assert weight == pytest.approx(1, rel=0.12)
    assert bulk_niceness(1_000) == MAX_NICENESS
