"""Access rules of every route, on a gateway whose parts are in memory."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts

from clipfleet.api.app import create_app
from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.ops import health
from clipfleet.common.auth.keys import SCOPES
from clipfleet.common.auth.rate_limit import MemoryRateLimiter, RateLimit
from clipfleet.common.errors import StartupError
from clipfleet.common.redis.client import RedisUnavailable
from clipfleet.common.settings import Limits
from support.gateway_harness import World

ELSEWHERE = ("192.0.2.7", 1)
DOCS = {"/openapi.json"}
FREE = {
    "GET /healthz", "GET /readyz", "GET /metrics", "GET /", "GET /page/{name}", "GET /docs",
    "GET /docs/{name}", "GET /redoc",
}  # fmt: skip
OF_OPENAI = {"POST /v1/embeddings", "GET /v1/models", "GET /v1/models/{model:path}"}
OF_ALL = {
    "GET /v1/fleet", "GET /v1/key", "GET /v1/collections", "GET /v1/jobs", "POST /v1/embed",
    *OF_OPENAI,
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def routes() -> list[Any]:
    return [route.original_route for route in iter_route_contexts(create_app().routes)]


def calls() -> dict[str, AuthorizedRoute]:
    """All routes, written as `GET /v1/jobs/{job_id}`, except those of the interface
    documentation."""
    return {
        f"{method} {route.path}": route
        for route in routes()
        if isinstance(route, AuthorizedRoute)
        for method in route.methods or ()
    }


GUARDED = sorted(calls().keys() - FREE)
OF_A_COLLECTION = [call for call in GUARDED if "{name}" in call]
OF_A_JOB = [call for call in GUARDED if "{job_id}" in call]
OF_ALIASES = [call for call in GUARDED if "/v1/aliases" in call]  # tests/unit/test_aliases.py


def at(call: str, name: str = "acme", job: str = "job-acme") -> str:
    return call.replace("{name}", name).replace("{job_id}", job)


def test_every_route_says_what_it_needs() -> None:
    plain = [route for route in routes() if not isinstance(route, AuthorizedRoute)]
    assert {route.path for route in plain} == DOCS
    assert {call for call, route in calls().items() if route.needs == "nothing"} == FREE


def test_every_route_names_its_collection_or_job_where_it_is_looked_for() -> None:
    assert set(GUARDED) == {*OF_A_COLLECTION, *OF_A_JOB, *OF_ALL, *OF_ALIASES}


def test_a_route_that_says_nothing_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful() -> None: ...

    router = APIRouter(route_class=AuthorizedRoute)
    with pytest.raises(TypeError, match="/new: the route does not declare what it needs"):
        router.add_api_route("/new", forgetful)
    unguarded: Any = APIRouter()
    unguarded.add_api_route("/new", needs("read")(forgetful))
    assert isinstance(unguarded.routes[0], APIRoute)
    monkeypatch.setattr(health, "router", unguarded)
    with pytest.raises(TypeError, match="/new is not an AuthorizedRoute"):
        create_app()


@pytest.mark.parametrize("call", GUARDED)
def test_no_route_answers_without_a_key(world: World, call: str) -> None:
    for headers in ({}, {"Authorization": "Basic cf_admin"}, {"Authorization": "Bearer cf_no"}):
        refused = world.ask(at(call), headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        if call in OF_OPENAI:
            assert refused.json()["error"]["code"] == "invalid_api_key"
        else:
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["type"] == "urn:problem:clipfleet:unauthorized"
        assert "cf_no" not in refused.text


@pytest.mark.parametrize("call", GUARDED)
def test_a_scope_that_is_too_small_is_told_the_one_it_needs(world: World, call: str) -> None:
    need = calls()[call].needs
    for scope in SCOPES:
        answer = world.ask(at(call), scope)
        enough = SCOPES.index(scope) >= [*SCOPES].index(need)  # type: ignore[arg-type]
        refused = answer.status_code == 403 and answer.json().get("scope") == need
        assert refused != enough, (scope, answer.text)


@pytest.mark.parametrize("call", sorted(set(OF_A_COLLECTION) - {"PUT /v1/collections/{name}"}))
def test_anothers_collection_is_answered_as_one_that_is_not_there(world: World, call: str) -> None:
    taken = world.ask(at(call, name="other"), "acme-admin")
    missing = world.ask(at(call, name="other").replace("other", "third"), "acme-admin")
    unknown = world.ask(at("GET /v1/collections/{name}", name="third"), "admin")
    assert {answer.status_code for answer in (taken, missing, unknown)} == {404}
    assert _same(taken, "other") == _same(missing, "third")
    assert _same(unknown, "third") | {"instance": ""} == _same(taken, "other") | {"instance": ""}
    assert world.parts.catalogue.find("other")


@pytest.mark.parametrize("call", OF_A_JOB)
def test_anothers_job_is_answered_as_one_that_is_not_there(world: World, call: str) -> None:
    before = world.parts.ledger.job("job-other")
    taken = world.ask(at(call, job="job-other"), "acme-admin")
    missing = world.ask(at(call, job="job-third"), "acme-admin")
    unknown = world.ask(at(call, job="job-third"), "admin")
    assert {answer.status_code for answer in (taken, missing, unknown)} == {404}
    assert _same(taken, "other") == _same(missing, "third") == _same(unknown, "third")
    assert world.parts.ledger.job("job-other") == before


def _same(answer: httpx.Response, name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.text.replace(name, "NAME"))
    return {key: value for key, value in body.items() if key != "request_id"}


def test_lists_show_what_the_key_sees(world: World) -> None:
    for key, seen in (("acme-read", ["acme"]), ("read", ["acme", "other"])):
        collections = world.ask("GET /v1/collections", key).json()["collections"]
        assert sorted(collection["name"] for collection in collections) == seen
        jobs = world.ask("GET /v1/jobs", key).json()["jobs"]
        assert sorted(job["collection"] for job in jobs) == seen
    assert world.ask("GET /v1/jobs?collection=other", "acme-read").json() == {"jobs": []}
    assert world.ask("GET /v1/jobs?limit=1&offset=1", "acme-read").json() == {"jobs": []}


def test_a_collection_is_made_only_where_the_key_may(world: World) -> None:
    for name in ("other", "third"):
        refused = world.ask(f"PUT /v1/collections/{name}", "acme-write")
        assert refused.status_code == 403
        assert f"may not use a collection called '{name}'" in refused.json()["detail"]
    body = {"model": "m", "metric": "dot"}
    assert world.ask("PUT /v1/collections/acme-2", "acme-write", json=body).status_code == 201
    assert world.ask("PUT /v1/collections/acme", "acme-write", json=body).status_code == 200


def test_a_key_of_a_collection_does_in_it_what_its_scope_says(world: World) -> None:
    assert world.ask("GET /v1/jobs/job-acme", "acme-read").json()["collection"] == "acme"
    assert world.ask("POST /v1/jobs/job-acme/cancel", "acme-write").status_code == 200
    assert world.ask("DELETE /v1/collections/acme", "acme-write").status_code == 403
    assert world.ask("DELETE /v1/collections/acme", "acme-admin").status_code == 204


def test_an_expired_key_is_told_so_and_only_its_holder_is(world: World) -> None:
    refused = world.ask("GET /v1/jobs", "old")
    assert refused.status_code == 401
    assert refused.json()["type"] == "urn:problem:clipfleet:key-expired"
    assert "'old' expired at 2020-01-31T00:00:00Z" in refused.json()["detail"]
    assert datetime.now(UTC).year > 2020
    assert "expired" not in world.ask("GET /v1/jobs", "oldest").text


def test_a_limit_is_told_with_every_answer_and_kept(world: World) -> None:
    answers = [world.ask("GET /v1/jobs", "slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["ratelimit"] for answer in answers] == [
        '"key";r=1;t=30',
        '"key";r=0;t=60',
        '"key";r=0;t=60',
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"key";q=2;w=60'}
    assert answers[2].headers["retry-after"] == "30"
    assert answers[2].json()["type"] == "urn:problem:clipfleet:rate-limited"
    assert "retry-after" not in answers[1].headers
    assert world.ask("GET /v1/jobs", "read").status_code == 200
    assert "ratelimit" not in world.ask("GET /v1/jobs", "read").headers


def test_one_limit_for_all_keys_that_say_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path, limits=Limits(requests_per_minute=1))
    for key in ("read", "write"):
        assert [world.ask("GET /v1/jobs", key).status_code for _ in range(2)] == [200, 429]
    assert [world.ask("GET /v1/jobs", "slow").status_code for _ in range(3)] == [200, 200, 429]


def test_requests_that_are_refused_count_too_and_say_what_is_left(world: World) -> None:
    answers = [world.ask("DELETE /v1/jobs/job-acme", "slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [403, 403, 429]
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == [
        "r=1",
        "r=0",
        "r=0",
    ]


def test_without_redis_each_gateway_counts_for_itself(tmp_path: Path) -> None:
    class Away(MemoryRateLimiter):
        def take(self, who: str, limit: int) -> RateLimit:
            raise RedisUnavailable(f"cannot count {who} to {limit}")

    world = World(tmp_path, {"limiter": Away()})
    answers = [world.ask("GET /v1/jobs", "slow") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


@pytest.mark.parametrize(
    ("key", "query", "status"),
    [
        ("admin", "offset=10000001", 422),
        ("admin", "offset=10000000", 200),
        ("admin", "offset=10000000&state=failed&state=failed", 200),
        ("admin", "offset=10001&state=failed&state=partial", 422),
        ("admin", "offset=10000&state=failed&state=partial", 200),
        ("acme-read", "offset=10001", 422),
        ("acme-read", "offset=10000", 200),
        ("acme-read", "offset=10001&collection=acme&state=failed", 200),
    ],
)
def test_pages_of_merged_lists_of_jobs_end_sooner(
    world: World, key: str, query: str, status: int
) -> None:
    answer = world.ask(f"GET /v1/jobs?{query}", key)
    assert answer.status_code == status
    if "10001" in query and status == 422:
        assert "name one state and one collection" in answer.json()["detail"]


def test_the_interface_document_is_rendered_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.ask("GET /openapi.json")
    monkeypatch.setattr(world.app, "openapi", None)
    again = world.ask("GET /openapi.json")
    assert (first.headers["content-type"], first.content) == ("application/json", again.content)
    assert "/v1/jobs" in again.json()["paths"]


def test_an_open_service_answers_everybody(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="", open=True)
    assert world.ask("GET /v1/jobs", client=ELSEWHERE).status_code == 200
    with pytest.raises(StartupError, match="contradict"):
        World(tmp_path, open=True)


def test_no_key_is_asked_for_where_none_is_needed(world: World) -> None:
    for call in ("GET /healthz", "GET /", "GET /page/main.js", "GET /docs", "GET /openapi.json"):
        assert world.ask(call, client=ELSEWHERE).status_code == 200


def test_the_documentation_asks_for_a_key_where_there_are_keys(world: World) -> None:
    described = world.app.openapi()
    assert described["security"] == [{"key": []}]
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "security" not in create_app().openapi()


@pytest.mark.parametrize(
    ("key", "scopes", "collections"),
    [
        ("read", ["read"], None),
        ("acme-write", ["read", "write"], ["acme*"]),
        ("admin", ["read", "write", "admin"], None),
    ],
)
def test_a_key_is_told_what_it_may_do(
    world: World, key: str, scopes: list[str], collections: list[str] | None
) -> None:
    answer = world.ask("GET /v1/key", key).json()
    assert answer == {
        "name": key,
        "scopes": scopes,
        "collections": collections,
        "expires_at": None,
    }


def test_without_keys_everybody_may_do_everything(tmp_path: Path) -> None:
    answer = World(tmp_path, keys_file="", open=True).ask("GET /v1/key").json()
    assert answer == {
        "name": None,
        "scopes": ["read", "write", "admin"],
        "collections": None,
        "expires_at": None,
    }


def test_no_key_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in ("read", "acme-read", "old", "unknown-key", "slow"):
            world.ask("GET /v1/collections/other", key)
    assert "cf_" not in caplog.text


def test_what_is_wrong_is_said_without_naming_other_tenants(world: World) -> None:
    assert "acme, other" in world.ask("GET /v1/fleet", "admin").text
    answer = world.ask("GET /v1/fleet", "acme-admin")
    assert answer.status_code == 200
    assert "(needed by acme)" in answer.text
    assert "other" not in answer.text
