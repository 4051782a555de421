"""Pages of other origins in a real Chromium: what they may ask, read and show, and what not."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from support.browser import chromium
from support.in_process import InProcess

MUSIC = sorted((Path(str(files("clipfleet"))) / "samples" / "music").glob("*.png"))
KEYS: dict[str, Any] = {"cf_front": {"scopes": ["write"]}}
FETCH = """async ([url, options]) => {
    try {
        const answer = await fetch(url, options);
        const names = [...answer.headers.keys()];
        return {status: answer.status, headers: names, body: await answer.json()};
    } catch (error) {
        return {refused: error.name};
    }
}"""
SHOW = """url => new Promise(resolve => {
    const image = new Image();
    image.onload = () => resolve(image.naturalWidth);
    image.onerror = () => resolve(0);
    image.src = url;
})"""


class QuietSite(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server of another site's page."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<!doctype html><title>A front end</title>")
    handler = partial(QuietSite, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def filled(service: InProcess, key: str | None = None) -> str:
    """Fill `images`; returns the id of one of them."""
    with service.client(key) as client:
        assert client.upload("images", MUSIC[:3], wait=True).done == 3
    return MUSIC[0].name


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def ask(page: Page, url: str, **options: Any) -> Any:
    return page.evaluate(FETCH, [url, options])


def searching(service: InProcess) -> tuple[str, dict[str, Any]]:
    headers = {"Authorization": "Bearer cf_front", "Content-Type": "application/json"}
    options = {"method": "POST", "headers": headers, "body": '{"text": "a guitar"}'}
    return f"{service.url}/v1/collections/images/search", options


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_listed_origin_uses_the_service_with_a_key(page: Page, site: int, host: str) -> None:
    origin = f"http://{host}:{site}"
    with InProcess(api_keys=KEYS, cors_origins=(origin,)) as service:
        filled(service, "cf_front")
        page.goto(origin)
        url, options = searching(service)
        answer = ask(page, url, **options)
        assert (answer["status"], len(answer["body"]["matches"])) == (200, 3)
        assert {"server-timing", "x-request-id"} <= {*answer["headers"]}
        key = {"Authorization": "Bearer cf_front"}
        refused = ask(
            page, f"{service.url}/v1/collections/new", method="PUT", headers=key, body="{}"
        )
        assert refused["status"] == 422  # a page reads what is wrong: there is no content type
        job = {**options, "body": '{"source": {"type": "urls", "urls": ["http://127.0.0.1:1/"]}}'}
        job["headers"] = {**options["headers"], "Idempotency-Key": "once"}
        started = ask(page, f"{service.url}/v1/collections/images/jobs", **job)
        assert started["status"] == 202
        assert "location" in started["headers"]
        assert ask(page, f"{service.url}/v1/jobs")["status"] == 401


def test_any_other_origin_reads_nothing(page: Page, site: int) -> None:
    with InProcess(api_keys=KEYS, cors_origins=("http://localhost:1",)) as service:
        filled(service, "cf_front")
        page.goto(f"http://localhost:{site}")
        url, options = searching(service)
        assert ask(page, url, **options) == {"refused": "TypeError"}
        assert ask(page, f"{service.url}/healthz") == {"refused": "TypeError"}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_without_keys_other_sites_show_no_thumbnails(page: Page, site: int, host: str) -> None:
    with InProcess() as service:
        name = filled(service)
        page.goto(f"http://{host}:{site}")
        address = f"{service.url}/v1/collections/images/thumbnail?id={name}"
        assert page.evaluate(SHOW, address) == 0
        for path in ("images?id={name}", "thumbnail?id={name}", "ids", "export"):
            url = f"{service.url}/v1/collections/images/{path.format(name=name)}"
            assert ask(page, url, mode="no-cors") == {"refused": "TypeError"}
        page.goto(service.url)  # a link is no request of the page with the link
        assert page.evaluate(SHOW, f"/v1/collections/images/thumbnail?id={name}") > 0
        page.goto(f"http://{host}:{site}")
        page.set_content(f'<a href="{service.url}/v1/collections/images">it</a>')
        page.get_by_role("link").click()
        page.wait_for_url("**/v1/collections/images")
        assert '"images"' in page.content()


def test_without_keys_a_listed_origin_shows_thumbnails(page: Page, site: int) -> None:
    origin = f"http://localhost:{site}"
    with InProcess(cors_origins=(origin,)) as service:
        address = f"{service.url}/v1/collections/images/thumbnail?id={filled(service)}"
        page.goto(origin)
        assert page.evaluate(SHOW, address) > 0
        page.goto(f"http://127.0.0.1:{site}")
        assert page.evaluate(SHOW, f"{address}&again") == 0
