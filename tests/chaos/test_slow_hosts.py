"""A job whose server says nothing, beside another one, in a whole stack with one ingest worker."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support import chaos, services, stack
from support.silent import Silent, silent
from support.webserver import Site, body, site

GOOD = 12


@pytest.fixture
def nobody() -> Iterator[Silent]:
    with silent("127.0.1.1") as there:
        yield there


@pytest.fixture
def web() -> Iterator[Site]:
    data = io.BytesIO()
    Image.new("RGB", (16, 12)).save(data, "JPEG")
    with site({f"/{n}.jpg": body(data.getvalue()) for n in range(GOOD)}) as there:
        yield there


def test_it_costs_the_other_nothing_and_a_worker_told_to_end_keeps_what_is_done(
    slow_stack: chaos.Up, tmp_path: Path, nobody: Silent, web: Site
) -> None:
    few = chaos.many_photos(tmp_path / "few", 24)
    good = [f"{web.url}/{n}.jpg" for n in range(GOOD)]
    silent_ones = [f"{nobody.url}{n}.jpg" for n in range(300)]
    with slow_stack.tidied(), slow_stack.client() as client:
        for name in ("silent", "beside"):
            client.create_collection(name)
        worker = slow_stack.part("worker-ingest-1")
        job = client.index("silent", [*good, *silent_ones]).id
        beside = stack.finished(client, client.index("beside", few).id)
        assert (beside.state, beside.done) == ("succeeded", 24)
        services.eventually(lambda: client.job(job).done == GOOD, 60, "the good images")
        services.eventually(lambda: nobody.open == 8, 60, "connections to the silent server")
        assert slow_stack.part("worker-ingest-1").pid == worker.pid

        worker.terminate()
        worker.wait(10)
        services.eventually(lambda: nobody.open == 0, 60, "the end of its connections")
        chaos.restarted(slow_stack, "worker-ingest-1", worker.pid)
        services.eventually(lambda: nobody.open == 8, 120, "connections of the next worker")
        seen = client.job(job)
        assert (seen.state, seen.done, seen.failed) == ("running", GOOD, 0)
        assert len(web.seen) == GOOD, "no image was fetched twice"

        assert client.cancel(job).state == "cancelled"
        services.eventually(lambda: nobody.open == 0, 60, "the end of its connections")
