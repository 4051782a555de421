"""Webhooks of a whole stack, and of a sender that dies between sending and recording it."""

import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from clipfleet import Job, verify_webhook
from support.services import eventually
from support.stack import HASH_MODEL, Up, up
from support.webhooks import SECRET
from support.webserver import PageRequest, site

MUSIC = Path(str(files("clipfleet"))) / "samples" / "music"
SETTINGS = {
    "CLIPFLEET_FETCH__ALLOWED_NETWORKS": '["127.0.0.1/32"]',
    "CLIPFLEET_WEBHOOK_SECRET": SECRET,
    "CLIPFLEET_WEBHOOKS__TIMEOUT_S": "1",
    "CLIPFLEET_WEBHOOKS__PAUSE_S": "0.2",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("webhooks"), HASH_MODEL, **SETTINGS) as running:
        yield running


def events_of(job: Job, requests: list[PageRequest]) -> list[str]:
    """The ids of the events about a job; each is verified."""
    events = [verify_webhook(r.sent, dict(r.headers.items()), SECRET) for r in requests]
    return [event.id for event in events if event.job.id == job.id]


def test_the_command_line_starts_and_shows_it(stack: Up) -> None:
    busy = iter([503, 500])
    page = lambda request: request.answer(b"", next(busy, 204))  # noqa: E731
    with site({"/hook": page}) as web, stack.client() as client:
        url = f"{web.url}/hook"
        assert (
            stack.cli("index", str(MUSIC), "--collection", "hooks", "--webhook", url).returncode
            == 0
        )
        (job,) = client.jobs(collection="hooks")
        eventually(lambda: client.job(job).webhook == "delivered", 60, "the webhook")
        assert len(events_of(job, web.seen)) == 3
        assert "webhook: delivered" in stack.cli("jobs", "show", job.id).stdout
        assert SECRET not in stack.log("planner") + stack.log("gateway")


def test_a_sender_that_is_killed_before_it_has_recorded_it_sends_it_again(stack: Up) -> None:
    killed: list[float] = []

    def kill_first(request: PageRequest) -> None:
        if not killed:
            stack.part("planner").kill()
            killed.append(time.monotonic())
        request.answer()

    with site({"/hook": kill_first}) as web, stack.client() as client:
        job = client.index("killed", MUSIC, webhook=f"{web.url}/hook")
        eventually(lambda: client.job(job).webhook == "delivered", 120, "the webhook")
        assert events_of(job, web.seen) == [f"job_{job.id}"] * 2
        assert client.job(job).state == "succeeded"


def test_it_survives_the_death_of_redis(stack: Up) -> None:

    def kill_redis(request: PageRequest) -> None:
        if len(web.seen) == 1:
            stack.part("valkey").kill()
        request.answer()

    with site({"/hook": kill_redis}) as web, stack.client() as client:
        job = client.index("redis", MUSIC, webhook=f"{web.url}/hook")
        eventually(lambda: web.seen, 60, "the webhook")

        def delivered() -> bool:
            return client.job(job).webhook == "delivered"

        eventually(delivered, 120, "the record of it")
        assert set(events_of(job, web.seen)) == {f"job_{job.id}"}
