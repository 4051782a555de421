"""Redis away in every form: no process ends, searches are answered or refused, work goes on."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from clipfleet.common.queue.broker import make_celery
from clipfleet.common.settings import Settings
from support import chaos, services, stack, valkeys

PARTS = ("planner", "worker-ingest-1", "worker-query", "gateway")
ATTEMPTS = 150  # of all parts together: in this time leases run out


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkeys.Server]:
    with valkeys.server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def up(valkey: valkeys.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Up]:
    with chaos.up(tmp_path_factory.mktemp("up"), CLIPFLEET_REDIS_URL=valkey.url) as running:
        yield running


def processes(up: chaos.Up) -> dict[str, psutil.Process]:
    return {name: up.part(name) for name in PARTS}


@contextmanager
def nobody_ends(up: chaos.Up) -> Iterator[None]:
    """The same processes before and after, and nothing in the log about one that ended."""
    before, log = processes(up), (up.folder / "up.log").read_text()
    yield
    assert chaos.still_running([psutil.Process(up.process.pid)])
    assert {name: part.pid for name, part in processes(up).items()} == {
        name: part.pid for name, part in before.items()
    }
    assert (up.folder / "up.log").read_text() == log


def search_is_refused(up: chaos.Up, collection: str) -> bool:
    """Any answer but a refusal that says when to come back fails the test."""
    with up.http() as http:
        answer = http.post(f"/v1/collections/{collection}/search", json={"text": "a dog"})
    if answer.status_code == 200:
        return False
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"
    return True


@contextmanager
def gone(server: valkeys.Server) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()
        server.ready()


@contextmanager
def silent(server: valkeys.Server) -> Iterator[None]:
    """A replica that has lost its primary and answers nothing."""
    with server.set_to(replica_serve_stale_data="no"), server.read_only():
        yield


REFUSING: dict[str, tuple[str, Callable[[valkeys.Server], AbstractContextManager[None]]]] = {
    "read-only": ("READONLY", valkeys.Server.read_only),
    "full": ("OOM", lambda server: server.set_to(maxmemory=1)),
    "without its replicas": ("NOREPLICAS", lambda server: server.set_to(min_replicas_to_write=1)),
    "cut off from its primary": ("MASTERDOWN", silent),
}
UNREACHABLE: dict[str, Callable[[valkeys.Server], AbstractContextManager[None]]] = {
    "loading": valkeys.Server.loading,
    "gone": gone,
}


@pytest.mark.parametrize("form", REFUSING)
def test_a_job_and_searches_outlive_a_redis_that_refuses_commands(
    up: chaos.Up, valkey: valkeys.Server, photos: Path, form: str
) -> None:
    code, away = REFUSING[form]
    collection = form.replace(" ", "-")
    with chaos.held_job(up, collection, photos) as job, nobody_ends(up):
        with away(valkey):
            up.gate.open()
            services.eventually(lambda: search_is_refused(up, collection), 30, "a refusal")
            valkey.cut()
            for part in ("worker-ingest-1", "worker-query"):
                services.eventually(partial(waits, up, part), 60, f"a waiting {part}")
            refused = valkey.refused(code)
            services.eventually(
                lambda: valkey.refused(code) > refused + ATTEMPTS, 60, "refused commands"
            )
            assert search_is_refused(up, collection)
        chaos.require_exact(up, job, collection)


@pytest.mark.parametrize("form", UNREACHABLE)
def test_a_job_and_searches_outlive_a_redis_that_starts_anew(
    up: chaos.Up, valkey: valkeys.Server, photos: Path, form: str
) -> None:
    with chaos.held_job(up, form, photos) as job, nobody_ends(up):
        with UNREACHABLE[form](valkey):
            up.gate.open()
            for part in ("worker-ingest-1", "worker-query"):
                services.eventually(partial(waits, up, part), 60, f"a waiting {part}")
            assert search_is_refused(up, form)
        chaos.require_exact(up, job, form)


def waits(up: chaos.Up, part: str) -> bool:
    """Whether the last that the worker's consumer said is that it waits for Redis."""
    lines = [line for line in up.log(part).splitlines() if "waiting for Redis: " in line]
    return bool(lines) and "over after" not in lines[-1]


