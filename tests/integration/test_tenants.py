"""What a key's jobs can reach, for each source in the table of docs/keys.md.

The whole service runs with Redis and Milvus in memory and a server that speaks S3.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipfleet.common.auth.keys import SCOPES
from clipfleet.testing import MemoryService
from clipfleet.workers.sources import KINDS
from support.archives import packed
from support.s3 import S3, s3_server
from support.services import eventually
from support.webserver import Site, body, site

DOCS = Path(__file__).parents[2] / "docs" / "keys.md"
EVERYWHERE = ("its roots", "its buckets", "the web")
FORMATS = ("txt", "csv", "jsonl", "parquet")
ARCHIVES = ("a.tar", "a.tar.gz", "a.zip")


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def table() -> dict[str, dict[str, str]]:
    """Read the table of docs/keys.md: first word of a source, scope, text of the cell."""
    lines = DOCS.read_text().partition("| source | `read`")[2].splitlines()[2:]
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return {
        row[0].strip().partition(":")[0]: dict(zip(SCOPES, map(str.strip, row[1:]), strict=True))
        for row in rows
    }


def listed(form: str, uris: list[str]) -> bytes:
    """Return a manifest of some URIs."""
    if form == "parquet":
        out = io.BytesIO()
        pq.write_table(pa.table({"uri": uris}), out)
        return out.getvalue()
    head, lines = {"csv": "uri\n"}.get(form, ""), uris
    if form == "jsonl":
        lines = [json.dumps({"uri": uri}) for uri in uris]
    return (head + "\n".join(lines) + "\n").encode()


@dataclass
class World:
    """A service whose blob store is inside the places that its keys may read.

    Attributes:
        service: The running service.
        places: Address of each place in the table, and of some that no key may read; all of them
            hold the same files.
        secret: A text file inside the keys' root.
    """

    service: MemoryService
    places: Mapping[str, str]
    secret: Path

    def http(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.service.url}/v1",
            timeout=60,
            trust_env=False,
            headers={"Authorization": f"Bearer {key}"},
        )

    def start(self, source: Mapping[str, Any], key: str) -> httpx.Response:
        with self.http(key) as http:
            return http.post("/collections/mine/jobs", json={"source": source})

    def ended(self, started: httpx.Response, key: str = "admin") -> dict[str, Any]:
        assert started.status_code == 202, started.text

        def job() -> Any:
            with self.http(key) as http:
                seen = http.get(f"/jobs/{started.json()['id']}").json()
            return seen if seen["finished_at"] else None

        ended: dict[str, Any] = eventually(job, 60, "the job's end")
        return ended

    def failures(self, job: str) -> list[dict[str, Any]]:
        with self.http("admin") as http:
            failures: list[dict[str, Any]] = http.get(f"/jobs/{job}/failures").json()["failures"]
        return failures


FILES: dict[str, bytes] = {
    "1.png": picture(1),
    **{name: packed(name, {"2.png": picture(2)}) for name in ARCHIVES},
}


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    pages = {f"/{name}": body(data) for name, data in FILES.items()}
    for form in FORMATS:
        pages[f"/m.{form}"] = body(listed(form, ["1.png"]))
    with site(pages) as there:
        yield there


@pytest.fixture(scope="module", params=["folder", "bucket"])
def world(
    request: pytest.FixtureRequest, s3: S3, web: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    top = tmp_path_factory.mktemp("tenants")
    files = {**FILES, **{f"m.{form}": listed(form, ["1.png"]) for form in FORMATS}}
    names, blobs_too = ["mine", "theirs", "mine-not"], ["mine/blobs/uploads/x"]
    for name in names + blobs_too * (request.param == "folder"):
        fill(top / name, files)
    for prefix in names + blobs_too * (request.param == "bucket"):
        s3.fill(request.param, {f"{prefix}/{name}": data for name, data in files.items()})
    bucket = f"s3://{request.param}"
    blobs = {"folder": str(top / "mine" / "blobs"), "bucket": f"{bucket}/mine/blobs"}
    own = {"folder": str(top / "mine/blobs/uploads/x"), "bucket": f"{bucket}/mine/blobs/uploads/x"}
    places = {
        "its roots": str(top / "mine"),
        "another root": str(top / "theirs"),
        "no root": str(top / "mine-not"),
        "its buckets": f"{bucket}/mine",
        "another bucket": f"{bucket}/theirs",
        "no bucket": f"{bucket}/mine-not",
        "the web": web.url,
        "an inner address": f"http://127.0.0.2:{web.port}",
        "own data": own[request.param],
    }
    secret = top / "mine" / "secret.conf"
    secret.write_text("requirepass hunter2\n/hunter2\nhttps://127.0.0.2/hunter2\n")
    reach = {"roots": [str(top / "mine")], "buckets": [f"{bucket}/mine"], "collections": ["mine"]}
    keys: dict[str, dict[str, Any]] = {
        "wide": {"name": "wide"},
        "none": {"name": "none", "roots": [], "buckets": []},
    }
    keys |= {scope: {"name": scope, "scopes": [scope], **reach} for scope in SCOPES}
    with MemoryService(
        dim=8,
        api_keys=keys,
        source_roots=[top / "mine", top / "theirs"],
        source_buckets=[f"{bucket}/mine", f"{bucket}/theirs"],
        blobs=blobs[request.param],
        fetch={"allowed_networks": ["127.0.0.1/32"], "connect_s": 2, "tries": 1},
    ) as service:
        world = World(service, places, secret)
        with world.http("admin") as http:
            assert http.put("/collections/mine", json={}).status_code == 201
        yield world


def sources(kind: str, place: str) -> list[dict[str, Any]]:
    """Return every source of a kind that can name a place."""
    match kind:
        case "folder":
            return [{"type": "folder", "path": place}]
        case "bucket":
            return [{"type": "bucket", "uri": place}]
        case "urls":
            return [{"type": "urls", "urls": [f"{place}/1.png"]}]
        case "archive":
            return [{"type": "archive", "uri": f"{place}/{name}"} for name in ARCHIVES]
        case "manifest":
            return [{"type": "manifest", "uri": f"{place}/m.{form}"} for form in FORMATS]
    raise AssertionError(kind)


def test_the_table_has_every_kind_of_source() -> None:
    others = {"image that a manifest names", "upload", "retry"}
    assert table().keys() == KINDS.keys() | others
    assert all(row["read"] == "no" and row["write"] == row["admin"] for row in table().values())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_source_reaches_what_the_table_says(world: World, kind: str, scope: str) -> None:
    reached = table()[kind][scope].split(", ")
    started = {
        (where, number): world.start(source, scope)
        for where, place in world.places.items()
        for number, source in enumerate(sources(kind, place))
    }
    for (where, _), answer in started.items():
        if scope == "read":
            assert answer.status_code == 403
            assert answer.json()["scope"] == "write"
        elif where in reached:
            job = world.ended(answer)
            assert (job["state"], job["failed"]) == ("succeeded", 0), (where, job)
        else:
            assert refused(world, where, answer), (where, answer.text)
    with world.http(scope) as http:
        ids = http.get("/collections/mine/ids").json()["ids"]
    assert not [image_id for image_id in ids if "/blobs/" in image_id]


def refused(world: World, where: str, answer: httpx.Response) -> bool:
    """Return whether nothing was read and, where it helps, the error names the key's own places."""
    if answer.status_code == 422:  # that kind of source has no such places
        return True
    if answer.status_code == 202:
        job = world.ended(answer)
        assert where in ("an inner address", "own data"), job
        return bool(job["state"] == "failed" and job["done"] + job["skipped"] == 0)
    detail = str(answer.json()["detail"])
    assert answer.status_code == 403
    if "is not an absolute path" in detail:
        return True
    if where == "own data":
        return "belongs to the service" in detail
    mine = world.places["its buckets" if "bucket" in where else "its roots"]
    setting = "BUCKETS" if "bucket" in where else "ROOTS"
    hint = f"({mine}); CLIPFLEET_SOURCE_{setting} and the "
    return hint in detail


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scope", ["write", "admin"])
def test_each_row_of_a_manifest_reaches_what_the_table_says(
    world: World, scope: str, form: str
) -> None:
    reached = table()["image that a manifest names"][scope].split(", ")
    rows = [f"{place}/1.png" for place in world.places.values()]
    rows += [f"file://{world.places['another root']}/1.png", "../theirs/1.png"]
    rows += [f"{world.places['its roots']}/%2e%2e/theirs/1.png", "ftp://hunter2/1.png"]
    path = Path(world.places["its roots"]) / f"all-{scope}.{form}"
    path.write_bytes(listed(form, rows))
    job = world.ended(world.start({"type": "manifest", "uri": str(path)}, scope))
    good = [number for number, where in enumerate(world.places) if where in reached]
    assert job["done"] + job["skipped"] == len(good) == 3
    failed = world.failures(job["id"])
    assert len(failed) == job["failed"] == len(rows) - len(good)
    assert "hunter2" not in str(failed)
    reasons = str([failure["reason"] for failure in failed])
    assert "theirs" not in reasons, "only what this key may index is named"


