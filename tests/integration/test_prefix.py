"""A service below a prefix of a real nginx."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from clipfleet import Client
from clipfleet.common.settings import Settings
from clipfleet.testing import MemoryService
from support import stack
from support.browser import chromium
from support.chaos import many_photos
from support.nginx import nginx

# With a slash at its end, nginx takes the prefix off.
WAYS = {"taken off": "http://{address}/", "left on": "http://{address}"}


@pytest.fixture(scope="module", params=list(WAYS.values()), ids=list(WAYS))
def prefixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a service without keys at /apps/clip/ of an nginx."""
    folder = tmp_path_factory.mktemp("prefix")
    with MemoryService(root_path="/apps/clip") as service:
        target = request.param.format(address=service.url.removeprefix("http://"))
        locations = (
            f"location /apps/clip/ {{ proxy_pass {target}; proxy_set_header Host $http_host; }}\n"
            "location = /apps/clip { return 308 /apps/clip/; }"
        )
        with nginx(folder, locations) as url:
            with Client(f"{url}/apps/clip") as client:
                photos = many_photos(folder / "photos", 3)
                assert stack.finished(client, client.index("photos", photos).id).done == 3
            yield f"{url}/apps/clip/"


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False)


def test_all_files_of_the_page_are_found(prefixed: str) -> None:
    page = get(prefixed)
    files = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert len(files) > 10
    assert {get(prefixed + name).status_code for name in files} == {200}
    assert not re.findall(r'(?:href|src)="/', page.text)


def test_the_page_works(prefixed: str) -> None:
    with chromium() as browser:
        page = browser.new_page()
        failed: list[str] = []
        page.on("response", lambda got: failed.append(got.url) if got.status >= 400 else None)
        page.goto(prefixed)
        tiles = page.locator("#grid a")
        expect(tiles).to_have_count(3)
        expect(tiles.first.locator("img")).to_be_visible()
        page.get_by_role("link", name="Jobs").click()
        expect(page.locator(".job").first).to_be_visible()
        page.reload()
        expect(page.locator(".job").first).to_be_visible()
        assert page.url.startswith(prefixed)
        assert failed == []


def test_a_location_has_the_prefix(prefixed: str) -> None:
    body: dict[str, Any] = {"source": {"type": "urls", "urls": ["http://127.0.0.1:1/a.jpg"]}}
    created = httpx.post(f"{prefixed}v1/collections/photos/jobs", json=body, trust_env=False)
    path = f"/apps/clip/v1/jobs/{created.json()['id']}"
    assert created.headers["location"] == path
    assert get(str(httpx.URL(prefixed).join(path))).json()["id"] == created.json()["id"]


def test_the_interface_documentation_names_the_prefix(prefixed: str) -> None:
    assert get(f"{prefixed}openapi.json").json()["servers"] == [{"url": "/apps/clip"}]
    assert get(f"{prefixed}docs").status_code == 200


@pytest.mark.parametrize("path", ["clip", "/clip/", "http://a/clip", "/a b", "/a?b"])
def test_what_is_no_prefix_is_named_at_the_start(path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        Settings(root_path=path)
