"""Jobs with silent servers do not slow other jobs down."""

from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from clipfleet import Client
from clipfleet.testing import MemoryService
from clipfleet.workers.ingest.background import MAX_CHUNKS
from support import stack
from support.services import eventually
from support.silent import Silent, silent
from support.webserver import body, site

PICTURES = Path(str(files("clipfleet"))) / "samples" / "music"
PATIENT = {"allowed_networks": ["127.0.0.0/8"], "read_s": 600, "total_s": 600}


@pytest.fixture
def hosts() -> Iterator[Silent]:
    with silent("") as there:
        yield there


def urls(hosts: Silent, count: int, host: int = 1, network: int = 1) -> list[str]:
    port = hosts.url.rpartition(":")[2]
    return [f"http://127.0.{network}.{host}:{port}{n}.jpg" for n in range(count)]


def all_running(client: Client, count: int) -> bool:
    jobs = list(client.jobs(collection="slow", limit=100))
    return [job.state for job in jobs] == ["running"] * count


def require_done(client: Client) -> None:
    """Run a job that needs no network and check that it succeeds."""
    job = stack.finished(client, client.index("beside", PICTURES).id)
    assert (job.state, job.done) == ("succeeded", len(list(PICTURES.glob("*.png"))))


def test_a_job_beside_one_of_a_silent_host_is_done(hosts: Silent) -> None:
    with MemoryService(fetch=PATIENT) as service, service.client() as client:
        slow = client.index("slow", urls(hosts, 1_000))
        assert hosts.reached.wait(60)
        require_done(client)
        assert client.job(slow).finished_at is None
        assert hosts.open == 8, "as many as a host is asked at once"
        client.cancel(slow)


def test_more_silent_jobs_than_places_in_the_background_all_begin(hosts: Silent) -> None:
    with MemoryService(fetch=PATIENT, lease_s=0.6) as service, service.client() as client:
        for host in range(2 * MAX_CHUNKS):
            client.index("slow", urls(hosts, 1, host + 1))
        eventually(lambda: hosts.open == 2 * MAX_CHUNKS, 60, "connections of all jobs")
        require_done(client)
        jobs = list(client.jobs(collection="slow", limit=100))
        assert {job.state for job in jobs} == {"running"}


def test_more_silent_jobs_than_a_worker_can_wait_for_leave_it_to_others(hosts: Silent) -> None:
    with MemoryService(fetch={**PATIENT, "concurrency": 16}) as service, service.client() as client:
        for host in range(32):
            client.index("slow", urls(hosts, 1, host + 1))
        eventually(lambda: hosts.open == 16, 60, "as many connections as there may be")
        require_done(client)
        assert hosts.open == 16
        jobs = list(client.jobs(collection="slow", limit=100))
        assert {job.state for job in jobs} == {"running"}


def test_many_silent_jobs_of_one_key_leave_threads_to_another_key(hosts: Silent) -> None:
    """16 threads: 20 silent jobs of a key have 8 of them, and the job of the other key is done."""
    picture = next(PICTURES.glob("*.png")).read_bytes()
    keys: dict[str, dict[str, Any]] = {"greedy": {}, "modest": {}}
    with (
        MemoryService(api_keys=keys, fetch={**PATIENT, "concurrency": 16}) as service,
        service.client("greedy") as greedy,
        service.client("modest") as modest,
        site({f"/{n}.png": body(picture) for n in range(30)}) as web,
    ):
        jobs = [
            greedy.index("slow", [urls(hosts, 1, host, job + 1)[0] for host in range(1, 31)])
            for job in range(20)
        ]
        running = partial(all_running, greedy, len(jobs))
        eventually(running, 60, "all silent jobs")
        eventually(lambda: hosts.open >= 8, 60, "connections of the silent jobs")
        good = modest.index("good", [f"{web.url}/{n}.png" for n in range(30)])
        done = stack.finished(modest, good.id)
        assert (done.state, done.done) == ("succeeded", 30)
        assert hosts.open == 8
        for job in jobs:
            greedy.cancel(job)


def test_when_the_silent_jobs_are_cancelled_their_places_are_free(hosts: Silent) -> None:
    with (
        MemoryService(fetch={**PATIENT, "concurrency": 16}, lease_s=0.6) as service,
        service.client() as client,
        silent("127.0.2.1") as last,
    ):
        jobs = [client.index("slow", urls(hosts, 1, host + 1)) for host in range(16)]
        eventually(lambda: hosts.open == 16, 60, "as many connections as there may be")
        waiting = client.index("last", [f"{last.url}a.jpg"])
        for job in jobs:
            client.cancel(job)
        eventually(lambda: hosts.open == 0, 60, "the end of their connections")
        assert last.reached.wait(60)
        client.cancel(waiting)


def test_its_failures_come_in_at_the_rate_of_its_own_limits(hosts: Silent) -> None:
    limits = {**PATIENT, "read_s": 0.2, "total_s": 0.25, "tries": 1, "breaker_timeouts": 0}
    with MemoryService(fetch=limits) as service, service.client() as client:
        job = stack.finished(client, client.index("slow", urls(hosts, 30)).id)
        assert (job.state, job.failed) == ("failed", 30)
        reasons = {failure.reason for failure in client.iter_failures(job)}
        assert reasons == {"the server did not answer in time (1 tries)"}
