"""Flower in a real Chromium: queues, busy workers, tasks by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from clipfleet.common.queue.broker import CeleryPublisher, make_celery
from clipfleet.common.queue.messages import queue_name
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import CARRIED_MODEL, Settings
from clipfleet.embedded import commands
from clipfleet.results import Job
from support.browser import Tab, tab
from support.chaos import redis_url
from support.services import eventually
from support.stack import Up

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples"
WORKERS = ("worker-ingest-1@", "worker-query@")


def messages(up: Up) -> int:
    """Return the number of messages that no ingest worker has taken."""
    settings = Settings(redis_url=redis_url(up))
    with make_redis(settings) as client:
        publisher = CeleryPublisher(make_celery(settings), client)
        return publisher.waiting(queue_name("ingest", CARRIED_MODEL))


@pytest.fixture(scope="module")
def busy(carried_stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A job that runs until it is cancelled: its images take the worker minutes."""
    folder = tmp_path_factory.mktemp("many")
    samples = sorted(SAMPLES.rglob("*.png"))
    for number in range(20_000):
        (folder / f"{number:05}.png").symlink_to(samples[number % len(samples)])
    with carried_stack.client() as client:
        client.create_collection("watched")
        client.search("watched", text="a cat")
        eventually(lambda: not messages(carried_stack), 60, "the end of what other tests began")
        job = client.index("watched", folder)
        eventually(lambda: client.job(job).done, 60, "the end of the first chunk")
        yield job
        assert client.job(job).finished_at is None, "the worker had nothing to do any more"
        client.cancel(job)
        client.delete_collection("watched")


@pytest.fixture
def flower(browser: Browser, carried_stack: Up) -> Iterator[Tab]:
    with tab(browser, f"http://{commands.LOOPBACK}:{carried_stack.flower_port}") as flower:
        yield flower


@pytest.mark.usefixtures("busy")
def test_workers_are_online_while_they_are_busy(flower: Tab, tmp_path: Path) -> None:
    """A worker reports every two seconds, and the page does not refresh itself."""

    def active() -> str | None:
        page = flower.open("/workers")
        row = page.locator("#workers-table tbody tr", has_text=WORKERS[0])
        return row.locator("td").nth(2).text_content()

    eventually(lambda: active() in ("1", "2"), 60, "the word of the busy worker")
    for name in WORKERS:
        row = flower.page.locator("#workers-table tbody tr", has_text=name)
        expect(row).to_contain_text("Online")
    flower.page.screenshot(path=tmp_path / "workers.png")


def opened(flower: Tab, name: str, state: str, picture: Path, text: str = "") -> Page:
    """Open the page of the newest such task with this text; the list does not refresh itself."""
    page = flower.open("/tasks")
    rows = page.locator("#tasks-table tbody tr").filter(has_text=name)

    def opened_one() -> bool:
        page.goto(f"{flower.url}/tasks")
        page.locator("#tasks-table_info").wait_for()
        links = rows.filter(has_text=state).locator('a[href*="/task/"]').all()
        for path in [link.get_attribute("href") for link in links]:
            page.goto(f"{flower.url}{path}")
            if text in page.locator("body").inner_text():
                return True
        return False

    try:
        eventually(opened_one, 60, f"a task {name} in the state {state} with {text!r}")
    finally:
        page.screenshot(path=picture)
    return page


@pytest.mark.usefixtures("busy")
def test_both_queues_are_shown(flower: Tab, tmp_path: Path) -> None:
    shown = flower.open("/broker")
    for lane, messages in (("ingest", "^[01]$"), ("query", "^0$")):
        row = shown.locator("#queue-table tbody tr", has_text=f"{lane}.clipfleet-mini")
        expect(row.locator("td").nth(1)).to_have_text(re.compile(messages))
    shown.screenshot(path=tmp_path / "broker.png")


def test_a_task_is_a_batch_and_shows_its_job_but_no_query(
    flower: Tab, carried_stack: Up, busy: Job, tmp_path: Path
) -> None:
    """The worker learns which chunk it is by claiming one, so the task's result names it."""
    with carried_stack.client() as client:
        client.search("watched", text="a secret wish")
        shown = opened(flower, "clipfleet.ingest", "STARTED", tmp_path / "tasks.png")
        expect(shown.locator("body")).to_contain_text("clipfleet-mini")
    result = f"job {busy.id}, chunk "
    shown = opened(flower, "clipfleet.ingest", "SUCCESS", tmp_path / "done.png", result)
    expect(shown.locator("body")).to_contain_text(result)
    shown = opened(flower, "clipfleet.query", "SUCCESS", tmp_path / "again.png")
    expect(shown.locator("body")).to_contain_text("1 query, batch ")
    expect(shown.locator("body")).not_to_contain_text("a secret wish")
    shown.screenshot(path=tmp_path / "task.png")


def test_flower_listens_on_loopback_and_its_command_says_no_password(carried_stack: Up) -> None:
    part = carried_stack.part("flower")
    assert "redis://" not in " ".join(part.cmdline())
    listening = {
        connection.laddr
        for connection in part.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    assert listening == {(commands.LOOPBACK, carried_stack.flower_port)}
