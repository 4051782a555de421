"""The page's files: how they are served, and that none is forgotten."""

import re

import pytest
from starlette.testclient import TestClient

from clipfleet.api.app import create_app
from clipfleet.api.assets import FOLDER, REFERENCE_FILES

SCRIPTS = sorted(path.name for path in FOLDER.glob("*.js"))


@pytest.fixture(scope="module")
def http() -> TestClient:
    return TestClient(create_app(), raise_server_exceptions=False)


@pytest.mark.parametrize("address", ["/", *(f"/page/{path.name}" for path in FOLDER.iterdir())])
def test_each_is_kept_by_its_tag_and_guarded(http: TestClient, address: str) -> None:
    answer = http.get(address)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    again = http.get(address, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_only_scripts_and_styles_of_ours_are_run(http: TestClient) -> None:
    policy = http.get("/").headers["content-security-policy"]
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    assert parts["default-src"] == "'none'"
    assert parts["frame-ancestors"] == "'none'"
    assert {parts[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert parts["trusted-types"] == "'none'"
    assert "unsafe" not in policy


def test_the_interface_documentation_takes_nothing_from_other_hosts(http: TestClient) -> None:
    answer = http.get("/docs")
    names = re.findall(r'(?:href|src)="docs/([^"]+)"', answer.text)
    assert sorted(names) == sorted(REFERENCE_FILES)
    assert "//" not in answer.text
    for address in ("/docs", *(f"/docs/{name}" for name in names)):
        served = http.get(address)
        assert served.status_code == 200
        policy = served.headers["content-security-policy"]
        parts = dict(part.split(" ", 1) for part in policy.split("; "))
        assert parts["default-src"] == "'none'"
        assert {parts["script-src"], parts["connect-src"]} == {"'self'"}
    assert http.get("/docs/oauth2-redirect").status_code == 404
    paths = http.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path.startswith(("/page", "/docs", "/redoc"))]


def test_the_page_of_earlier_releases_leads_to_the_interface_documentation(
    http: TestClient,
) -> None:
    assert str(http.get("/redoc").url).endswith("/docs")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"])
def test_nothing_else_is_served(http: TestClient, name: str) -> None:
    assert http.get(f"/page/{name}").status_code == 404


def test_every_script_is_fetched_ahead_and_used() -> None:
    markup = (FOLDER / "index.html").read_text()
    ahead = re.findall(r'modulepreload" href="page/([\w.]+)"', markup)
    assert sorted([*ahead, "main.js"]) == SCRIPTS
    used = {
        name
        for script in SCRIPTS
        for name in re.findall(r'"\./([\w.]+)"', (FOLDER / script).read_text())
    }
    assert used == set(ahead)


def test_markup_holds_no_script_or_style_of_its_own() -> None:
    markup = (FOLDER / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=", markup) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", markup) == []
    for script in SCRIPTS:
        assert "innerHTML" not in (FOLDER / script).read_text()
