"""A fleet on several hosts: no part may rely on sharing a machine with another.

`middle` has the broker, the store and the bucket. `front` has the gateway and the planner. `left`
and `right` have a worker each; `right` reaches `middle` over a bad line. The tests are `laptop`.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from clipfleet import Client
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.embedded import commands, processes
from support import chaos, hosts, services, stack
from support.chaos import HELD_AFTER
from support.gate import Gate
from support.hosts import Host
from support.models import data

REDIS, MILVUS, S3, HTTP = 6379, 19530, 9000, 8000
# As any cluster does: a worker beside a queue that never reaches it ends itself.
AGAIN = """trap 'kill $child; wait $child; exit' TERM
while :; do "$@" & child=$!; wait $child; done"""
BAD_LINE = Path(__file__).parents[1] / "support" / "flaky_proxy.py"
SHORT_ANNOUNCEMENTS = {"clipfleet.common.queue.fleet:CARD_S": 5.0}
PHOTOS = 64


@dataclass
class Broker:
    """Valkey on a host; its data is on disk when it starts again."""

    host: Host
    folder: Path
    running: "AbstractContextManager[subprocess.Popen[bytes]] | None" = None

    def start(self) -> None:
        command = [*commands.valkey(self.folder, REDIS, "secret"), "--bind", "0.0.0.0"]
        self.running = services.process(self.host.command(command), self.folder / "log")
        self.running.__enter__()

    def end(self) -> None:
        if self.running:
            self.running.__exit__(None, None, None)


@dataclass
class Fleet:
    middle: Host
    front: Host
    left_host: Host
    right_host: Host
    broker: Broker
    gate: Gate

    def client(self) -> Client:
        return Client(f"http://{self.front.address}:{HTTP}")

    def workers(self) -> set[str]:
        """Return the hosts whose workers are announced."""
        with redis.Redis.from_url(redis_url(self.middle.address), socket_timeout=5) as client:
            return {card.id.split("-")[0] for card in RedisFleet(client).alive()}

    def lost_leases(self, job_id: str) -> bool:
        """Return whether all leases of a job ran out, as seen from `middle`."""
        url = redis_url(commands.LOOPBACK)
        with self.middle.here(), redis.Redis.from_url(url, socket_timeout=5) as client:
            chunks = [chunk for chunk in RedisLedger(client).open_chunks(job_id) if chunk.leased]
        return bool(chunks) and all(chunk.expired for chunk in chunks)

    def ready(self) -> bool:
        with httpx.Client(trust_env=False) as http:
            return http.get(f"http://{self.front.address}:{HTTP}/readyz").is_success


def redis_url(address: str) -> str:
    return f"redis://:secret@{address}:{REDIS}/0"


def settings(middle: str, gate: Gate) -> dict[str, str]:
    """Return the environment of a part that reaches `middle` at this address."""
    return {
        **chaos.SETTINGS,
        **gate.environment(**chaos.CONSTANTS, **SHORT_ANNOUNCEMENTS),
        "CLIPFLEET_CALL_TIMEOUT_S": "3",
        "CLIPFLEET_REDIS_URL": redis_url(middle),
        "CLIPFLEET_MILVUS_URI": f"http://{middle}:{MILVUS}",
        "CLIPFLEET_BLOBS": "s3://blobs",
        "CLIPFLEET_MODEL": stack.HASH_MODEL,
        "CLIPFLEET_OPEN": "true",
        "AWS_ENDPOINT_URL": f"http://{middle}:{S3}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as running:
        five = running.enter_context(hosts.hosts("middle", "front", "left", "right", "laptop"))
        middle, front, left_host, right_host, laptop = five

        def run(host: Host, name: str, command: list[str], env: dict[str, str]) -> None:
            there = host.command(command)
            running.enter_context(services.process(there, folder / f"{name}.log", **env))

        broker = Broker(middle, folder / "valkey")
        broker.start()
        running.callback(broker.end)
        run(middle, "milvus", milvus(folder), commands.MILVUS_LITE_ENVIRONMENT)
        run(middle, "s3", [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3)], {})
        gate = Gate(folder / "faults")
        direct = settings(middle.address, gate)
        worker = ["sh", "-c", AGAIN, "sh", commands.script("clipfleet"), "worker"]
        run(front, "gateway", processes.gateway("0.0.0.0", HTTP), direct)
        run(front, "planner", processes.planner(), direct)
        run(left_host, "left", worker, direct)
        lines = [f"{port}={middle.address}:{port}" for port in (REDIS, MILVUS, S3)]
        run(right_host, "line", [sys.executable, str(BAD_LINE), "7", *lines], {})
        run(right_host, "right", worker, settings("127.0.0.1", gate))
        running.enter_context(laptop.here())
        make_bucket(middle)
        fleet = Fleet(middle, front, left_host, right_host, broker, gate)
        services.eventually(lambda: fleet.workers() == {"left", "right"}, 120, "two workers")
        services.eventually(fleet.ready, 60, "the gateway")
        yield fleet


def milvus(folder: Path) -> list[str]:
    command = commands.milvus_lite(folder / "milvus", MILVUS)
    command[command.index("--host") + 1] = "0.0.0.0"
    return command


def make_bucket(middle: Host) -> None:
    def put() -> bool:
        return httpx.put(f"http://{middle.address}:{S3}/blobs", trust_env=False).is_success

    services.eventually(put, 60, "the bucket")


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return sorted((data("flickr8k") / "images").glob("*.jpg"))[:PHOTOS]


@contextmanager
def held_job(fleet: Fleet, client: Client, collection: str, photos: list[Path]) -> Iterator[str]:
    """Yield the id of an upload that is indexed in part until the gate is opened."""
    with fleet.gate.closed(HELD_AFTER):
        client.create_collection(collection)
        job = client.upload(collection, photos)
        services.eventually(lambda: client.job(job.id).done > 0, 60, "the first images")
        fleet.gate.wait()
        assert client.job(job.id).finished_at is None
        yield job.id


def require_exact(client: Client, job_id: str, collection: str) -> None:
    job = stack.finished(client, job_id, chaos.END_S)
    counts = (job.state, job.total, job.done, job.skipped, job.failed)
    assert counts == ("succeeded", PHOTOS, PHOTOS, 0, 0), job
    assert client.collection(collection).count == PHOTOS


def test_photos_of_one_host_are_found_from_it(fleet: Fleet, photos: list[Path]) -> None:
    with fleet.client() as client:
        client.create_collection("across")
        require_exact(client, client.upload("across", photos).id, "across")
        assert len(client.search("across", text="a dog runs", top_k=5).matches) == 5
        match = client.search("across", image=photos[7], top_k=1).matches[0]
        assert match.id == photos[7].name
        assert client.thumbnail("across", match.id).startswith(b"\xff\xd8")


def test_a_host_that_was_cut_off_works_again(fleet: Fleet, photos: list[Path]) -> None:
    """The broker restarts meanwhile, so the host does not learn that its connections ended."""
    with fleet.client() as client:
        with fleet.left_host.cut_off(), held_job(fleet, client, "without-left", photos) as job:
            services.eventually(lambda: fleet.workers() == {"right"}, 60, "left is missed")
            fleet.broker.end()
            fleet.broker.start()
            fleet.gate.open()
            require_exact(client, job, "without-left")
        services.eventually(lambda: fleet.workers() == {"left", "right"}, 120, "left is back")
        with fleet.right_host.cut_off():
            client.create_collection("without-right")
            require_exact(client, client.upload("without-right", photos).id, "without-right")
            services.eventually(
                lambda: client.search("without-right", text="a dog"), 60, "an answer"
            )


def test_nothing_is_lost_while_the_middle_is_gone(fleet: Fleet, photos: list[Path]) -> None:
    with fleet.client() as client, held_job(fleet, client, "without-middle", photos) as job:
        with fleet.middle.cut_off():
            fleet.gate.open()
            with httpx.Client(trust_env=False, timeout=60) as http:
                url = f"http://{fleet.front.address}:{HTTP}/v1/jobs/{job}"
                refused = http.get(url)
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) > 0
            services.eventually(lambda: fleet.lost_leases(job), 60, "the end of all leases")
        require_exact(client, job, "without-middle")
        services.eventually(lambda: client.search("without-middle", text="a dog"), 60, "an answer")
