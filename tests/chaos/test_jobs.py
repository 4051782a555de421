"""Jobs that meet: with each other, with their own end, with that of their collection."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from clipfleet import Client, Job, NotFound
from support import services, stack
from support.chaos import END_S, SLOW, begin, many_photos, redis_url
from support.ledgers import traces

PHOTOS = 600


@pytest.fixture(scope="module")
def up(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Up]:
    """Slow, with two ingest workers and small chunks, so that jobs meet often."""
    folder = tmp_path_factory.mktemp("jobs")
    slow = {**SLOW, "CLIPFLEET_CHUNK_S": "0.1"}
    with stack.up(folder, tiny, "--workers", "2", **slow) as running:
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_photos(tmp_path_factory.mktemp("photos"), PHOTOS)


def settled(client: Client, job_id: str) -> Job:
    """The job once nobody has a chunk of it in hand any more."""
    seen: list[Job] = []

    def still() -> bool:
        seen.append(client.job(job_id))
        return len(seen) > 60 and seen[-1] == seen[-60]

    services.eventually(still, END_S, "an end of all work on the job")
    return seen[-1]


def test_two_jobs_on_one_collection_both_go_in(up: stack.Up, tmp_path: Path) -> None:
    with up.client() as client:
        client.create_collection("both")
        folders = [many_photos(tmp_path / name, 150) for name in ("one", "two")]
        jobs = [client.index(folder, "both") for folder in folders]
        for job in jobs:
            ended = stack.finished(client, job.id, END_S)
            assert (ended.state, ended.done, ended.total) == ("succeeded", 150, 150)
        assert client.collection("both").count == 300


def test_one_folder_twice_at_once_is_in_once(up: stack.Up, photos: Path) -> None:
    with up.client() as client:
        client.create_collection("same")
        jobs = [client.index(photos, "same") for _ in range(2)]
        for job in jobs:
            ended = stack.finished(client, job.id, END_S)
            assert (ended.state, ended.total, ended.failed) == ("succeeded", PHOTOS, 0)
            assert ended.done + ended.skipped == PHOTOS
        assert client.collection("same").count == PHOTOS
        path = str(sorted(photos.iterdir())[0])
        found = client.search("same", id=path, top_k=PHOTOS).matches
        assert len({match.id for match in found}) == len(found) == PHOTOS


def test_a_cancelled_job_stops_and_keeps_what_is_in(up: stack.Up, photos: Path) -> None:
    job_id = begin(up, "cancelled", photos)
    with up.client() as client:
        at_once = client.cancel(job_id)
        after = settled(client, job_id)
        assert (after.state, after.error) == ("cancelled", None)
        assert 0 < at_once.done <= after.done < PHOTOS
        assert client.collection("cancelled").count == after.done
        again = client.index(photos, "cancelled", wait=True)
        assert (again.state, again.skipped) == ("succeeded", after.done)


def test_of_a_job_deleted_while_it_runs_only_its_images_stay(up: stack.Up, photos: Path) -> None:
    job_id = begin(up, "deleted", photos)
    with up.client() as client, redis.Redis.from_url(redis_url(up)) as connection:
        client.delete_job(job_id)
        with pytest.raises(NotFound):
            client.job(job_id)
        other = client.index(photos, "deleted", wait=True)  # the workers are free for others
        assert (other.state, other.total) == ("succeeded", PHOTOS)
        assert other.skipped > 0
        assert client.collection("deleted").count == PHOTOS
        assert traces(connection, job_id) == []


def test_a_collection_dropped_while_jobs_run_cancels_them(up: stack.Up, photos: Path) -> None:
    first = begin(up, "dropped", photos)
    with up.client() as client:
        second = client.index(photos, "dropped")
        client.delete_collection("dropped")
        for job_id in (first, second.id):
            ended = stack.finished(client, job_id, END_S)
            assert (ended.state, ended.error) == ("cancelled", "the collection was deleted")


def test_nothing_meant_for_a_dropped_collection_lands_in_the_next(
    up: stack.Up, photos: Path
) -> None:
    job_id = begin(up, "anew", photos)
    with up.client() as client:
        client.delete_collection("anew")
        client.create_collection("anew")
        assert settled(client, job_id).state == "cancelled"
        assert client.collection("anew").count == 0
        assert client.index(photos, "anew", wait=True).done == PHOTOS
