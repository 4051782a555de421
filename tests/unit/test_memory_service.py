"""The service in memory, as the tests of other programs use it."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from clipfleet import Client, NotFound, ProblemError, SearchResult
from clipfleet.testing import MemoryService
from support.webserver import body, site

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"
SAMPLES = Path(str(files("clipfleet"))) / "samples"
MUSIC = sorted((SAMPLES / "music").glob("*.png"))
PICTURE = MUSIC[0]


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(fetch={"allowed_networks": ["127.0.0.1/32"]}) as running:
        yield running


@pytest.fixture
def client(service: MemoryService) -> Iterator[Client]:
    with service.client() as client:
        yield client


def test_a_folder_is_indexed_and_searched_in_every_way(client: Client) -> None:
    job = client.index("folder", SAMPLES / "music", wait=True)
    assert (job.state, job.done) == ("succeeded", len(MUSIC))
    values = client.image("folder", str(PICTURE), include_values=True).values
    for query in ({"image": PICTURE}, {"id": str(PICTURE)}, {"vector": values}):
        for exact in (False, True):
            best = client.search("folder", **query, exact=exact).matches[0]
            assert best.id == str(PICTURE)
            assert best.score == pytest.approx(1, abs=1e-5)
    words = client.search("folder", text="a guitar", top_k=100).matches
    assert [match.id for match in words] == [
        match.id for match in client.search("folder", text="a guitar", top_k=100).matches
    ]
    assert {match.id for match in words} == {str(path) for path in MUSIC}
    results = client.search_many("folder", [{"text": "a"}, {"id": "unknown"}])
    assert [type(result) for result in results] == [SearchResult, NotFound]
    assert client.recall("folder", k=5).recall == 1


def test_uploads_manifests_and_urls_are_indexed(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    upload = client.upload("upload", [PICTURE, tmp_path / "bad.jpg"], wait=True)
    assert (upload.state, upload.done, upload.failed) == ("partial", 1, 1)
    assert [failure.id for failure in client.iter_failures(upload)] == ["bad.jpg"]
    (tmp_path / "list.csv").write_text(f"uri,label\n{PICTURE},harp\n")
    assert client.index("manifest", tmp_path / "list.csv", wait=True).done == 1
    assert client.count("manifest", filter={"label": "harp"}) == 1
    with site({"/a.png": body(PICTURE.read_bytes())}) as web:
        source = {"type": "urls", "urls": [f"{web.url}/a.png"]}
        assert client.index("urls", source, wait=True).done == 1
    assert client.thumbnail("urls", f"{web.url}/a.png")


def test_images_are_embedded_exported_and_deleted(
    service: MemoryService, client: Client, tmp_path: Path
) -> None:
    client.upload("whole", MUSIC[:3], wait=True)
    answer = httpx.post(f"{service.url}/v1/embed", json={"texts": ["a", "b"]}).json()
    assert answer["dim"] == len(answer["embeddings"][0]) == 64
    file = client.export_collection("whole", tmp_path / "whole.parquet")
    assert client.import_collection("copy", file).count == 3
    client.delete_image("copy", MUSIC[0].name)
    assert client.delete("copy", all=True) == 2
    client.delete_collection("whole")
    with pytest.raises(NotFound):
        client.collection("whole")


def test_the_async_client_and_the_state_of_the_service(service: MemoryService) -> None:
    async def names() -> set[str]:
        async with service.async_client() as client:
            await client.create_collection("async")
            return {collection.name for collection in await client.collections()}

    assert "async" in asyncio.run(names())
    assert httpx.get(f"{service.url}/readyz").json()["ready"]
    assert httpx.get(f"{service.url}/v1/fleet").json()["findings"] == []
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'clipfleet_workers{lane="query",model="hash:64"} 1.0' in metrics


def test_settings_are_given_by_name_and_the_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPFLEET_KEYS_FILE", "/no/such/file")
    own = MemoryService(dim=8, source_roots=[tmp_path], limits={"top_k": 3})
    with own as service, service.client() as client:
        assert client.create_collection("c").dim == 8
        with pytest.raises(ProblemError, match="top_k"):
            client.search("c", text="x", top_k=4)
        with pytest.raises(ProblemError, match="outside the folders"):
            client.index("c", SAMPLES)
    with pytest.raises(ValidationError, match="source_root"):
        MemoryService(source_root=[tmp_path]).__enter__()


def test_keys_may_do_what_their_records_say() -> None:
    keys = {"all": {}, "some": {"scopes": ["read"], "collections": ["a*"]}}
    with MemoryService(api_keys=keys) as service:
        with service.client(api_key="all") as client:
            for name in ("aa", "bb"):
                client.create_collection(name)
        with service.client(api_key="some") as client:
            assert [collection.name for collection in client.collections()] == ["aa"]
            with pytest.raises(ProblemError, match="admin"):
                client.delete_collection("aa")
        with service.client(api_key="other") as client, pytest.raises(ProblemError) as caught:
            client.collections()
        assert caught.value.status == 401


def test_services_beside_each_other_know_nothing_of_each_other() -> None:
    with MemoryService() as first, MemoryService() as second:
        with first.client() as client:
            client.upload("c", [PICTURE], wait=True)
        with second.client() as client:
            assert client.collections() == []


ALONE = """
import sys, threading, time
import httpx
from clipfleet import Client, Unreachable
from clipfleet.common.errors import StartupError
from clipfleet.testing import MemoryService

def require_nothing(service):
    until = time.monotonic() + 30
    while threading.enumerate() != [threading.main_thread()]:
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.01)
    assert not service.folder.exists()

with MemoryService() as service:
    with service.client() as client:
        client.index("c", sys.argv[1], wait=True)
        client.search("c", text="x", exact=True)
        client.search("c", image=sys.argv[2])
    httpx.get(f"{service.url}/metrics")
require_nothing(service)
with Client(service.url, retries=0) as client:
    try:
        client.collections()
    except Unreachable:
        pass
    else:
        raise AssertionError("somebody listens")

service = MemoryService(api_keys={"secret": {}}, open=True)
try:
    service.__enter__()
except StartupError:
    require_nothing(service)
else:
    raise AssertionError("it began")
assert "torch" not in sys.modules
"""


def test_it_needs_no_torch_and_leaves_nothing_behind() -> None:
    """The code runs in a process of its own, without the threads of other tests."""
    command = [sys.executable, "-c", ALONE, str(SAMPLES / "music"), str(PICTURE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_documentation_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parents[1])
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        exec(block, names)
