"""Manifests, archives, URLs and buckets through a running service."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from clipfleet import Client
from clipfleet.client.source_detection import AnySource
from clipfleet.results import Job
from support.s3 import S3
from support.stack import Up, document, finished
from support.webserver import body, site, status


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 255 - shade, 128)).save(out, "JPEG")
    return out.getvalue()


PHOTOS = {f"{n}.jpg": jpeg(40 * n) for n in range(6)}


def indexed(client: Client, source: AnySource, name: str) -> Job:
    client.create_collection(name, fields={"year": "int", "caption": "string"})
    job: Job = finished(client, client.index(name, source).id)
    return job


def matching_ids(client: Client, name: str, **where: object) -> set[str]:
    """Return the ids of the images that pass a filter."""
    matches = client.search(name, text="a photo", top_k=100, filter=where or None).matches
    return {match.id for match in matches}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in PHOTOS.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_manifest_with_captions_and_years_can_be_filtered_by_them(
    service: Up, folder: Path
) -> None:
    lines = [
        json.dumps({"id": f"photo-{n}", "uri": f"{n}.jpg", "caption": f"no {n}", "year": 2000 + n})
        for n in range(6)
    ]
    lines[2:2] = ["nonsense", json.dumps({"uri": "missing.jpg"}), json.dumps({"uri": "/../x"})]
    (folder / "photos.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    with service.client() as client:
        job = indexed(client, folder / "photos.jsonl.gz", "manifest")
        assert (job.state, job.total, job.done, job.failed) == ("partial", 9, 6, 3)
        reasons = {failure.id: failure.reason for failure in client.failures(job).failures}
        assert reasons["line 3"].startswith("it is not JSON")
        assert "No such file" in reasons[str(folder / "missing.jpg")]
        assert matching_ids(client, "manifest") == {f"photo-{n}" for n in range(6)}
        assert matching_ids(client, "manifest", year={"$gte": 2004}) == {"photo-4", "photo-5"}
        assert matching_ids(client, "manifest", caption="no 3") == {"photo-3"}
        assert client.image("manifest", "photo-1").uri == str(folder / "1.jpg")
        again = finished(client, client.index("manifest", folder / "photos.jsonl.gz").id)
        assert (again.done, again.skipped) == (0, 6)


def test_every_failure_of_a_job_with_many_is_listed_retried_and_deleted(
    service: Up, tmp_path: Path
) -> None:
    """The job has more failures than Redis keeps."""
    bad = 1_300
    (tmp_path / "bad.jsonl").write_text("nonsense\n" * bad)
    expected = [f"line {n}" for n in range(1, bad + 1)]
    with service.client() as client:
        job = indexed(client, tmp_path / "bad.jsonl", "many-failures")
        assert (job.state, job.total, job.failed) == ("failed", bad, bad)
        listed = [failure.id for failure in client.iter_failures(job)]
        assert sorted(listed) == sorted(expected)
        page = client.failures(job, limit=200, offset=950)
        assert [failure.id for failure in page.failures] == listed[950:1_150]
        again = finished(client, client.retry(job).id)
        assert sorted(failure.id for failure in client.iter_failures(again)) == sorted(expected)
        parts = service.folder / "blobs" / "failures" / job.id
        assert list(parts.iterdir())
        client.delete_job(job)
        assert not parts.exists()


def test_a_csv_and_a_parquet_say_the_same(service: Up, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"uri": f"{n}.jpg", "label": "x", "year": 2000 + n} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    lines = [",".join(str(cell) for cell in row.values()) for row in rows]
    (folder / "p.csv").write_text("uri,label,year\n" + "\n".join(lines))
    with service.client() as client:
        for name in ("p.csv", "p.parquet"):
            job = indexed(client, folder / name, name.replace(".", "-"))
            assert (job.state, job.done) == ("succeeded", 6)
            assert matching_ids(client, name.replace(".", "-"), label="x", year=2003) == {
                str(folder / "3.jpg")
            }


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_with_captions_beside_its_images(service: Up, tmp_path: Path, kind: str) -> None:
    members: dict[str, bytes] = {}
    for name, data in PHOTOS.items():
        members |= {name: data, name.replace("jpg", "txt"): f"caption of {name}".encode()}
    members["broken.jpg"] = b"no image"
    path = tmp_path / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    name = f"archive-{kind.replace('.', '-')}"
    done = service.cli("index", str(path), "--collection", name, "--json")
    assert done.returncode == 3, done.stderr
    assert document(done)["done"] == 6
    with service.client() as client:
        (image_id,) = matching_ids(client, name, caption="caption of 2.jpg")
        assert image_id == f"{path}#2.jpg"
        (failure,) = client.failures(document(done)["id"]).failures
        assert failure.id == f"{path}#broken.jpg"
        assert client.thumbnail(name, image_id)


def test_of_a_damaged_archive_the_first_part_is_in_and_the_job_says_so(
    service: Up, tmp_path: Path
) -> None:
    path = tmp_path / "cut.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in PHOTOS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:4_700])
    with service.client() as client:
        job = indexed(client, path, "damaged")
        assert job.state == "failed"
        assert "is damaged" in (job.error or "")
        assert job.done >= 1
        assert len(matching_ids(client, "damaged")) == job.done


def test_urls_and_a_manifest_from_the_web(carried_stack: Up) -> None:
    pages = {f"/d/{name}": body(data) for name, data in PHOTOS.items()}
    pages |= {"/d/list.txt": body(b"0.jpg\n1.jpg\nnone.jpg\n"), "/d/none.jpg": status(404)}
    with site(pages) as web, carried_stack.client() as client:
        job = indexed(client, f"{web.url}/d/list.txt", "web-manifest")
        assert (job.done, job.failed) == (2, 1)
        (failure,) = client.failures(job).failures
        assert "404" in failure.reason
        urls = [f"{web.url}/d/{n}.jpg" for n in range(6)]
        job = indexed(client, urls, "web-urls")
        assert (job.state, job.done) == ("succeeded", 6)
        assert matching_ids(client, "web-urls") == set(urls)


def test_inner_addresses_are_refused_as_manifest_and_as_image(service: Up, folder: Path) -> None:
    (folder / "inner.txt").write_text("http://127.0.0.1:9/a.jpg\n0.jpg\n")
    with service.client() as client:
        job = indexed(client, folder / "inner.txt", "inner")
        (failure,) = client.failures(job).failures
        assert "not a public one" in failure.reason
        job = indexed(client, "http://127.0.0.1:9/m.csv", "inner")
        assert "not a public one" in (job.error or "")


def test_a_bucket(s3: S3, service: Up) -> None:
    s3.fill("photos", {f"2024/{name}": data for name, data in PHOTOS.items()})
    s3.fill("photos", {"m.csv": b"uri,year\n2024/3.jpg,1999\n"})
    with service.client() as client:
        args = ("s3://photos/2024", "--collection", "bucket", "--label-from-folder", "--json")
        done = service.cli("index", *args)
        assert (done.returncode, document(done)["done"]) == (0, 6), done.stderr
        assert "s3://photos/2024/1.jpg" in matching_ids(client, "bucket", label="2024")
        job = indexed(client, "s3://photos/m.csv", "bucket-manifest")
        assert job.state == "succeeded"
        assert matching_ids(client, "bucket-manifest", year=1999) == {"s3://photos/2024/3.jpg"}


REFUSED = [
    (403, {"type": "manifest", "uri": "relative.csv"}, "not an absolute path"),
    (422, {"type": "manifest", "uri": "/data/m.xlsx"}, "set format"),
    (422, {"type": "manifest", "uri": "/data/m.csv", "format": "xml"}, "format"),
    (422, {"type": "manifest"}, "uri"),
    (422, {"type": "archive", "uri": "ftp://h/a.tar"}, "a scheme that cannot be read"),
    (422, {"type": "archive", "uri": "simplecache::s3://b/a.tar"}, "chains"),
    (422, {"type": "archive", "uri": "http:///a.tar"}, "no host"),
    (422, {"type": "bucket", "uri": "/data"}, "not a bucket"),
    (422, {"type": "bucket", "uri": "s3:///x"}, "no bucket"),
    (422, {"type": "bucket", "uri": "file:///etc"}, "not a bucket"),
    (422, {"type": "bucket", "uri": "memory://b"}, "a scheme that cannot be read"),
    (422, {"type": "urls", "urls": []}, "urls"),
    (422, {"type": "urls", "urls": ["/data/a.jpg"]}, "for a list of paths, use a manifest"),
    (422, {"type": "urls", "urls": ["https://h/a"] * 10_001}, "10000"),
    (422, {"type": "folder", "path": "/x", "uri": "/y"}, "uri"),
    (422, {"type": "ftp", "uri": "x"}, "folder"),
    (422, {"path": "/data"}, "type"),
]


@pytest.mark.parametrize(("status", "source", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_source_that_cannot_be_is_refused_at_once(
    service: Up, status: int, source: dict[str, object], message: str
) -> None:
    with service.http() as http:
        http.put("/v1/collections/refusals")
        answer = http.post("/v1/collections/refusals/jobs", json={"source": source})
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_kind_has_an_example_in_the_interface(service: Up) -> None:
    with service.http() as http:
        answer: httpx.Response = http.get("/openapi.json")
    examples = answer.json()["components"]["schemas"]["JobIn"]["examples"]
    kinds = {example["source"]["type"] for example in examples}
    assert kinds == {"folder", "manifest", "urls", "archive", "bucket", "list"}
