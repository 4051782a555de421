"""Managing jobs: retrying, listing, deleting, sending one twice."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from clipfleet import ProblemError
from support.chaos import redis_url, stopped
from support.ledgers import traces
from support.stack import Up, document


@pytest.fixture
def mine(client: Any, client_class: Any) -> Iterator[str]:
    """The name of a collection of this test and client alone: jobs are listed by it."""
    name = f"jobs-{client_class.__name__.lower()}-{secrets.token_hex(4)}"
    client.create_collection(name)
    yield name
    if name in {collection.name for collection in client.collections()}:
        client.delete_collection(name)


def photos(folder: Path, good: int, bad: int) -> Path:
    """Write small images, and files that are none."""
    folder.mkdir()
    for n in range(good):
        Image.new("RGB", (20, 20), (n, n, n)).save(folder / f"good{n}.png")
    for n in range(bad):
        (folder / f"bad{n}.png").write_bytes(b"not yet an image")
    return folder


@contextmanager
def refused(status: int, message: str) -> Iterator[None]:
    with pytest.raises(ProblemError, match=message) as caught:
        yield
    assert caught.value.status == status


def test_only_what_failed_is_tried_again(client: Any, mine: str, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", good=4, bad=3)
    job = client.index(mine, folder, label_from_folder=True, wait=True)
    assert (job.state, job.done, job.failed) == ("partial", 4, 3)
    for n in range(2):
        Image.new("RGB", (20, 20), (9, 9, n)).save(folder / f"bad{n}.png")
    (folder / "new.png").write_bytes((folder / "good0.png").read_bytes())
    retry = client.retry(job, wait=True)
    assert (retry.state, retry.total, retry.done, retry.failed) == ("partial", 3, 2, 1)
    assert (retry.retry_of, client.job(job).retried_by) == (job.id, retry.id)
    assert client.job(job).failed == 3
    assert [listed.id for listed in client.jobs(collection=mine)] == [retry.id, job.id]
    assert client.jobs(1, 1, collection=mine, state=["partial", "failed"]) == [client.job(job)]
    assert client.jobs(collection=mine, state="succeeded") == []
    assert client.collection(mine).count == 6
    assert client.image(mine, str(folder / "bad0.png")).label == "photos"
    (remaining,) = client.iter_failures(retry)
    Image.new("RGB", (20, 20)).save(remaining.id)
    assert client.retry(retry, wait=True).state == "succeeded"


def test_a_retry_through_the_command_line(service: Up, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", good=1, bad=1)
    done = service.cli("index", str(folder), "--collection", "jobs-cli", "--wait", "--json")
    assert done.returncode == 3
    job = document(done)["id"]
    again = service.cli("jobs", "retry", job, "--wait", "--json")
    assert (again.returncode, document(again)["retry_of"]) == (1, job)
    Image.new("RGB", (20, 20)).save(folder / "bad0.png")
    assert service.cli("jobs", "retry", job, "--wait").returncode == 0
    shown = service.cli("jobs", "list", "--collection", "jobs-cli", "--state", "failed", "--json")
    assert [listed["id"] for listed in document(shown)["jobs"]] == [document(again)["id"]]
    both = service.cli(
        "jobs", "list", "--collection", "jobs-cli", "--state", "partial", "--state", "succeeded"
    )
    assert both.stdout.count("jobs-cli") == 2
    assert document(service.cli("jobs", "delete", job, "--json")) == {"deleted": job}
    assert service.cli("jobs", "show", job).returncode == 1


def test_a_retry_of_an_upload_finds_its_files(client: Any, mine: str, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", good=2, bad=1)
    job = client.upload(mine, sorted(folder.iterdir()), wait=True)
    (before,) = client.iter_failures(job)
    retry = client.retry(job)
    with pytest.raises(Exception, match="every image failed"):
        client.wait(retry)
    (after,) = client.iter_failures(retry)
    assert (after.reason, after.stage) == (before.reason, "decode")


def test_failures_are_shown_without_what_is_kept_for_a_retry(service: Up, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        job = client.index("jobs-shown", photos(tmp_path / "photos", good=1, bad=1), wait=True)
        (shown,) = http.get(f"/v1/jobs/{job.id}/failures").json()["failures"]
    assert set(shown) == {"id", "uri", "reason", "stage", "attempts"}


def test_what_cannot_be_retried_is_said(
    client: Any, mine: str, service: Up, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos", good=1, bad=1)
    job = client.index(mine, folder, wait=True)
    with refused(404, "no job"):
        client.retry("unknown")
    (folder / "bad0.png").unlink()
    with refused(409, "no failures"):
        client.retry(client.index(mine, folder, wait=True))
    with stopped(service.part("worker-ingest-1")):
        running = client.index(mine, folder)
        with refused(409, "has not ended"):
            client.retry(running)
        client.cancel(running)
    client.delete_collection(mine)
    with refused(404, "no collection"):
        client.retry(job)
    client.create_collection(mine)
    with refused(409, "created again"):
        client.retry(job)


def test_two_retries_at_once_are_one(service: Up, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        client.create_collection("jobs-twice")
        job = client.index("jobs-twice", photos(tmp_path / "photos", good=0, bad=2))
        with pytest.raises(Exception, match="every image failed"):
            client.wait(job)
        with stopped(service.part("worker-ingest-1")):  # the first retry goes on
            first, second = (http.post(f"/v1/jobs/{job.id}/retry") for _ in range(2))
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.headers["location"] == second.headers["location"]
        assert first.json()["id"] == second.json()["id"]


def test_a_deleted_upload_leaves_nothing(service: Up, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", good=2, bad=1)
    with service.client() as client:
        key = "a key of mine"
        job = client.upload("jobs-gone", sorted(folder.iterdir()), idempotency_key=key, wait=True)
        stored = service.folder / "blobs" / "uploads" / job.id
        assert len(list(stored.iterdir())) == 3
        client.delete_job(job)
        assert not stored.exists()
        with refused(404, "no job"):
            client.delete_job(job)
        assert client.collection("jobs-gone").count == 2
        with redis.Redis.from_url(redis_url(service)) as connection:
            assert traces(connection, job.id) == []
        again = client.upload("jobs-gone", sorted(folder.iterdir()), idempotency_key=key, wait=True)
        assert (again.skipped, again.failed) == (2, 1)


def sent(http: httpx.Client, collection: str, key: str, *files: str, **form: str) -> httpx.Response:
    parts = [("files", (f"{name}.png", name.encode(), "image/png")) for name in files]
    headers = {"Idempotency-Key": key}
    url = f"/v1/collections/{collection}/images"
    return http.post(url, files=parts, data=form, headers=headers)


def test_an_upload_under_the_same_key_is_one_job(service: Up, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        for name in ("jobs-key", "jobs-other"):
            client.create_collection(name)
        first = sent(http, "jobs-key", "k", "a", "b")
        again = sent(http, "jobs-key", "k", "a", "b")
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json()["id"] == again.json()["id"]
        assert again.headers["location"] == first.headers["location"]
        assert [job.id for job in client.jobs(collection="jobs-key")] == [first.json()["id"]]
        assert uploads(service, "jobs-key") == {first.json()["id"]}
        assert sent(http, "jobs-other", "k", "a", "b").json()["id"] != first.json()["id"]
        for other in (
            sent(http, "jobs-key", "k", "a", "c"),
            sent(http, "jobs-key", "k", "b", "a"),
            sent(http, "jobs-key", "k", "a", "b", label="x"),
            sent(http, "jobs-key", "k", "a", "b", namespace="n"),
            http.post(
                "/v1/collections/jobs-key/jobs",
                json={"source": {"type": "folder", "path": str(tmp_path)}},
                headers={"Idempotency-Key": "k"},
            ),
        ):
            assert other.status_code == 409, other.text
            assert other.json()["job"] == first.json()["id"]
        assert uploads(service, "jobs-key") == {first.json()["id"]}
        assert sent(http, "jobs-key", "k" * 257, "a").status_code == 422


def test_uploads_under_one_key_at_the_same_moment_are_one_job(service: Up) -> None:
    with service.client() as client, service.http() as http, ThreadPoolExecutor(4) as threads:
        client.create_collection("jobs-race")
        names = [str(n) for n in range(50)]
        answers = list(threads.map(lambda _: sent(http, "jobs-race", "k", *names), range(4)))
        assert {answer.status_code for answer in answers} == {202}
        (job,) = client.jobs(collection="jobs-race")
        assert {answer.json()["id"] for answer in answers} == {job.id}
        assert uploads(service, "jobs-race") == {job.id}


def uploads(service: Up, collection: str) -> set[str]:
    """Return the jobs with stored uploads that are in a collection or unknown."""
    with service.client() as client:
        known = {job.id: job.collection for job in client.jobs(1_000)}
    stored = {path.name for path in (service.folder / "blobs" / "uploads").iterdir()}
    return {name for name in stored if known.get(name, collection) == collection}


@pytest.mark.parametrize("query", ["state=done", "limit=0", "offset=-1"])
def test_a_list_that_makes_no_sense_is_refused(service: Up, query: str) -> None:
    with service.http() as http:
        assert http.get(f"/v1/jobs?{query}").status_code == 422
