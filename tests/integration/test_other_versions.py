"""A real gateway with records of a newer release: each record is refused, the others are served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from clipfleet.common.ledger.catalogue import KEY, RedisCatalogue
from support import releases
from support.gateways import in_process


@pytest.fixture
def http(client: "redis.Redis", valkey_url: str, tmp_path: Path) -> Iterator[TestClient]:
    releases.keep(client)
    newer(client, f"clipfleet:job:{releases.JOB.id}", "new")
    newer(client, KEY, "photos")
    with in_process(tmp_path, valkey_url) as http:
        yield http


def newer(client: "redis.Redis", key: str, field: str) -> None:
    raw: Any = client.hget(key, field)
    client.hset(key, field, json.dumps({**json.loads(raw), "v": 9}))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/v1/jobs/{releases.JOB.id}"),
        ("DELETE", f"/v1/jobs/{releases.JOB.id}"),
        ("POST", f"/v1/jobs/{releases.JOB.id}/cancel"),
        ("POST", f"/v1/jobs/{releases.JOB.id}/retry"),
        ("GET", f"/v1/jobs/{releases.JOB.id}/events"),
        ("GET", "/v1/collections/photos"),
        ("PUT", "/v1/collections/photos"),
        ("DELETE", "/v1/collections/photos"),
        ("POST", "/v1/collections/photos/search"),
    ],
)
def test_what_is_too_new_answers_503_with_both_numbers(
    http: TestClient, method: str, path: str
) -> None:
    body = {"text": "a dog"} if path.endswith("search") else None
    answer = http.request(method, path, json=body)
    problem = answer.json()
    assert answer.status_code == 503, problem
    assert problem["type"] == "urn:problem:clipfleet:other-version"
    assert "version 9" in problem["detail"]
    assert "upgrade this part" in problem["detail"]
    assert int(answer.headers["retry-after"]) > 0


def test_lists_answer_without_it_and_nothing_of_it_is_lost(
    http: TestClient, client: "redis.Redis"
) -> None:
    assert [job["id"] for job in http.get("/v1/jobs").json()["jobs"]] == ["b2"]
    assert http.get("/v1/jobs/b2").json()["state"] == "queued"
    assert http.get("/v1/collections").json() == {"collections": []}
    raw: Any = client.hget(KEY, "photos")
    client.hset(KEY, "photos", raw.replace(b'"v": 9', b'"v": 1'))
    assert RedisCatalogue(client).find("photos") == releases.COLLECTION
