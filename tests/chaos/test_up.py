"""`clipfleet up` itself: what it refuses, what it leaves behind, and what it survives."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clipfleet.embedded import commands
from support import chaos, services, stack
from support.models import data

PHOTOS = 40


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[stack.Up]:
    with stack.up(tmp_path_factory.mktemp("up"), tiny) as running:
        yield running


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    source = sorted((data("flickr8k") / "images").glob("*.jpg"))
    stack.photos(tmp_path / "photos", source, PHOTOS)
    return tmp_path / "photos"


def up_ends(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return stack.cli("up", *args, timeout_s=150, **env)


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


def test_a_second_stack_on_one_folder_is_refused_in_one_line(running: stack.Up, tiny: Path) -> None:
    port = str(commands.free_port())
    done = up_ends("--data", str(running.folder), "--port", port, "--model", str(tiny))
    assert done.returncode == 1
    (line,) = lines(done)
    assert "in use by" in line
    assert running.url in line
    assert "--data" in line
    assert chaos.up_and_ready(running)()


def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path, tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind((commands.LOOPBACK, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = up_ends("--data", str(tmp_path / "data"), "--port", port, "--model", str(tiny))
    assert done.returncode == 1
    (line,) = lines(done)
    assert port in line
    assert "--port" in line


def test_an_unknown_model_folder_ends_up_with_what_to_do(tmp_path: Path) -> None:
    port, missing = str(commands.free_port()), str(tmp_path / "no-such-model")
    done = up_ends("--data", str(tmp_path / "data"), "--port", port, "--model", missing)
    assert done.returncode == 1
    (line,) = lines(done)
    assert missing in line
    assert "CLIPFLEET_MODEL" in line or "--model" in line


def test_a_hub_model_without_the_hub_names_both_ways_out(tmp_path: Path) -> None:
    port = str(commands.free_port())
    done = up_ends(
        *("--data", str(tmp_path / "data"), "--port", port, "--model", "nobody/no-such-clip"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 1
    (line,) = lines(done)
    assert "HF_ENDPOINT" in line
    assert "CLIPFLEET_MODEL=/path/to/folder" in line


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path, tiny: Path) -> None:
    with stack.up(tmp_path / "data", tiny) as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 6
        assert stack.stop(running.process) == 0
    assert chaos.still_running(family) == []
    assert not (tmp_path / "data" / "children.json").exists()


def test_after_kill_9_of_up_the_next_one_finds_the_data_and_no_leftovers(
    tmp_path: Path, tiny: Path, photos: Path
) -> None:
    with stack.up(tmp_path / "data", tiny) as first:
        with first.client() as client:
            client.create_collection("kept")
            job = client.index(photos, "kept")
            assert stack.finished(client, job.id).done == PHOTOS
        family = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait()
    with stack.up(tmp_path / "data", tiny) as second, second.client() as client:
        assert chaos.still_running(family) == []
        assert client.job(job.id).state == "succeeded"
        assert client.collection("kept").count == PHOTOS
        assert len(client.search("kept", text="a dog", top_k=3).matches) == 3


def test_a_stack_given_redis_and_milvus_starts_neither(
    tmp_path: Path, tiny: Path, photos: Path
) -> None:
    with (
        services.valkey(tmp_path / "valkey") as redis_url,
        services.milvus_lite(tmp_path / "milvus") as milvus_uri,
    ):
        given = {"CLIPFLEET_REDIS_URL": redis_url, "CLIPFLEET_MILVUS_URI": milvus_uri}
        with stack.up(tmp_path / "data", tiny, **given) as running:
            for part in ("valkey", "milvus"):
                with pytest.raises(AssertionError, match="no process"):
                    running.part(part)
            with running.client() as client:
                client.create_collection("elsewhere")
                job = client.index(photos, "elsewhere")
                assert stack.finished(client, job.id).done == PHOTOS
                assert client.collection("elsewhere").count == PHOTOS


def test_a_part_that_keeps_dying_ends_up_with_its_last_lines(tmp_path: Path, tiny: Path) -> None:
    with stack.up(tmp_path / "data", tiny) as running:
        log = tmp_path / "data" / "up.log"
        services.eventually(lambda: "is ready" in log.read_text(), stack.START_S, "up's own word")
        deadline = time.monotonic() + 120
        while running.process.poll() is None and time.monotonic() < deadline:
            try:
                running.part("worker-query").send_signal(signal.SIGKILL)
            except (AssertionError, psutil.Error):
                time.sleep(0.05)
        assert running.process.poll() == 1
    said = (tmp_path / "data" / "up.log").read_text()
    assert "worker-query keeps ending (signal 9)" in said
    assert str(tmp_path / "data" / "logs" / "worker-query.log") in said


def test_the_list_of_children_names_those_that_run(running: stack.Up) -> None:
    said = json.loads((running.folder / "children.json").read_text())
    listed = {pid for pid, _ in said["children"]}
    children = {child.pid for child in psutil.Process(running.process.pid).children()}
    assert listed == children