@pytest.mark.parametrize("scope", SCOPES)
def test_an_upload_reaches_its_own_files(world: World, scope: str) -> None:
    documented = table()["upload"][scope]
    with world.http(scope) as http:
        files = {"files": (f"{world.places['another root']}/1.png", picture(9))}
        answer = http.post("/collections/mine/images", files=files)
    if scope == "read":
        assert (documented, answer.status_code) == ("no", 403)
        return
    assert documented == "its own files"
    job = world.ended(answer)
    assert job["done"] + job["skipped"] == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_a_retry_reaches_what_both_keys_do(world: World, scope: str) -> None:
    """A retry reads what the key of the first job and its own key can both read."""
    documented = table()["retry"][scope]
    name = Path(world.places["its roots"]) / f"late-{scope}.csv"
    late = Path(world.places["another root"]) / f"late-{scope}.png"
    name.write_text(f"uri\n{late}\n{name.with_suffix('.png')}\n")
    first = {
        key: world.ended(world.start({"type": "manifest", "uri": str(name)}, key))
        for key in ("wide", "write")
    }
    assert [job["failed"] for job in first.values()] == [2, 2]
    for path in (late, name.with_suffix(".png")):
        path.write_bytes(picture(SCOPES.index(scope) + 20))
    for key, job in first.items():
        with world.http("wide" if key == "write" and scope != "read" else scope) as http:
            answer = http.post(f"/jobs/{job['id']}/retry")
        if scope == "read":
            assert (documented, answer.status_code) == ("no", 403)
            continue
        assert documented == "what the first key and this one both reach"
        again = world.ended(answer)
        assert (again["done"] + again["skipped"], again["failed"]) == (1, 1)
        (failure,) = world.failures(again["id"])
        assert "outside" in failure["reason"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_text_file_tells_nothing_as_a_manifest(world: World, form: str) -> None:
    source = {"type": "manifest", "uri": str(world.secret), "format": form}
    job = world.ended(world.start(source, "write"))
    assert job["state"] == "failed"
    failed = world.failures(job["id"])
    assert "hunter2" not in f"{job} {failed}"
    assert {failure["id"] for failure in failed} == {f"line {n + 1}" for n in range(len(failed))}
    if form == "txt":
        assert len(failed) == 3
        assert {failure["uri"] for failure in failed} == {str(world.secret)}


def test_a_key_without_roots_and_buckets_reads_neither(world: World) -> None:
    for source in ({"type": "folder", "path": "/"}, {"type": "bucket", "uri": "s3://bucket/mine"}):
        refusal = world.start(source, "none")
        assert refusal.status_code == 403
        assert "(none is configured)" in refusal.json()["detail"]


def test_what_a_job_may_read_outlives_no_restart_of_the_planner(world: World) -> None:
    """Planner and workers take the grant from the stored job alone."""
    started = world.start({"type": "folder", "path": world.places["its roots"]}, "write")
    new = world.service.parts.ledger.job(started.json()["id"]).new
    assert new.grant is not None
    assert new.grant.roots == (world.places["its roots"],)
    assert new.grant.buckets == (world.places["its buckets"],)
    world.ended(started)
