"""Jobs that meet: with each other, with their own end, with that of their collection."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clipfleet import Job, NotFound
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.settings import Settings
from support import chaos, services, stack
from support.chaos import PHOTOS, held_job, many_photos
from support.ledgers import traces

WORKERS = 2


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Up]:
    with chaos.up(tmp_path_factory.mktemp("jobs"), "--workers", str(WORKERS)) as running:
        yield running


def settled(up: chaos.Up, job_id: str) -> Job:
    """The job once no worker has a chunk of it in hand any more."""
    names = [f"worker-ingest-{n}@{socket.gethostname()}" for n in range(1, WORKERS + 1)]
    with closing(make_celery(Settings(redis_url=chaos.redis_url(up)))) as celery:

        def idle() -> bool:
            tasks = celery.control.inspect(names, timeout=30).active() or {}
            return tasks == {name: [] for name in names}

        services.eventually(idle, chaos.END_S, "an end of all work on the job")
    with up.client() as client:
        return client.job(job_id)


def test_two_jobs_on_one_collection_both_go_in(up: chaos.Up, tmp_path: Path) -> None:
    with up.client() as client:
        client.create_collection("both")
        folders = [many_photos(tmp_path / name, 60) for name in ("one", "two")]
        with up.gate.closed():
            jobs = [client.index("both", folder) for folder in folders]
            up.gate.wait(WORKERS)
        for job in jobs:
            ended = stack.finished(client, job.id, chaos.END_S)
            assert (ended.state, ended.done, ended.total) == ("succeeded", 60, 60)
        assert client.collection("both").count == 120


def test_one_folder_twice_at_once_is_in_once(up: chaos.Up, photos: Path) -> None:
    with up.client() as client:
        client.create_collection("same")
        with up.gate.closed():
            jobs = [client.index("same", photos) for _ in range(2)]
            up.gate.wait(WORKERS)
        for job in jobs:
            ended = stack.finished(client, job.id, chaos.END_S)
            assert (ended.state, ended.total, ended.failed) == ("succeeded", PHOTOS, 0)
            assert ended.done + ended.skipped == PHOTOS
        assert client.collection("same").count == PHOTOS
        path = str(sorted(photos.iterdir())[0])
        matches = client.search("same", id=path, top_k=PHOTOS).matches
        assert len({match.id for match in matches}) == len(matches) == PHOTOS


def test_a_cancelled_job_stops_and_keeps_what_is_in(up: chaos.Up, photos: Path) -> None:
    with up.client() as client:
        with held_job(up, "cancelled", photos) as job_id:
            at_once = client.cancel(job_id)
        after = settled(up, job_id)
        assert (after.state, after.error) == ("cancelled", None)
        assert 0 < at_once.done <= after.done < PHOTOS
        assert client.collection("cancelled").count == after.done
        again = client.index("cancelled", photos, wait=True)
        assert (again.state, again.skipped) == ("succeeded", after.done)


def test_of_a_job_deleted_while_it_runs_only_its_images_stay(up: chaos.Up, photos: Path) -> None:
    with up.client() as client, chaos.connection(up) as connection:
        with held_job(up, "deleted", photos) as job_id:
            client.delete_job(job_id)
            with pytest.raises(NotFound):
                client.job(job_id)
        other = client.index("deleted", photos, wait=True)  # the workers are free for others
        assert (other.state, other.total) == ("succeeded", PHOTOS)
        assert other.skipped > 0
        assert client.collection("deleted").count == PHOTOS
        assert traces(connection, job_id) == []


def test_a_collection_dropped_while_jobs_run_cancels_them(up: chaos.Up, photos: Path) -> None:
    with up.client() as client:
        with held_job(up, "dropped", photos) as first:
            second = client.index("dropped", photos)
            client.delete_collection("dropped")
        for job_id in (first, second.id):
            ended = stack.finished(client, job_id, chaos.END_S)
            assert (ended.state, ended.error) == ("cancelled", "the collection was deleted")


def test_nothing_meant_for_a_dropped_collection_lands_in_the_next(
    up: chaos.Up, photos: Path
) -> None:
    with up.client() as client:
        with held_job(up, "anew", photos) as job_id:
            client.delete_collection("anew")
            client.create_collection("anew")
        assert settled(up, job_id).state == "cancelled"
        assert client.collection("anew").count == 0
        assert client.index("anew", photos, wait=True).done == PHOTOS
