"""The port on which planners and workers serve their metrics and their health."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.process.metrics import MetricsServer, make_registry, serve_metrics
from clipfleet.common.queue.broker import MemoryPublisher
from clipfleet.common.queue.fleet import MemoryFleet
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.settings import Settings
from clipfleet.embedded import commands
from clipfleet.workers.runtime import Heartbeat
from support.prometheus import scrape
from support.stack import CLEAN, cli
from support.worker_harness import Planning

TROUBLE = {"trouble": ""}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a running server. No server listens on the port before it."""
    registry = make_registry()
    Gauge("clipfleet_things", "Things", registry=registry).set(7)
    settings = Settings(metrics_port=second_of_two_free(), metrics_host=commands.LOOPBACK)
    server = serve_metrics(settings, registry, lambda: TROUBLE["trouble"])
    assert server
    yield settings.metrics_port
    server.shutdown()
    server.server_close()


def second_of_two_free() -> int:
    while True:
        first = commands.free_port()
        with socket.socket() as second, suppress(OSError, OverflowError):
            second.bind((commands.LOOPBACK, first + 1))
            return first + 1


def get(port: int, path: str) -> httpx.Response:
    return httpx.get(f"http://{commands.LOOPBACK}:{port}{path}", trust_env=False, timeout=30)


def test_it_shows_metrics_of_ours_and_of_the_process(port: int) -> None:
    seen = scrape(f"http://{commands.LOOPBACK}:{port}")
    assert seen.value("clipfleet_things") == 7
    assert seen.total("process_resident_memory_bytes") > 0


def test_health_is_the_trouble_that_there_is(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (get(port, "/healthz").status_code, get(port, "/healthz").text) == (200, "ok")
    monkeypatch.setitem(TROUBLE, "trouble", "nothing moves")
    assert get(port, "/healthz").status_code == 503
    assert get(port, "/healthz?quiet").text == "nothing moves"
    assert get(port, "/").status_code == 404


def test_a_port_that_is_taken_is_said_with_the_way_out(port: int) -> None:
    with pytest.raises(StartupError, match=rf"port {port} of 127.0.0.1.*CLIPFLEET_METRICS_PORT"):
        MetricsServer(commands.LOOPBACK, port, CollectorRegistry(), str)


def test_a_planner_does_not_start_without_its_port(port: int) -> None:
    environment = {"CLIPFLEET_METRICS_PORT": str(port), "CLIPFLEET_METRICS_HOST": commands.LOOPBACK}
    done = subprocess.run(
        [sys.executable, "-m", "clipfleet.workers.planner"],
        env={**CLEAN, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == os.EX_CONFIG
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"clipfleet planner: cannot listen on port {port}")


def test_up_says_which_port_of_a_part_is_taken(port: int, tmp_path: Path) -> None:
    first = str(port - 1)  # the planner's; the worker's is taken
    free = str(commands.free_port())
    ports = ["--port", free, "--metrics-port", first]
    done = cli("up", "--data", str(tmp_path), "--model", "hash:64", *ports)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert "--metrics-port" in done.stderr


def test_without_a_port_there_is_none() -> None:
    assert serve_metrics(Settings(), CollectorRegistry(), str) is None


def a_heartbeat(publisher: MemoryPublisher, fleet: MemoryFleet) -> Heartbeat:
    return Heartbeat(fleet, publisher, "m", HashEmbedder(), "w", 300.0)


def age(part: Any, name: str, seconds: float) -> None:
    setattr(part, name, getattr(part, name) - seconds)


def test_a_worker_is_well_once_it_serves() -> None:
    heartbeat = a_heartbeat(MemoryPublisher(), MemoryFleet())
    assert heartbeat.trouble() == "the worker does not serve its queues yet"
    heartbeat.begin(("ingest",))
    assert heartbeat.trouble() == ""
    heartbeat.end()


def test_a_worker_that_is_idle_beside_waiting_messages_is_not_well_until_one_arrives() -> None:
    publisher = MemoryPublisher()
    heartbeat = a_heartbeat(publisher, MemoryFleet())
    heartbeat._lanes = ("ingest",)
    publisher.publish(IngestNudge(model="m"))
    heartbeat._end_if_stuck()
    assert heartbeat.trouble() == ""  # it may be on its way
    age(heartbeat, "_progress_at", 40)
    heartbeat._end_if_stuck()
    assert heartbeat.trouble() == "1 messages wait and none reaches the worker"
    with heartbeat.busy():
        assert heartbeat.trouble() == ""


def test_an_idle_worker_with_nothing_to_do_is_well() -> None:
    heartbeat = a_heartbeat(MemoryPublisher(), MemoryFleet())
    heartbeat._lanes = ("ingest",)
    age(heartbeat, "_progress_at", 4_000)
    heartbeat._end_if_stuck()
    assert heartbeat.trouble() == ""


def test_a_worker_whose_queries_stay_unanswered_or_that_fell_silent_is_not_well() -> None:
    heartbeat = a_heartbeat(MemoryPublisher(), MemoryFleet())
    heartbeat._lanes = ("query",)
    with heartbeat.busy(answers=True):
        assert heartbeat.trouble() == ""
        age(heartbeat, "_progress_at", 151)
        assert heartbeat.trouble().startswith("queries unanswered for 151 s")
    assert heartbeat.trouble() == ""
    age(heartbeat, "_seen_at", 60)
    assert heartbeat.trouble().startswith("the worker has not announced itself")


def test_a_planner_is_well_as_long_as_it_looks_at_jobs() -> None:
    world = Planning()
    age(world.planner, "_alive_at", 100)
    assert world.planner.trouble().startswith("no job was checked for 100 s")
    world.tick()
    assert world.planner.trouble() == ""
