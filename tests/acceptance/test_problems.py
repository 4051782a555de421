"""What the gateway says to requests that cannot be carried out."""

import http.client
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clipfleet import Client
from support.in_process import InProcess
from support.stack import Up, cli, document


@pytest.fixture(scope="module")
def web(memory_service: InProcess) -> Iterator[httpx.Client]:
    with memory_service.client() as client, memory_service.http() as web:
        create_collections(client)
        yield web


@pytest.fixture(scope="module")
def real(service: Up) -> Iterator[httpx.Client]:
    with service.client() as client, service.http() as web:
        create_collections(client)
        yield web


def create_collections(client: Client) -> None:
    client.create_collection("photos", fields={"year": "int"})
    client.create_collection("distances", metric="euclidean")


SEARCH = "/v1/collections/photos/search"
CASES: list[tuple[int, str, str, Any]] = [
    (404, "POST", "/v1/collections/unknown/search", {"text": "x"}),
    (404, "GET", "/v1/collections/unknown", None),
    (404, "DELETE", "/v1/collections/unknown", None),
    (404, "GET", "/v1/jobs/unknown", None),
    (404, "POST", "/v1/jobs/unknown/cancel", None),
    (404, "GET", "/v1/jobs/unknown/failures", None),
    (404, "GET", "/nowhere", None),
    (405, "PATCH", "/v1/collections/photos", None),
    (422, "PUT", "/v1/collections/bad%20name", None),
    (422, "PUT", "/v1/collections/new", {"metric": "manhattan"}),
    (422, "PUT", "/v1/collections/new", {"dim": 7}),
    (422, "PUT", "/v1/collections/new", {"dim": 0}),
    (422, "PUT", "/v1/collections/new", {"fields": {"id": "string"}}),
    (422, "PUT", "/v1/collections/new", {"fields": {"a b": "string"}}),
    (422, "PUT", "/v1/collections/new", {"surprise": 1}),
    (503, "PUT", "/v1/collections/new", {"model": "somebody/elses"}),
    (409, "PUT", "/v1/collections/photos", {"metric": "dot"}),
    (409, "PUT", "/v1/collections/photos", {"fields": {"year": "string"}}),
    (422, "POST", SEARCH, {}),
    (422, "POST", SEARCH, {"text": "a", "id": "b"}),
    (422, "POST", SEARCH, {"text": ""}),
    (422, "POST", SEARCH, {"text": "x" * 1_000_000}),
    (422, "POST", SEARCH, {"text": "x", "top_k": 0}),
    (422, "POST", SEARCH, {"text": "x", "top_k": 10**9}),
    (422, "POST", SEARCH, {"text": "x", "offset": -1}),
    (422, "POST", SEARCH, {"text": "x", "offset": 10**9}),
    (422, "POST", SEARCH, {"text": "x", "namespace": ""}),
    (422, "POST", SEARCH, {"text": "x", "namespace": "a\0b"}),
    (422, "POST", SEARCH, {"text": "x", "filter": {"$where": "1"}}),
    (422, "POST", SEARCH, {"text": "x", "filter": {"year": {"$gt": "2000"}}}),
    (422, "POST", SEARCH, {"text": "x", "filter": {"a": {"$in": [[]]}}}),
    (422, "POST", SEARCH, {"vector": [1.0, 2.0]}),
    (422, "POST", SEARCH, {"vector": [0.0] * 32}),
    (422, "POST", SEARCH, {"vector": [1e300] * 32}),
    (422, "POST", SEARCH, {"image": {"base64": "!!!"}}),
    (422, "POST", SEARCH, {"image": {"base64": "AAAA"}}),
    (404, "POST", SEARCH, {"id": "/no/such/image.jpg"}),
    (422, "POST", "/v1/collections/distances/search", {"text": "x", "min_score": 0.5}),
    (422, "POST", "/v1/collections/photos/jobs", {}),
    (422, "POST", "/v1/collections/photos/jobs", {"source": {"type": "ftp", "path": "/"}}),
    (422, "POST", "/v1/collections/photos/jobs", {"source": {"path": "/"}}),
    (422, "POST", "/v1/collections/photos/vectors", {"vectors": []}),
    (422, "POST", "/v1/collections/photos/vectors", {"vectors": [{"id": "a", "values": [1]}]}),
    (404, "GET", "/v1/collections/photos/images?id=nope", None),
    (404, "DELETE", "/v1/collections/photos/images?id=nope", None),
    (422, "GET", "/v1/collections/photos/images", None),
    (422, "GET", "/v1/jobs?limit=0", None),
]


# Their answers come from Redis, from Milvus or from a worker.
OF_THE_STORES = [case for case in CASES if case[0] in (404, 409, 503)]


