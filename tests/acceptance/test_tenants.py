"""Two tenants of one service: what one of them tries to read of the other.

Blob store, ledger and keys are below a folder that both may index.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet import Client
from clipfleet.errors import NotFound, ProblemError
from support import stack
from support.chaos import stopped
from support.gateways import parsed
from support.services import eventually
from support.stack import HASH_MODEL, Up, finished, up

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples" / "animals"
PICTURES = sorted(SAMPLES.glob("*.png"))[:3]


def create(file: Path, name: str, *options: str) -> str:
    created = stack.cli("keys", "create", name, "--file", str(file), *options)
    assert created.returncode == 0, created.stderr
    return created.stdout.strip()


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder of both tenants."""
    return tmp_path_factory.mktemp("tenants")


@pytest.fixture(scope="module")
def file(top: Path) -> Path:
    return top / "keys.json"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    options = {
        "victim": (),
        "thief": (),
        "passing": (),
        "bound": ("--root", str(file.parent / "own")),
    }
    return {
        name: create(file, name, "--scope", "write", "--collection", f"{name}-*", *more)
        for name, more in options.items()
    }


@pytest.fixture(scope="module")
def shared(top: Path, file: Path, keys: dict[str, str]) -> Iterator[Up]:
    assert keys
    settings = {"CLIPFLEET_KEYS_FILE": str(file), "CLIPFLEET_SOURCE_ROOTS": json.dumps([str(top)])}
    with up(top / "data", HASH_MODEL, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def victim(shared: Up, keys: dict[str, str]) -> Iterator[str]:
    """The id of a job of a tenant with three pictures."""
    with Client(shared.url, api_key=keys["victim"]) as client:
        client.create_collection("victim-cats")
        job = finished(client, client.upload("victim-cats", PICTURES).id)
        assert job.done == 3
        yield job.id


@pytest.fixture
def thief(shared: Up, keys: dict[str, str], victim: str) -> Iterator[Client]:
    assert victim
    with Client(shared.url, api_key=keys["thief"], retries=0) as client:
        client.create_collection("thief-cats")
        yield client


def outcome(client: Client, source: dict[str, Any], collection: str = "thief-cats") -> Any:
    """Return how many images a job read, and all that the service says about it."""
    try:
        job = finished(client, client.index(collection, source).id)
    except ProblemError as refusal:
        return 0, str(refusal)
    failures = [failure.model_dump() for failure in client.iter_failures(job.id)]
    return job.done, f"{job} {failures}"


def test_what_the_service_keeps_is_nobodys_source(
    shared: Up, thief: Client, victim: str, top: Path
) -> None:
    data = shared.folder
    (thumbnail, *_) = sorted((data / "blobs" / "thumbnails").rglob("*.jpg"))
    (upload, *_) = sorted((data / "blobs" / "uploads" / victim).iterdir())
    mine = top / "thief"
    mine.mkdir()
    (mine / "link.jpg").symlink_to(thumbnail)
    (mine / "folder").symlink_to(thumbnail.parent)
    listed = mine / "theirs.jsonl"
    way = os.path.relpath(thumbnail, mine)
    ways = [thumbnail, upload, mine / "link.jpg", f"/proc/self/root{thumbnail}", way]
    ways += [f"file://{thumbnail}", f"{mine}/{way}", f"file://{mine}/{way.replace('..', '%2e%2e')}"]
    listed.write_text("\n".join(json.dumps({"uri": str(way)}) for way in ways))
    for source in (
        {"type": "folder", "path": str(data / "blobs" / "thumbnails")},
        {"type": "folder", "path": str(mine / "folder")},
        {"type": "folder", "path": str(mine)},
        {"type": "folder", "path": str(data)},
        {"type": "manifest", "uri": str(listed)},
    ):
        read, report = outcome(thief, source)
        assert read == 0, source
        assert "belongs to the service" in report, report
    read, report = outcome(thief, {"type": "folder", "path": str(top)})
    assert read == 0, report
    assert thief.collection("thief-cats").count == 0


def test_no_text_of_the_service_comes_back(shared: Up, thief: Client, file: Path) -> None:
    conf = shared.folder / "valkey" / "valkey.conf"
    (password,) = [
        line.split()[1] for line in conf.read_text().splitlines() if line.startswith("requirepass")
    ]
    secrets = [password, json.loads(file.read_text())["keys"][0]["hash"]]
    notes = file.with_name("notes.conf")
    notes.write_text(conf.read_text() + file.read_text())
    for path in (conf, file, notes, Path("/etc/passwd")):
        for form in ("txt", "csv", "jsonl", "parquet"):
            source = {"type": "manifest", "uri": str(path), "format": form}
            read, report = outcome(thief, source)
            assert read == 0
            assert not [secret for secret in secrets if secret in report], (path, form)
        for kind in ("archive", "folder"):
            name = {"archive": "uri", "folder": "path"}[kind]
            read, report = outcome(thief, {"type": kind, name: str(path)})
            assert read == 0
            assert not [secret for secret in secrets if secret in report]


def test_the_other_s_thumbnails_and_jobs_are_not_there(thief: Client, victim: str) -> None:
    for ask in (
        lambda: thief.thumbnail("victim-cats", PICTURES[0].name),
        lambda: thief.job(victim),
        lambda: thief.failures(victim),
        lambda: thief.retry(victim),
        lambda: thief.collection("victim-cats"),
    ):
        with pytest.raises(NotFound):
            ask()


def test_a_key_with_roots_of_its_own_is_told_these_alone(
    shared: Up, keys: dict[str, str], top: Path
) -> None:
    for name in ("own", "other"):
        (top / name).mkdir()
        (top / name / "cat.png").write_bytes(PICTURES[0].read_bytes())
    (top / "own" / "way.png").symlink_to(top / "other" / "cat.png")
    with Client(shared.url, api_key=keys["bound"], retries=0) as client:
        client.create_collection("bound-cats")
        read, report = outcome(client, {"type": "folder", "path": str(top / "own")}, "bound-cats")
        assert read == 1
        assert "the link leads outside the folders that may be indexed" in report
        read, report = outcome(client, {"type": "folder", "path": str(top / "other")}, "bound-cats")
        assert read == 0
        assert f"({top / 'own'}); CLIPFLEET_SOURCE_ROOTS and the `roots`" in report
        read, report = outcome(client, {"type": "bucket", "uri": "s3://any/thing"}, "bound-cats")
        assert read == 0
        assert "(none is configured); CLIPFLEET_SOURCE_BUCKETS and" in report


def test_events_end_with_their_key(shared: Up, keys: dict[str, str], file: Path) -> None:
    headers = {"Authorization": f"Bearer {keys['passing']}"}
    with Client(shared.url, api_key=keys["passing"]) as client, shared.http() as http:
        client.create_collection("passing-cats")
        with stopped(shared.part("worker-ingest-1")):
            job = client.upload("passing-cats", PICTURES).id
            path = f"/v1/jobs/{job}/events"
            with http.stream("GET", path, headers=headers, timeout=60) as answer:
                events = parsed(answer.iter_lines())
                assert next(events)["event"] == "job"
                revoked = stack.cli("keys", "revoke", "passing", "--file", str(file))
                assert revoked.returncode == 0, revoked.stderr
                assert list(events)[-1]["event"] == "unauthorized"

        def refused() -> bool:
            return http.get(path, headers=headers).status_code == 401

        eventually(refused, 30, "the refusal")
