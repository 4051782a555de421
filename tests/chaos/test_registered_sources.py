"""Registered sources while the gateways that run them are killed: nothing is lost or done twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from clipfleet import Client, Error, Job
from support.chaos import restarted
from support.images import encoded
from support.services import eventually
from support.stack import HASH_MODEL, Up, up

KILLS = 4
SETTINGS = {"CLIPFLEET_LIMITS__SOURCE_INTERVAL_S": "1"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("sources"), HASH_MODEL, **SETTINGS) as running:
        yield running


def write_photo(path: Path, shade: int = 0) -> None:
    path.write_bytes(encoded(Image.new("RGB", (20, 10), (shade, 99, 0)), "JPEG"))


def kill_gateway(stack: Up) -> None:
    victim = stack.part("gateway")
    victim.kill()
    restarted(stack, "gateway", victim.pid)


def jobs_of(client: Client) -> list[Job]:
    """The jobs of the schedule; none while the gateway starts."""
    try:
        return client.jobs(1_000, collection="runs")
    except Error:
        return []


def names(client: Client, collection: str) -> set[str]:
    return {Path(image_id).name for image_id in client.iter_ids(collection)}


def reported(client: Client, collection: str, keys: list[str]) -> None:
    """Report keys until the service has answered, as an object store does."""

    def accepted() -> bool:
        try:
            return client.notify_source(collection, "s", keys).accepted == len(keys)
        except Error:
            return False

    eventually(accepted, 60, "the answer to an event")


def test_no_event_is_lost(stack: Up, tmp_path: Path) -> None:
    folder = tmp_path / "followed"
    folder.mkdir()
    write_photo(folder / "0.jpg")
    with stack.client() as client:
        client.create_collection("events")
        client.register_source("events", "s", folder)
        for number in range(1, KILLS + 1):
            write_photo(folder / f"{number}.jpg", number)
            reported(client, "events", [f"{number}.jpg"])
            if number > 1:
                (folder / f"{number - 1}.jpg").unlink()
                reported(client, "events", [f"{number - 1}.jpg"])
            kill_gateway(stack)
        eventually(lambda: names(client, "events") == {f"{KILLS}.jpg"}, 120, "the events")
        source = eventually(
            lambda: (shown := client.source("events", "s")).running is None and shown, 60, "the end"
        )
        assert source.waiting_keys == 0
        assert source.problem is None


def test_no_run_is_lost_or_doubled(stack: Up, tmp_path: Path) -> None:
    folder = tmp_path / "scheduled"
    folder.mkdir()
    write_photo(folder / "a.jpg")
    with stack.client() as client:
        client.create_collection("runs")
        client.register_source("runs", "s", folder, interval=2)
        for _ in range(KILLS):
            before = len(jobs_of(client))
            eventually(lambda n=before: len(jobs_of(client)) > n, 60, "a run")  # type: ignore[misc]
            kill_gateway(stack)
        before = len(jobs_of(client))
        eventually(lambda: len(jobs_of(client)) >= before + 2, 60, "further runs")
        client.pause_source("runs", "s")
        times = sorted(job.created_at for job in jobs_of(client))
        registered = client.source("runs", "s").created_at
        slots = [int((at - registered) // 2) for at in times]
        assert len(set(slots)) == len(slots), (registered, times)
        eventually(lambda: client.source("runs", "s").running is None, 60, "the end")
        assert {job.state for job in jobs_of(client)} == {"succeeded"}
