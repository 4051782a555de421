"""Pages of other origins: what CLIPFLEET_CORS_ORIGINS allows them, and what stays refused."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from clipfleet.common.errors import StartupError
from clipfleet.common.settings import Settings
from support.gateway_harness import World

APP, EVIL = "http://localhost:3000", "https://evil.example"
HERE = "http://127.0.0.1:8000"


def preflight(world: World, origin: str, method: str = "POST") -> httpx.Response:
    requested = "authorization,content-type,idempotency-key,x-stainless-os"  # of openai
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": requested,
    }
    return world.ask("OPTIONS /v1/collections/acme/search", headers=headers)


def allowed(answer: httpx.Response) -> str:
    return str(answer.headers.get("access-control-allow-origin", ""))


def test_by_default_no_page_of_another_origin_reads_an_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    answer = world.ask("GET /v1/jobs", "admin", headers={"Origin": APP})
    assert answer.status_code == 200
    assert allowed(answer) == allowed(preflight(world, APP)) == ""


def test_a_page_of_a_listed_origin_may_use_the_service(tmp_path: Path) -> None:
    world = World(tmp_path, cors_origins=(APP,))
    for method in ("GET", "POST", "PUT", "DELETE"):
        before = preflight(world, APP, method)
        assert (before.status_code, allowed(before)) == (200, APP)
    answer = world.ask("GET /v1/jobs", "admin", headers={"Origin": APP})
    assert (answer.status_code, allowed(answer)) == (200, APP)
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"Retry-After", "Server-Timing", "Location"} <= {*exposed}


def test_a_page_of_a_listed_origin_reads_why_it_was_refused(tmp_path: Path) -> None:
    world = World(tmp_path, cors_origins=(APP,), allowed_hosts=("127.0.0.1",))
    for call, key, at, status in (
        ("GET /v1/jobs", "", HERE, 401),
        ("GET /v1/jobs/unknown", "admin", HERE, 404),
        ("GET /v1/jobs", "admin", "http://elsewhere.example", 421),
    ):
        answer = world.ask(call, key, at=at, headers={"Origin": APP})
        assert (answer.status_code, allowed(answer)) == (status, APP)


def test_a_page_of_any_other_origin_is_refused_as_before(tmp_path: Path) -> None:
    world = World(tmp_path, cors_origins=(APP,), allowed_hosts=("127.0.0.1",))
    for origin in (EVIL, "null", f"{APP}0", "http://localhost"):
        assert preflight(world, origin).status_code == 400
        assert allowed(world.ask("GET /v1/jobs", "admin", headers={"Origin": origin})) == ""
        sent = world.ask("DELETE /v1/collections/acme", "admin", headers={"Origin": origin})
        assert (sent.status_code, allowed(sent)) == (403, "")
    sent = world.ask("DELETE /v1/collections/acme", "admin", headers={"Origin": APP})
    assert (sent.status_code, allowed(sent)) == (204, APP)


def test_without_keys_a_listed_origin_counts_as_this_machine(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="", cors_origins=(APP,))
    for origin, status in ((EVIL, 403), (APP, 204)):
        answer = world.ask("DELETE /v1/collections/acme", headers={"Origin": origin})
        assert answer.status_code == status
    elsewhere = ("192.0.2.7", 1)
    refused = world.ask("GET /v1/jobs", client=elsewhere, headers={"Origin": APP})
    assert refused.status_code == 401


def test_every_origin_may_be_allowed_where_keys_are_needed(tmp_path: Path) -> None:
    world = World(tmp_path, cors_origins=("*",), allowed_hosts=("127.0.0.1",))
    sent = world.ask("DELETE /v1/collections/acme", "admin", headers={"Origin": EVIL})
    assert (sent.status_code, allowed(sent)) == (204, "*")
    assert world.ask("GET /v1/jobs", headers={"Origin": EVIL}).status_code == 401
    for is_open in (False, True):
        with pytest.raises(StartupError, match="needs API keys"):
            World(tmp_path, keys_file="", open=is_open, cors_origins=("*",))


@pytest.mark.parametrize(
    "origin",
    ["localhost:3000", f"{APP}/", f"{APP}/app", "null", "", "https://*.example", "HTTP://A"],
)
def test_what_is_no_origin_is_named_at_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=(origin,))


IMAGE = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FRAME = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}


@pytest.mark.parametrize("call", ["GET /v1/jobs", "HEAD /v1/jobs", "GET /v1/collections"])
@pytest.mark.parametrize("keys", ["", None])
def test_a_page_of_another_site_shows_nothing(tmp_path: Path, call: str, keys: str | None) -> None:
    more = {"allowed_hosts": ("127.0.0.1",)} if keys is None else {"keys_file": keys}
    world = World(tmp_path, **more)
    for site, how, status in (
        ("cross-site", IMAGE, 403),
        ("same-site", IMAGE, 403),
        ("cross-site", FRAME, 403),
        ("cross-site", {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ("cross-site", LINK, 200),
        ("same-origin", IMAGE, 200),
        ("none", LINK, 200),
    ):
        headers = {"Sec-Fetch-Site": site, **how}
        assert world.ask(call, "" if keys == "" else "admin", headers=headers).status_code == status


def test_a_form_of_another_site_is_no_link(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="")
    headers = {"Sec-Fetch-Site": "cross-site", **LINK}
    assert world.ask("POST /v1/collections/acme/delete", headers=headers).status_code == 403


def test_a_listed_origin_is_known_by_its_referer_too(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="", cors_origins=(APP,))
    for page, status, policy in (
        (f"{APP}/", 200, "cross-origin"),
        (f"{APP}/app?x=1", 200, "cross-origin"),
        (f"{EVIL}/{APP}/", 403, "same-origin"),
        (f"{APP}.evil.example/", 403, "same-origin"),
        ("", 403, "same-origin"),
    ):
        headers = {"Sec-Fetch-Site": "cross-site", **IMAGE, "Referer": page}
        answer = world.ask("GET /v1/jobs", headers=headers)
        assert answer.status_code == status
        assert answer.headers["cross-origin-resource-policy"] == policy


def test_an_open_service_is_shown_by_any_page(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="", open=True)
    answer = world.ask("GET /v1/jobs", headers={"Sec-Fetch-Site": "cross-site", **IMAGE})
    assert answer.status_code == 200
    assert "cross-origin-resource-policy" not in answer.headers


def test_the_own_page_is_known_where_a_proxy_has_changed_the_host(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="")
    page = {"Origin": "http://localhost:9000"}
    trusted = {**page, "Sec-Fetch-Site": "same-origin"}
    assert world.ask("DELETE /v1/collections/acme", headers=trusted).status_code == 204
    refused = world.ask("DELETE /v1/collections/acme", headers=page)
    assert refused.status_code == 403
    for word in ("http://localhost:9000", "127.0.0.1:8000", "proxy", "CLIPFLEET_CORS_ORIGINS"):
        assert word in refused.json()["detail"]
