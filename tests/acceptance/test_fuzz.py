"""Valid and invalid requests to every operation of the OpenAPI document.

Each answer is one that the document lists, and shows nothing of the internals.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import checks

from clipfleet.api.app import create_app
from clipfleet.common.settings import Settings
from support.in_process import InProcess
from support.stack import Up

KEPT, LOST, ALIAS = "fuzzed", "fuzzed-away", "fuzzed-alias"
DIM = 32
OPENS = "POST /v1/collections/{name}/uploads"
WAYS = ("text", "id", "vector", "terms", "image", "texts", "images")
DESTROYS = ("PUT", "DELETE", "POST /v1/collections/{name}/delete")
CONFIG = {
    "generation": {"deterministic": True, "database": "none"},
    "phases": {"coverage": {"unexpected-methods": []}},
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx", 503]},
        "negative_data_rejection": {"expected-statuses": ["4xx", 503]},
    },
}
DOCUMENT = schemathesis.openapi.from_dict(
    create_app(Settings()).openapi(), config=schemathesis.Config.from_dict(CONFIG)
)
INSIDE = re.compile(
    r"Traceback|\.py\b|site-packages|namespace ==|\bpk in|metadata\[|array_contains|grpc|pymilvus"
    r"|rediss?://|(?<!problem:)clipfleet:|127\.0\.0\.1|localhost",
    re.IGNORECASE,
)


def says_nothing_of_the_inside(_: Any, response: schemathesis.Response, case: Any) -> None:
    if response.headers.get("content-type") != ["application/vnd.apache.parquet"]:
        leak = INSIDE.search(response.text)
        assert not leak or leak[0] in repr(case.as_transport_kwargs()), response.text


def is_a_problem_that_can_be_asked_about(
    _: Any, response: schemathesis.Response, case: Any
) -> None:
    if response.status_code >= 400:
        problem = response.json()
        if case.operation.path.startswith(("/v1/embeddings", "/v1/models")):
            assert problem["error"]["message"]
            assert response.headers["x-request-id"]
            return
        assert problem["status"] == response.status_code
        assert response.headers["x-request-id"] == [problem["request_id"]]


def is_away_only_for_an_unknown_model(_: Any, response: schemathesis.Response, case: Any) -> None:
    if response.status_code == 503:
        assert "no live worker serves" in response.text, response.text
        assert case.body["model"]


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    says_nothing_of_the_inside,
    is_a_problem_that_can_be_asked_about,
    is_away_only_for_an_unknown_model,
]


@pytest.fixture(scope="module")
def web(memory_service: InProcess) -> Iterator[httpx.Client]:
    with memory_service.http() as http:
        fill(http)
        yield http


@pytest.fixture(scope="module")
def real(service: Up) -> Iterator[httpx.Client]:
    with service.http() as http:
        fill(http)
        yield http


def fill(web: httpx.Client) -> None:
    web.put(f"/v1/collections/{KEPT}", json={"fields": {"year": "int"}})
    vectors = [
        {
            "id": f"image {n}",
            "values": [n + 1.0, *[1.0] * (DIM - 1)],
            "label": "church",
            "metadata": {"year": n, "free": [n]},
        }
        for n in range(5)
    ]
    upserted = web.post(f"/v1/collections/{KEPT}/vectors", json={"vectors": vectors})
    assert upserted.is_success, upserted.text


def an_ended_job(web: httpx.Client) -> str:
    """Return the id of an ended job; a test may delete it, and the next call creates another."""
    jobs = web.get("/v1/jobs", params={"collection": LOST, "state": "cancelled"}).json()["jobs"]
    return str(jobs[0]["id"]) if jobs else cancelled(web, start(web).json()["id"])


def an_open_upload(web: httpx.Client) -> str:
    """Return the id of an open upload: the same as long as no test deletes it or starts its job."""
    answer = web.post(f"/v1/collections/{KEPT}/uploads", json={"key": "of the fuzzed requests"})
    return str(answer.raise_for_status().json()["id"])


def a_source(web: httpx.Client) -> str:
    """Return the name of a source; a test may delete it, and the next call registers it again."""
    source = {"type": "urls", "urls": ["https://example.invalid/a.jpg"]}
    path = f"/v1/collections/{KEPT}/sources/fuzzed"
    web.put(path, json={"source": source, "paused": True}).raise_for_status()
    return "fuzzed"


def start(web: httpx.Client) -> httpx.Response:
    web.put(f"/v1/collections/{LOST}").raise_for_status()
    source = {"type": "urls", "urls": ["https://example.invalid/a.jpg"]}
    return web.post(f"/v1/collections/{LOST}/jobs", json={"source": source}).raise_for_status()


def cancelled(web: httpx.Client, job: str) -> str:
    web.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    return job


def one_in(n: int, drawn: Any) -> bool:
    """Return true for about one value in n, and always the same for the same value."""
    return zlib.crc32(repr(drawn).encode()) % n == 0


def aim(case: Any, web: httpx.Client) -> None:
    """Point most requests at existing resources: else nearly every answer would be a 404."""
    path, label = case.path_parameters, case.operation.label
    is_slow = label == "DELETE /v1/collections/{name}"
    if one_in(8, path) or (is_slow and not one_in(4, path)):
        return
    if "job_id" in path:
        case.path_parameters = {"job_id": an_ended_job(web)}
    elif "upload_id" in path:
        case.path_parameters = {"name": KEPT, "upload_id": an_open_upload(web)}
    elif "alias" in path:
        if case.method != "PUT":
            web.put(f"/v1/aliases/{ALIAS}", json={"collection": KEPT}).raise_for_status()
        case.path_parameters = {"alias": ALIAS}
    elif "source" in path:
        case.path_parameters = {"name": KEPT, "source": a_source(web)}
    elif label.startswith(DESTROYS):
        if case.method != "PUT":
            web.put(f"/v1/collections/{LOST}").raise_for_status()
        case.path_parameters = {"name": LOST}
    elif "name" in path:
        case.path_parameters = {"name": KEPT}


def make_sense(case: Any) -> None:
    """Mend every other body in ways that the document cannot express.

    Examples are a single kind of query, and as many numbers as the model's dimension. Else most
    answers would be about these alone.
    """
    body = case.body
    if not isinstance(body, dict) or one_in(2, body):
        return
    body = dict(body)
    queries = body.get("queries")
    if isinstance(queries, list):
        body["queries"] = [
            sensible(query) if isinstance(query, dict) else query for query in queries
        ]
    if isinstance(body.get("vectors"), list):
        body["vectors"] = [
            sensible(vector) if isinstance(vector, dict) else vector for vector in body["vectors"]
        ]
    case.body = sensible(body)


def sensible(drawn: dict[str, Any]) -> dict[str, Any]:
    sensible_body = {name: value for name, value in drawn.items() if name not in WAYS}
    way = next((name for name in WAYS if drawn.get(name) is not None), None)
    if way:
        sensible_body[way] = drawn[way]
    for name in ("vector", "values"):
        if isinstance(sensible_body.get(name), list) and sensible_body[name]:
            sensible_body[name] = (sensible_body[name] * DIM)[:DIM]
    if isinstance(sensible_body.get("filter"), dict):
        plain = {
            key: operand
            for key, operand in sensible_body["filter"].items()
            if isinstance(operand, str | float)
        }
        sensible_body["filter"] = {
            key.lstrip("$") or "a": operand for key, operand in plain.items()
        }
    return sensible_body


def is_wrong_as_sent(case: Any) -> bool:
    """Return whether an invalid request is still invalid on its way.

    In a form, null is the text "null", and an unknown parameter has no effect. A batch answers 200,
    with a problem in place of each bad query.
    """
    is_form = case.media_type == "multipart/form-data"
    is_batch = case.operation.path.endswith("/search/batch")
    known = {parameter.name for parameter in case.operation.query}
    return not is_form and not is_batch and known.issuperset(case.query or {})


def examples(count: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@DOCUMENT.parametrize()
@examples(5)
def test_every_answer_is_one_that_the_document_knows(case: Any, web: httpx.Client) -> None:
    require_known(case, web)


@DOCUMENT.parametrize()
@examples(25)
def test_every_answer_of_the_real_stack_is_one(case: Any, real: httpx.Client) -> None:
    """Runs in the full tier only; see support/tiers.py."""
    require_known(case, real)


def require_known(case: Any, web: httpx.Client) -> None:
    aim(case, web)
    make_sense(case)
    strict = [checks.negative_data_rejection] if is_wrong_as_sent(case) else []
    answer = case.call_and_validate(
        base_url=str(web.base_url), timeout=60, checks=[*CHECKS, *strict]
    )
    if (
        answer.status_code == 202 and "id" in answer.json()
    ):  # a job on whatever: nobody waits for it
        cancelled(web, answer.json()["id"])
    if answer.status_code == 201 and case.operation.label == OPENS:  # there is room for a few
        web.delete(answer.headers["location"][0]).raise_for_status()
    if case.method == "PUT" and answer.status_code == 201:
        kinds = {"alias": "aliases", "source": f"collections/{KEPT}/sources"}
        kind = next((kinds[name] for name in kinds if name in case.path_parameters), "collections")
        web.delete(f"/v1/{kind}/{answer.json()['name']}").raise_for_status()
