"""Checks that parts run at their start, on a real Valkey: settings, addresses, shared stores."""

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import redis

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unavailable
from clipfleet.common.process import startup
from clipfleet.common.process.checks import (
    Finding,
    check_milvus,
    check_redis,
    check_same_blobs,
    check_same_milvus,
    service_checks,
)
from clipfleet.common.process.deployment import MARKED, MARKING
from clipfleet.common.redis.client import RedisUnavailable, make_redis
from clipfleet.common.settings import Settings
from clipfleet.common.store.memory import MemoryStore
from clipfleet.embedded import commands, processes
from support import services
from support.gateways import in_process
from support.services import Certificate

# `python -m MODULE …`, whose checks are sure of an error within a second instead of 3 to 30.
IMPATIENT = """
import runpy, sys
from clipfleet.common.process import startup
startup.RETRY_INTERVAL_S, startup.CONFIRM_AFTER_S, startup.POLL_INTERVAL_S = 0.1, 0.5, 0.1
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def impatient(command: Sequence[str]) -> list[str]:
    python, option, *rest = command
    assert option == "-m"
    return [python, "-c", IMPATIENT, *rest]


PARTS = {
    "gateway": impatient(processes.gateway(commands.LOOPBACK, 0)),
    "planner": impatient(processes.planner()),
    "worker": impatient(processes.worker("w", ["ingest"], "m")),
}


@pytest.fixture
def valkey(valkey_url: str) -> Iterator["redis.Redis"]:
    with closing(make_redis(Settings(redis_url=valkey_url))) as client:
        yield client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 0)
        client.config_set("appendonly", "yes")
        client.flushall()


@pytest.fixture
def evicting(valkey: "redis.Redis") -> "redis.Redis":
    valkey.config_set("maxmemory", "100mb")
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    return valkey


def findings(url: str, **more: str) -> list[Finding]:
    settings = Settings(redis_url=url, call_timeout_s=1, **more)  # type: ignore[arg-type]
    with closing(make_redis(settings)) as client:
        return check_redis(settings, client)


@pytest.mark.parametrize("name", ['a "b"', "a'b", "a\\b", "a # b", "ä  b"])
def test_valkey_keeps_its_data_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    with services.valkey(tmp_path / name) as url, closing(redis.Redis.from_url(url)) as client:
        assert client.config_get("dir") == {"dir": str(tmp_path / name)}


def test_a_valkey_as_it_must_be_gives_nothing_to_say(
    valkey_url: str, valkey: "redis.Redis"
) -> None:
    assert valkey.ping()
    assert findings(valkey_url) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_part_starts_on_a_redis_that_evicts_and_each_says_so_in_one_line(
    part: str, valkey_url: str, evicting: "redis.Redis", tmp_path: Path
) -> None:
    assert evicting.ping()
    env = {
        "CLIPFLEET_REDIS_URL": valkey_url,
        "CLIPFLEET_BLOBS": str(tmp_path),
        "CLIPFLEET_MODEL": "m",
    }
    done = subprocess.run(
        PARTS[part],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("clipfleet ")]
    assert line.startswith(f"clipfleet {part}: Redis evicts jobs when it is full")
    assert "maxmemory-policy allkeys-lru" in line
    assert "CONFIG SET maxmemory-policy noeviction" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("REDIS_URL", "http://127.0.0.1:9"), ("MILVUS_URI", "milvus"), ("BLOBS", "nothing://there")],
)
def test_an_address_of_nothing_ends_a_part_with_the_setting_s_name(
    name: str, value: str, valkey_url: str, valkey: "redis.Redis", tmp_path: Path
) -> None:
    assert valkey.ping()
    services_env = {"CLIPFLEET_REDIS_URL": valkey_url, "CLIPFLEET_BLOBS": str(tmp_path)}
    env = {**os.environ, **services_env, f"CLIPFLEET_{name}": value}
    command = PARTS["planner"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done.stderr
    assert f"CLIPFLEET_{name}" in done.stderr.splitlines()[-1]


def test_readyz_says_when_redis_was_set_to_evict_meanwhile(
    valkey_url: str, valkey: "redis.Redis", tmp_path: Path
) -> None:
    with in_process(tmp_path, valkey_url) as http:
        valkey.config_set("maxmemory", "100mb")
        valkey.config_set("maxmemory-policy", "allkeys-lru")
        answer = http.get("/readyz")
        assert answer.status_code == 503
        assert "maxmemory-policy allkeys-lru" in answer.json()["parts"]["redis"]


def test_a_policy_that_cannot_evict_yet_and_a_redis_that_keeps_nothing_are_warned_of(
    valkey_url: str, valkey: "redis.Redis"
) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    valkey.config_set("appendonly", "no")
    eviction, persistence = findings(valkey_url)
    assert {eviction.severity, persistence.severity} == {"warning"}
    assert "if maxmemory were set" in eviction.what
    assert persistence.do == "set appendonly yes"


def test_a_policy_that_evicts_what_expires_leaves_the_jobs_alone(
    valkey_url: str, valkey: "redis.Redis"
) -> None:
    valkey.config_set("maxmemory", "100mb")
    valkey.config_set("maxmemory-policy", "volatile-lru")
    (finding,) = findings(valkey_url)
    assert finding.severity == "warning"
    assert "announcements of workers" in finding.what


@pytest.mark.parametrize(
    ("url", "do"),
    [
        ("redis://:se/cret@localhost:6379/0", "%2F"),
        ("rediss://:secret@localhost:6379/0?ssl_cert_reqs=none", "remove them"),
    ],
)
def test_an_address_that_is_wrong_is_not_repeated_with_its_password(url: str, do: str) -> None:
    (check,) = service_checks(Settings(redis_url=url))
    (finding,) = check()
    assert "CLIPFLEET_REDIS_URL" in finding.what
    assert do in finding.do
    assert "cret" not in str(finding)


def test_what_takes_a_question_and_does_not_answer_holds_no_part_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(startup, "FIRST_ROUND_TIMEOUT_S", 0.05)
    started, answer = threading.Event(), threading.Event()

    def hanging() -> list[Finding]:
        started.set()
        answer.wait(60)
        return []

    startup.begin_checks("part", [hanging])
    assert started.is_set()
    answer.set()


def test_a_user_who_may_not_ask_for_the_policy_is_warned_that_it_is_not_known(
    tmp_path: Path,
) -> None:
    signed: Certificate = services.certificate(tmp_path / "tls", "localhost")
    with services.valkey_with_tls(tmp_path / "valkey", signed) as url:
        (finding,) = findings(url, redis_ca=str(signed.authority))
        assert finding.severity == "warning"
        assert "is unknown" in finding.what
        (finding,) = findings(url.replace("rediss", "redis"))
        assert "must begin with rediss://" in finding.do
        (finding,) = findings(url.replace("p%40ss", "other"), redis_ca=str(signed.authority))
        assert "the password in CLIPFLEET_REDIS_URL" in finding.what
        (finding,) = findings(url, redis_ca=str(tmp_path / "missing.pem"))
        assert finding.what.startswith("CLIPFLEET_REDIS_CA: ")


def test_tls_to_a_redis_without_it_is_told_to_say_redis(valkey_url: str) -> None:
    (finding,) = findings(valkey_url.replace("redis:", "rediss:"))
    assert "must begin with redis://" in finding.do


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    port = commands.free_port()
    command = [*commands.valkey(tmp_path, port, "secret"), "--cluster-enabled", "yes"]
    command += ["--cluster-port", str(commands.free_port())]
    url = commands.valkey_url(port, "secret")
    with services.process(command, tmp_path / "log"), redis.Redis.from_url(url) as client:
        services.eventually(client.ping, 20, "Valkey's answer")
        (finding,) = findings(url)
        assert finding.what == "Redis Cluster is not supported"


def test_a_redis_that_is_away_is_waited_for() -> None:
    with pytest.raises(RedisUnavailable):
        findings("redis://127.0.0.1:9")


class Versioned(MemoryStore):
    def __init__(self, version: str) -> None:
        super().__init__()
        self._version = version

    def version(self) -> str:
        return self._version


@pytest.mark.parametrize("version", ["v2.3.5-lite", "2.6.1", "3.0", "milvus_lite 1.2", "a cloud's"])
def test_milvus_of_a_supported_version_or_of_none_that_can_be_told_is_taken(version: str) -> None:
    assert check_milvus(Versioned(version)) == []


@pytest.mark.parametrize("version", ["v2.2.16", "1.1.1", "2.0"])
def test_milvus_of_an_older_version_is_named(version: str) -> None:
    (finding,) = check_milvus(Versioned(version))
    assert finding.severity == "error"
    assert finding.what == f"Milvus {version} is too old"
    assert finding.do == "use 2.3 or newer"


def test_whoever_comes_with_another_store_is_told_and_a_redis_of_its_own_helps(
    valkey: "redis.Redis",
) -> None:
    first, other = MemoryStore(), MemoryStore()
    assert check_same_milvus(valkey, first) == []
    (finding,) = check_same_milvus(valkey, other)
    assert "not the one that the other parts on this Redis use" in finding.what
    assert "CLIPFLEET_MILVUS_URI" in finding.do
    assert check_same_milvus(valkey, first) == []
    valkey.flushall()
    assert check_same_milvus(valkey, other) == []
    assert check_same_milvus(valkey, first) != []


def test_a_store_replaced_on_purpose_is_taken_after_what_the_finding_says(
    valkey: "redis.Redis",
) -> None:
    assert check_same_milvus(valkey, MemoryStore()) == []
    new = MemoryStore()
    (finding,) = check_same_milvus(valkey, new)
    assert f"HDEL {MARKED} milvus" in finding.do
    valkey.hdel(MARKED, "milvus")
    assert check_same_milvus(valkey, new) == []


def test_blobs_are_the_same_by_what_they_hold_not_by_their_address(
    valkey: "redis.Redis", tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert check_same_blobs(valkey, Blobs(str(tmp_path / "one"))) == []
    assert check_same_blobs(valkey, Blobs(str(tmp_path / "link"))) == []
    (finding,) = check_same_blobs(valkey, Blobs(str(tmp_path / "other")))
    assert "CLIPFLEET_BLOBS" in finding.do


def test_while_another_part_decides_which_store_it_is_one_waits(valkey: "redis.Redis") -> None:
    valkey.set(MARKING + "milvus", 1)
    with pytest.raises(Unavailable, match="is marking its"):
        check_same_milvus(valkey, MemoryStore())


def test_a_part_waits_for_a_redis_that_is_away_and_ends_when_it_comes_and_evicts(
    tmp_path: Path,
) -> None:
    port = commands.free_port()
    url = commands.valkey_url(port, "secret")
    env = {"CLIPFLEET_REDIS_URL": url, "CLIPFLEET_BLOBS": str(tmp_path / "blobs")}
    with services.process(PARTS["planner"], tmp_path / "planner.log", **env) as planner:
        log = tmp_path / "planner.log"
        services.eventually(lambda: "waiting" in log.read_text(), 60, "the planner's patience")
        assert planner.poll() is None
        evicts = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
        command = [*commands.valkey(tmp_path / "valkey", port, "secret"), *evicts]
        with services.process(command, tmp_path / "valkey.log"):
            assert planner.wait(60) == 78
        assert "maxmemory-policy allkeys-lru" in log.read_text().splitlines()[-1]
