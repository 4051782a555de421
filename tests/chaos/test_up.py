"""`clipfleet up` itself: what it refuses, what it leaves behind, and what it survives."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from clipfleet.embedded import commands
from support import chaos, services, stack
from support.silent import silent
from support.stack import HASH_MODEL

PHOTOS = 40


@dataclass
class Survivor:
    """A stack on the folder of one that ended by kill -9, of which `job_id` and `family` are."""

    up: stack.Up
    job_id: str
    family: list[psutil.Process]


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Iterator[Survivor]:
    folder = tmp_path_factory.mktemp("up")
    with stack.up(folder, HASH_MODEL) as first:
        with first.client() as client:
            client.create_collection("kept")
            job = client.index("kept", photos)
            assert stack.finished(client, job.id).done == PHOTOS
        family = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        first.process.wait()
    with stack.up(folder, HASH_MODEL) as second:
        yield Survivor(second, job.id, family)


@pytest.fixture
def running(survivor: Survivor) -> stack.Up:
    return survivor.up


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.many_photos(tmp_path_factory.mktemp("photos"), PHOTOS)


def up_ends(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return stack.cli("up", *args, timeout_s=150, **env)


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


def test_a_second_stack_on_one_folder_is_refused_in_one_line(running: stack.Up) -> None:
    port = str(commands.free_port())
    done = up_ends("--data", str(running.folder), "--port", port, "--model", HASH_MODEL)
    assert done.returncode == 1
    (line,) = lines(done)
    assert "in use by" in line
    assert running.url in line
    assert "--data" in line
    services.eventually(running.ready, 60, "a stack that goes on")


def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((commands.LOOPBACK, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = up_ends("--data", str(tmp_path / "data"), "--port", port, "--model", HASH_MODEL)
    assert done.returncode == 1
    (line,) = lines(done)
    assert port in line
    assert "--port" in line


def test_an_unknown_model_folder_ends_up_with_what_to_do(tmp_path: Path) -> None:
    port, missing = str(commands.free_port()), str(tmp_path / "no-such-model")
    done = up_ends("--data", str(tmp_path / "data"), "--port", port, "--model", missing)
    assert done.returncode == 1
    (line,) = lines(done)
    assert f"there is no model folder '{missing}'" in line
    assert "--model" in line
    assert not (tmp_path / "data").exists()  # nothing was started


@pytest.mark.skipif(find_spec("open_clip") is not None, reason="the extra open-clip is installed")
def test_a_model_of_open_clip_without_the_extra_is_refused_in_one_line(tmp_path: Path) -> None:
    port = str(commands.free_port())
    done = up_ends(
        *("--data", str(tmp_path / "data"), "--port", port, "--model", "hf-hub:nobody/clip")
    )
    assert done.returncode == 1
    (line,) = lines(done)  # the hub is not asked
    assert line.endswith("pip install 'clipfleet[open-clip]'")


def test_a_hub_model_without_the_hub_names_both_ways_out(tmp_path: Path) -> None:
    port = str(commands.free_port())
    done = up_ends(
        *("--data", str(tmp_path / "data"), "--port", port, "--model", "nobody/no-such-clip"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 1
    asking, line = lines(done)
    assert "asking " in asking
    assert "HF_ENDPOINT" in line
    assert "--model /path/to/folder (or CLIPFLEET_MODEL=/path/to/folder)" in line


def test_a_hub_that_says_nothing_is_given_up_before_anything_starts(tmp_path: Path) -> None:
    port = str(commands.free_port())
    with silent() as hub:
        done = up_ends(
            *("--data", str(tmp_path / "data"), "--port", port, "--model", "nobody/no-such-clip"),
            HF_ENDPOINT=hub.url.rstrip("/"),
            HF_HOME=str(tmp_path / "hub"),
        )
        assert hub.accepted <= 2  # one file is asked for, and not each of them in turn
    assert done.returncode == 1
    asking, line = lines(done)
    assert asking == f"clipfleet: asking {hub.url.rstrip('/')} for the model nobody/no-such-clip"
    assert "it did not answer within 6 s" in line
    assert not (tmp_path / "data").exists()


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    with stack.up(tmp_path / "data", HASH_MODEL) as running:
        log = tmp_path / "data" / "up.log"
        services.eventually(lambda: "is ready" in log.read_text(), stack.START_S, "up's own word")
        for shown in ("search page: ", "/docs", "clipfleet index FOLDER"):
            assert shown in log.read_text()
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) >= 6
        assert stack.stop(running.process) == 0
    assert "stopping; the data is kept" in log.read_text()
    assert chaos.still_running(family) == []
    assert not (tmp_path / "data" / "children.json").exists()


def test_after_kill_9_of_up_the_next_one_finds_the_data_and_no_leftovers(
    survivor: Survivor,
) -> None:
    assert chaos.still_running(survivor.family) == []
    with survivor.up.client() as client:
        assert client.job(survivor.job_id).state == "succeeded"
        assert client.collection("kept").count == PHOTOS
        assert len(client.search("kept", text="a dog", top_k=3).matches) == 3


def test_a_stack_given_redis_and_milvus_starts_neither(tmp_path: Path, photos: Path) -> None:
    with (
        services.valkey(tmp_path / "valkey") as redis_url,
        services.milvus_lite(tmp_path / "milvus") as milvus_uri,
    ):
        settings = {"CLIPFLEET_REDIS_URL": redis_url, "CLIPFLEET_MILVUS_URI": milvus_uri}
        with stack.up(tmp_path / "data", HASH_MODEL, **settings) as running:
            for part in ("valkey", "milvus"):
                with pytest.raises(AssertionError, match="no process"):
                    running.part(part)
            with running.client() as client:
                client.create_collection("elsewhere")
                job = client.index("elsewhere", photos)
                assert stack.finished(client, job.id).done == PHOTOS
                assert client.collection("elsewhere").count == PHOTOS


def test_a_part_that_keeps_dying_ends_up_with_its_last_lines(tmp_path: Path) -> None:
    few = {**chaos.CONSTANTS, "clipfleet.embedded.supervisor:MAX_KILLS": 3}
    with chaos.up(tmp_path / "data", constants=few) as running:
        log = tmp_path / "data" / "up.log"
        services.eventually(lambda: "is ready" in log.read_text(), stack.START_S, "up's own word")

        def has_ended() -> bool:
            with suppress(AssertionError, psutil.Error):  # it is not there just now
                running.part("worker-query").kill()
            return running.process.poll() is not None

        services.eventually(has_ended, 120, "the end of up")
        assert running.process.poll() == 1
    obituary = log.read_text()
    assert "worker-query keeps ending (signal 9)" in obituary
    assert str(tmp_path / "data" / "logs" / "worker-query.log") in obituary


def test_the_list_of_children_names_those_that_run(running: stack.Up) -> None:
    content = json.loads((running.folder / "children.json").read_text())
    listed = {pid for pid, _ in content["children"]}
    children = {child.pid for child in psutil.Process(running.process.pid).children()}
    assert listed == children
