"""Both Python clients through every operation of the service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipfleet import Job, JobFailed, NotFound, ProblemError
from support.in_process import GatedImages, InProcess, PixelEmbedder
from support.stack import Up, photos


@pytest.fixture
def client(memory_service: InProcess, client_class: Any) -> Iterator[Any]:
    """Each of the Python clients in turn, on the service in this process."""
    with client_class(memory_service.url) as client:
        yield client


@pytest.fixture
def mine(client: Any, client_class: Any) -> Iterator[str]:
    """The name of a collection of this test and client alone."""
    name = f"clients-{client_class.__name__.lower()}"
    yield name
    if name in {collection.name for collection in client.collections()}:
        client.delete_collection(name)


def test_a_folder_goes_in_is_found_in_every_way_and_goes_away(
    client_class: Any, tmp_path: Path, flickr: list[Path]
) -> None:
    with InProcess(embedder=PixelEmbedder()) as service, client_class(service.url) as client:
        require_all_ways(client, "clients", tmp_path, flickr)


def test_so_it_does_on_the_real_stack(
    carried_stack: Up, tmp_path: Path, flickr: list[Path]
) -> None:
    with carried_stack.client() as client:
        require_all_ways(client, "clients", tmp_path, flickr)


def require_all_ways(client: Any, mine: str, tmp_path: Path, flickr: list[Path]) -> None:
    first, *_ = paths = photos(tmp_path / "photos", flickr, 6)
    heard: list[Job] = []
    job = client.index(mine, tmp_path / "photos", wait=True, progress=heard.append)
    assert (job.state, job.total, job.done) == ("succeeded", 6, 6)
    assert heard[-1] == client.job(job) == client.job(job.id) == job
    assert job in client.jobs()

    shown = client.image(mine, str(first), include_values=True)
    for query in (
        {"image": first},
        {"image": str(first)},
        {"image": first.read_bytes()},
        {"image": Image.open(first)},
        {"id": str(first)},
        {"vector": shown.values},
    ):
        best = client.search(mine, **query, top_k=3).matches[0]
        assert best.id == str(first)
        assert best.score == pytest.approx(1, abs=1e-3)
    assert len(client.search(mine, text="a dog").matches) == 6
    pages = [client.search(mine, text="a dog", top_k=3, offset=n).matches for n in (0, 3)]
    assert {match.id for page in pages for match in page} == {str(path) for path in paths}

    client.delete_image(mine, str(first))
    with pytest.raises(NotFound):
        client.image(mine, str(first))
    client.delete_collection(mine)
    with pytest.raises(NotFound, match="no collection"):
        client.collection(mine)


def test_an_upload_with_a_bad_file_tells_of_it(
    client: Any, mine: str, tmp_path: Path, flickr: list[Path]
) -> None:
    good = photos(tmp_path, flickr, 2)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    job = client.upload(mine, [*good, tmp_path / "bad.jpg"], label="mine", wait=True)
    assert (job.state, job.done, job.failed) == ("partial", 2, 1)
    page = client.failures(job)
    assert page.total == 1
    assert list(client.iter_failures(job)) == page.failures
    assert page.failures[0].id == "bad.jpg"
    matches = client.search(mine, text="anything", filter={"label": "mine"}).matches
    assert {match.id for match in matches} == {path.name for path in good}


def test_own_vectors_of_a_described_collection(client: Any, mine: str) -> None:
    collection = client.create_collection(mine, model="none", dim=2, fields={"year": "int"})
    assert (collection.dim, collection.fields) == (2, {"year": "int"})
    vectors = (
        {"id": f"v{n}", "values": [n, 1], "metadata": {"year": n}, "label": None}
        for n in range(1_200)
    )
    assert client.upsert(mine, vectors, namespace="own") == 1_200
    result = client.search(
        mine, vector=[0, 1], filter={"year": {"$gte": 1_198}}, namespace="own", min_score=0
    )
    assert [match.id for match in result.matches] == ["v1198", "v1199"]


def test_no_means_no_with_the_services_own_words(client: Any, mine: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        client.index(mine, tmp_path, create=False)
    client.create_collection(mine, metric="cosine")
    with pytest.raises(ProblemError) as caught:
        client.create_collection(mine, metric="dot")
    assert (caught.value.status, caught.value.slug) == (409, "conflict")
    assert caught.value.problem["request_id"]
    with pytest.raises(ValueError, match="top_k"):
        client.search(mine, text="x", top_k=0)


def test_a_job_can_be_cancelled_at_work(
    client_class: Any, tmp_path: Path, flickr: list[Path]
) -> None:
    photos(tmp_path / "photos", flickr, 40)
    embedder = GatedImages()
    with InProcess(embedder=embedder) as service, client_class(service.url) as client:
        job = client.index("held", tmp_path / "photos")
        assert embedder.reached.wait(60)
        assert client.job(job.id).state == "running"
        cancelled = client.cancel(job)
        assert client.wait(cancelled).state == "cancelled"
        embedder.gate.set()
        assert client.index("other", tmp_path / "photos", wait=True).done == 40
        ended = client.job(job.id)
        assert (ended.state, ended.done < 40) == ("cancelled", True)


def test_a_job_on_nothing_fails(client: Any, mine: str, tmp_path: Path) -> None:
    with pytest.raises(JobFailed) as caught:
        client.index(mine, tmp_path / "missing", wait=True)
    assert caught.value.job.error