@pytest.mark.parametrize(("status", "method", "path", "body"), CASES)
def test_it_is_said_as_problem_json(
    web: httpx.Client, status: int, method: str, path: str, body: Any
) -> None:
    require_problem(web.request(method, path, json=body), status)


@pytest.mark.parametrize(("status", "method", "path", "body"), OF_THE_STORES)
def test_the_real_stores_lead_to_the_same_problems(
    real: httpx.Client, status: int, method: str, path: str, body: Any
) -> None:
    require_problem(real.request(method, path, json=body), status)


def require_problem(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 5_000
    assert (status == 503) == ("retry-after" in answer.headers)


@pytest.mark.parametrize("body", ['{"text": NaN}', '{"vector": [NaN]}', "{", "[]", '"x"', "\xff"])
def test_broken_json_is_a_422(web: httpx.Client, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = web.post(SEARCH, content=body.encode("latin-1"), headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_upload_that_cannot_be_is_refused(web: httpx.Client) -> None:
    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, "PNG")
    address = "/v1/collections/photos/images"
    twice = [("files", ("a.png", image.getvalue())), ("files", ("a.png", b"x"))]
    assert web.post(address, files=twice).status_code == 422
    assert web.post(address, data={"namespace": "x"}).status_code == 422
    search = web.post(f"{SEARCH}/image", files={"file": ("a.jpg", b"no picture")})
    assert search.status_code == 422
    assert "no image" in search.json()["detail"]


def test_a_request_over_the_limit_is_a_413_before_it_is_read(web: httpx.Client) -> None:
    address = web.base_url
    with closing(http.client.HTTPConnection(address.host, address.port or 80, timeout=30)) as line:
        line.putrequest("POST", SEARCH)
        line.putheader("content-type", "application/json")
        line.putheader("content-length", str(10**12))
        line.endheaders()
        answer = line.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["title"] == "Over a limit"


def test_a_strangers_host_name_is_refused_on_loopback(real: httpx.Client) -> None:
    assert real.get("/v1/jobs", headers={"host": "evil.example"}).status_code == 421


def test_another_sites_page_cannot_upload_on_loopback(real: httpx.Client) -> None:
    files, foreign = {"files": ("a.png", b"x")}, {"origin": "https://evil.example"}
    address = "/v1/collections/photos/images"
    assert real.post(address, files=files, headers=foreign).status_code == 403
    own = {"origin": str(real.base_url).rstrip("/")}
    assert real.post(address, files=files, headers=own).status_code == 202


def test_a_filter_cannot_smuggle_types_into_the_queue(real: httpx.Client) -> None:
    for kind in ("datetime", "uuid", "decimal"):
        body = {"text": "x", "filter": {"__type__": kind, "__value__": "x"}}
        assert real.post(SEARCH, json=body).status_code == 200


def test_a_job_id_cannot_reach_other_keys(real: httpx.Client) -> None:
    files = {"files": ("a.png", b"x")}
    job = real.post("/v1/collections/photos/images", files=files).json()["id"]
    assert real.get(f"/v1/jobs/{job}").status_code == 200
    for tail in (":open", ":failures", ":chunk:1"):
        assert real.get(f"/v1/jobs/{job}{tail}").status_code == 404


def test_an_idempotency_key_makes_one_job(real: httpx.Client, tmp_path: Path) -> None:
    address, key = "/v1/collections/photos/jobs", {"Idempotency-Key": tmp_path.name}
    body = {"source": {"type": "folder", "path": str(tmp_path)}}
    first, second = (real.post(address, json=body, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.headers["location"] == second.headers["location"]
    other = {**body, "namespace": "other"}
    assert real.post(address, json=other, headers=key).status_code == 409


def test_the_openapi_document_describes_every_route_with_problems(web: httpx.Client) -> None:
    described = web.get("/openapi.json").json()
    assert "/v1/collections/{name}/search" in described["paths"]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route.get("description") or route.get("summary"), (method, path)


def test_the_command_line_says_one_line_and_ends_non_zero(memory_service: InProcess) -> None:
    for args, code in (
        (("search", "x", "--collection", "unknown"), 1),
        (("jobs", "show", "unknown"), 1),
        (("collections", "show", "unknown"), 1),
        (("collections", "create", "x", "--metric", "manhattan"), 2),
        (("search", "x", "--filter", "{"), 2),
        (("search",), 2),
        (("search", "--image", "/no/such/file.jpg"), 2),
        (("search", "x", "--min-score", "nan"), 1),
        (("collections", "create", "x", "--dim", "0"), 1),
        (("index", "/tmp", "--namespace", ""), 1),
    ):
        done = memory_service.cli(*args)
        assert done.returncode == code, args
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    missing = memory_service.cli("search", "x", "--collection", "unknown", "--json")
    assert document(missing)["status"] == 404


def test_nobody_at_the_address_is_said_so() -> None:
    done = cli("jobs", "list", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "clipfleet up" in done.stderr
