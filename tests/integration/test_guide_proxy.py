"""The configurations of nginx in the guide, run as they stand in it."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect

from clipfleet import Client, ProblemError
from clipfleet.common.settings import LOOPBACK_NAMES
from support.browser import chromium
from support.chaos import many_photos
from support.in_process import GatedImages, InProcess
from support.nginx import nginx_of_guide

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "behind-a-proxy.md"
NAME = "photos.example.org"
BLOCKS = re.findall(r"^```nginx\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
AT_THE_ROOT, BELOW_A_PATH = BLOCKS


@contextmanager
def proxied(folder: Path, block: str, **options: Any) -> Iterator[tuple[InProcess, str]]:
    """A service behind nginx; yields it and its URL through nginx, without a slash at the end."""
    path = "/clip" if block == BELOW_A_PATH else ""
    settings = {"open": True, "allowed_hosts": (*LOOPBACK_NAMES, NAME), "root_path": path}
    with InProcess(**{**settings, **options}) as service:
        address = service.url.removeprefix("http://")
        with nginx_of_guide(folder / "nginx", block, address) as url:
            yield service, f"{url}{path}"


@pytest.fixture(scope="module", params=BLOCKS, ids=["at the root", "below a path"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL through nginx of a service with three photos."""
    folder = tmp_path_factory.mktemp("guide")
    with proxied(folder, request.param) as (_, there), Client(there) as client:
        photos = sorted(many_photos(folder / "photos", 3).glob("*"))
        assert client.upload("photos", photos, wait=True).done == 3
        yield there


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, headers=headers)


def test_the_web_page_shows_its_thumbnails(url: str) -> None:
    with chromium() as browser:
        page = browser.new_page()
        failed: list[str] = []
        page.on("response", lambda got: failed.append(got.url) if got.status >= 400 else None)
        page.goto(f"{url}/")
        tiles = page.locator("#grid a")
        expect(tiles).to_have_count(3)
        expect(tiles.first.locator("img")).to_be_visible()
        page.get_by_label("Search by words").fill("a dog")
        page.keyboard.press("Enter")
        expect(page.locator("#summary")).to_contain_text("nearest first")
        page.goto(f"{url}/docs")
        expect(page.get_by_text("Search a collection").first).to_be_visible()
        assert failed == []


def test_links_and_redirects_stay_below_the_path(url: str) -> None:
    path = httpx.URL(url).path.rstrip("/")
    body: dict[str, Any] = {"source": {"type": "urls", "urls": ["http://127.0.0.1:1/a.jpg"]}}
    created = httpx.post(f"{url}/v1/collections/photos/jobs", json=body, trust_env=False)
    assert created.headers["location"] == f"{path}/v1/jobs/{created.json()['id']}"
    assert get(str(httpx.URL(url).join(created.headers["location"]))).status_code == 200
    assert get(f"{url}/redoc").is_redirect
    if path:
        assert get(url).headers["location"] == f"{path}/"
        assert get(f"{url}/openapi.json").json()["servers"] == [{"url": path}]


def test_the_name_of_the_proxy_is_answered_and_no_other(url: str) -> None:
    assert get(f"{url}/v1/jobs", Host=NAME).status_code == 200
    assert get(f"{url}/v1/jobs", Host="evil.example").status_code == 421


def test_an_upload_of_more_than_a_megabyte_passes(url: str, tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (900, 900), random.Random(0).randbytes(900 * 900 * 3))
    noise.save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 2_000_000
    with Client(url) as client:
        assert client.upload("photos", tmp_path / "noise.png", wait=True).done == 1
        assert client.search("photos", image=tmp_path / "noise.png").matches[0].score > 0.99
        assert client.thumbnail("photos", "noise.png")
        client.delete_image("photos", "noise.png")


@pytest.mark.parametrize("block", BLOCKS, ids=["at the root", "below a path"])
def test_events_come_while_the_job_runs(tmp_path: Path, block: str) -> None:
    embedder = GatedImages()
    photos = sorted(many_photos(tmp_path / "photos", 3).glob("*"))
    with proxied(tmp_path, block, embedder=embedder) as (_, url), Client(url) as client:
        job = client.upload("photos", photos)
        assert embedder.reached.wait(60)
        with httpx.stream("GET", f"{url}/v1/jobs/{job.id}/events", trust_env=False) as events:
            lines = events.iter_lines()
            first = next(line for line in lines if line.startswith("data: "))
            assert json.loads(first.removeprefix("data: "))["state"] == "running"
            embedder.gate.set()
            last = [line for line in lines if line.startswith("data: ")][-1]
            assert json.loads(last.removeprefix("data: "))["state"] == "succeeded"


def test_a_client_of_the_proxy_never_counts_as_local(tmp_path: Path) -> None:
    with proxied(tmp_path, AT_THE_ROOT, open=False) as (service, url):
        assert get(f"{service.url}/v1/jobs").status_code == 200
        with Client(url) as client, pytest.raises(ProblemError) as caught:
            client.jobs()
        assert caught.value.slug == "no-keys"


def test_without_a_root_path_the_page_works_below_one(tmp_path: Path) -> None:
    with proxied(tmp_path, BELOW_A_PATH, root_path="") as (_, url), Client(url) as client:
        photos = sorted(many_photos(tmp_path / "photos", 2).glob("*"))
        assert client.upload("photos", photos, wait=True).done == 2
        with chromium() as browser:
            page = browser.new_page()
            page.goto(f"{url}/")
            expect(page.locator("#grid a img").first).to_be_visible()
            page.goto(f"{url}/docs")
            expect(page.get_by_text("Search a collection").first).to_be_visible()