def test_reads_are_answered_while_redis_takes_no_writes(
    up: chaos.Up, valkey: valkeys.Server, photos: Path
) -> None:
    with up.client() as client:
        client.create_collection("readable")
        job = stack.finished(client, client.index("readable", photos).id)
        image = client.search("readable", text="a dog").matches[0].id
        with valkey.read_only():
            services.eventually(lambda: search_is_refused(up, "readable"), 30, "a refusal")
            assert client.collection("readable").count == chaos.PHOTOS
            assert client.job(job.id).done == chaos.PHOTOS
            assert client.image("readable", image).id == image
        services.eventually(lambda: not search_is_refused(up, "readable"), 60, "an answer")


def test_a_stack_that_starts_on_a_redis_without_writes_waits_and_says_so(tmp_path: Path) -> None:
    port = stack.free_ports(1)
    with valkeys.server(tmp_path / "valkey") as server, ExitStack() as cleanup:
        with server.read_only():
            options = ("--model", stack.HASH_MODEL)
            process = stack.start(tmp_path, port, *options, CLIPFLEET_REDIS_URL=server.url)
            cleanup.callback(stack.stop, process)
            up = stack.Up(process, tmp_path, f"http://127.0.0.1:{port}")
            for part in ("planner", "worker-ingest-1", "worker-query"):
                services.eventually(partial(says_why, up, part), 120, f"the reason of {part}")
            refused = server.refused("READONLY")
            services.eventually(
                lambda: server.refused("READONLY") > refused + ATTEMPTS, 120, "refused commands"
            )
            assert process.poll() is None
            begun = {name: up.part(name).pid for name in PARTS}
        services.eventually(up.ready, 120, "a ready stack")
        assert {name: up.part(name).pid for name in PARTS} == begun


def says_why(up: stack.Up, part: str) -> bool:
    return "Redis does not accept writes at the moment" in up.log(part)


def test_a_job_and_searches_outlive_a_failover_to_another_address(
    tmp_path: Path, photos: Path
) -> None:
    with (
        valkeys.watched(tmp_path / "redis") as redis,
        chaos.up(tmp_path / "up", CLIPFLEET_REDIS_URL=redis.url) as up,
    ):
        for collection in ("first", "second"):  # there, and back again
            with chaos.held_job(up, collection, photos) as job, nobody_ends(up):
                killed = redis.primary()
                redis.fail_over()
                assert redis.primary().port != killed.port
                up.gate.open()
                chaos.require_exact(up, job, collection)
            redis.heal()


def test_workers_behind_sentinels_are_asked_for_their_state_and_tell_no_password(
    tmp_path: Path,
) -> None:
    """As Flower does, and shows it."""
    with (
        valkeys.watched(tmp_path / "redis") as redis,
        chaos.up(tmp_path / "up", CLIPFLEET_REDIS_URL=redis.url),
        closing(make_celery(Settings(redis_url=redis.url))) as app,
    ):
        state = app.control.inspect(timeout=10, limit=2).stats()
    assert len(state) == 2
    assert all(worker["broker"]["transport"] == "sentinel" for worker in state.values())
    for password in (valkeys.PASSWORD, valkeys.SENTINEL_PASSWORD):
        assert password not in json.dumps(state)
        assert quote(password, safe="") not in json.dumps(state)


def test_a_job_and_searches_outlive_a_new_certificate_of_another_authority(
    tmp_path: Path, photos: Path
) -> None:
    with valkeys.server(tmp_path / "valkey") as server, valkeys.tls(server, tmp_path) as front:
        settings = {"CLIPFLEET_REDIS_URL": front.url, "CLIPFLEET_REDIS_CA": str(front.authority)}
        with (
            chaos.up(tmp_path / "up", constants=chaos.CONSTANTS, **settings) as up,
            chaos.held_job(up, "rotated", photos) as job,
            nobody_ends(up),
        ):
            certificate = front.rotate()
            up.gate.open()
            services.eventually(
                lambda: says_distrust(up, "worker-query"), 60, "the reason in its log"
            )
            assert search_is_refused(up, "rotated")
            front.trust(certificate)
            chaos.require_exact(up, job, "rotated")


def says_distrust(up: chaos.Up, part: str) -> bool:
    return "waiting for Redis: the certificate of Redis is not signed by" in up.log(part)
