"""A job whose source never answers, beside one whose source does."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import chaos, services, stack, webserver


@pytest.fixture
def stalling() -> Iterator[str]:
    """A manifest's URL: its first line comes, the rest never does."""
    over = threading.Event()

    def rows() -> Iterator[bytes]:
        yield b"uri,id\n"
        over.wait()

    with webserver.site({"/all.csv": lambda request: _poured(request, rows())}) as site:
        yield f"{site.url}/all.csv"
        over.set()


def _poured(request: webserver.PageRequest, pieces: Iterator[bytes]) -> None:
    request.begin(Content_Type="text/csv")
    request.pour(pieces)


def test_it_says_so_holds_up_no_other_not_even_the_planners_end_and_can_be_cancelled(
    slow_stack: chaos.Up, tmp_path: Path, stalling: str
) -> None:
    few = chaos.many_photos(tmp_path / "few", 24)
    with slow_stack.client() as client:
        for name in ("hanging", "beside", "after"):
            client.create_collection(name)
        hanging = client.index("hanging", stalling).id
        beside = stack.finished(client, client.index("beside", few).id)
        assert (beside.state, beside.done) == ("succeeded", 24)
        services.eventually(
            lambda: "not answered" in (client.job(hanging).waiting or ""), 60, "a reason"
        )
        assert client.job(hanging).state == "running"

        planner = slow_stack.part("planner")
        planner.terminate()
        planner.wait(15)
        chaos.restarted(slow_stack, "planner", planner.pid)
        after = stack.finished(client, client.index("after", few).id)
        assert (after.state, after.done) == ("succeeded", 24)

        assert client.cancel(hanging).state == "cancelled"
        assert client.job(hanging).state == "cancelled"
