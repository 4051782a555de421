"""A real gateway beside records that a newer release wrote: each is refused alone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from clipfleet.common.catalogue import KEY, RedisCatalogue
from support import releases, services
from support.gateways import Service, gateway


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("versions")
    with services.valkey(folder / "valkey") as url, gateway(folder, url) as made:
        releases.keep(made.redis)
        newer(made, f"clipfleet:job:{releases.JOB.id}", "new")
        newer(made, KEY, "photos")
        yield made


def newer(service: Service, key: str, field: str) -> None:
    raw: Any = service.redis.hget(key, field)
    service.redis.hset(key, field, json.dumps({**json.loads(raw), "v": 2}))


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
    service: Service, method: str, path: str
) -> None:
    with service.http() as http:
        body = {"text": "a dog"} if path.endswith("search") else None
        answer = http.request(method, path, json=body)
    problem = answer.json()
    assert answer.status_code == 503, problem
    assert problem["type"] == "urn:problem:clipfleet:other-version"
    assert "version 2" in problem["detail"]
    assert "reads version 1: upgrade this part" in problem["detail"]
    assert int(answer.headers["retry-after"]) > 0


def test_lists_answer_without_it_and_nothing_of_it_is_lost(service: Service) -> None:
    with service.http() as http:
        assert [job["id"] for job in http.get("/v1/jobs").json()["jobs"]] == ["b2"]
        assert http.get("/v1/jobs/b2").json()["state"] == "queued"
        assert http.get("/v1/collections").json() == {"collections": []}
    raw: Any = service.redis.hget(KEY, "photos")
    service.redis.hset(KEY, "photos", raw.replace(b'"v": 2', b'"v": 1'))
    assert RedisCatalogue(service.redis).find("photos") == releases.COLLECTION
