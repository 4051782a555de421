"""The map of the web page, on a service in memory, in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from clipfleet.testing import MemoryService
from support.browser import Tab, tab
from support.in_process import PixelEmbedder

COUNT = 60
COLOURS = ((200, 30, 30), (30, 160, 40), (30, 40, 200))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryService]:
    """60 pictures of three colours, and a collection that has nothing."""
    folder = tmp_path_factory.mktemp("colours")
    with MemoryService(embedder=PixelEmbedder()) as service, service.client() as client:
        client.create_collection("colours", fields={"shade": "int"})
        names = [f"{n:02d}.png" for n in range(COUNT)]
        client.upload(
            "colours",
            [picture(folder, n) for n in range(COUNT)],
            ids=names,
            labels=[["red", "green", "blue"][n % 3] for n in range(COUNT)],
            metadata=[{"shade": n % 2} for n in range(COUNT)],
            wait=True,
        )
        client.create_collection("empty")
        yield service


def picture(folder: Path, n: int) -> Path:
    draw = np.random.default_rng(n)
    pixels = np.clip(COLOURS[n % 3] + draw.integers(-30, 30, (8, 8, 3)), 0, 255)
    path = folder / f"{n:02d}.png"
    Image.fromarray(pixels.astype(np.uint8)).resize((64, 64)).save(path)
    return path


@pytest.fixture
def page(browser: Browser, shelf: MemoryService) -> Iterator[Tab]:
    with tab(browser, shelf.url) as page:
        yield page


def opened(page: Tab) -> Page:
    shown = page.open("/?view=map&in=colours")
    make = shown.get_by_role("button", name="Make the map")
    about = shown.locator("#map-about")
    expect(make.or_(about.filter(has_text="60 images by"))).to_be_visible()
    if make.is_visible():
        make.click()
    expect(about).to_contain_text("60 images by")
    return shown


def box(page: Page) -> dict[str, float]:
    place: Any = page.locator("#map-canvas").bounding_box()
    assert place
    return {name: float(value) for name, value in place.items()}


def lasso_all(page: Page) -> None:
    page.get_by_role("button", name="Lasso").click()
    place = box(page)
    x, y = place["x"] + 2, place["y"] + 2
    width, height = place["width"] - 4, place["height"] - 4
    page.mouse.move(x, y)
    page.mouse.down()
    for across, down in ((1, 0), (1, 1), (0, 1)):
        page.mouse.move(x + across * width, y + down * height)
    page.mouse.up()


def test_a_map_is_made_and_shows_all_images(page: Tab) -> None:
    shown = opened(page)
    expect(shown.locator("#map-legend li")).to_have_count(3)
    expect(shown.locator("#map-legend")).to_contain_text("red")
    expect(shown.locator("#map-canvas")).to_have_attribute(
        "aria-label", "Map of 60 images by label; blue: 20, green: 20, red: 20. Arrows move it, "
        "plus and minus enlarge it, 0 shows all. The legend selects images by their value.",
    )  # fmt: skip
    shown.locator("#map-field").select_option("shade")
    expect(shown.locator("#map-legend li")).to_have_count(2)
    assert page.complaints == []


def test_the_legend_selects_and_the_list_opens_an_image(page: Tab) -> None:
    shown = opened(page)
    shown.locator("#map-legend button", has_text="red").click()
    expect(shown.locator("#map-selected-title")).to_have_text("20 images selected")
    expect(shown.locator("#selection")).to_contain_text("20 selected")
    shown.locator("#map-selected-list a").first.click()
    expect(shown.locator("#detail-title")).to_be_visible()
    shown.keyboard.press("Escape")
    expect(shown.locator("#detail")).to_be_hidden()
    shown.get_by_role("button", name="Search within these").click()
    expect(shown.locator("#grid a.tile")).to_have_count(20)


def test_a_lasso_selects_what_it_goes_around(page: Tab) -> None:
    shown = opened(page)
    lasso_all(shown)
    expect(shown.locator("#map-selected-title")).to_have_text("60 images selected")
    shown.get_by_label("Label", exact=True).fill("all of them")
    shown.locator("#map-label-button").click()
    expect(shown.locator("#map-said")).to_contain_text("60 images now labelled all of them")
    shown.get_by_role("button", name="Make it again").click()
    expect(shown.locator("#map-legend li")).to_have_count(1)


def test_pictures_come_when_it_is_enlarged_and_only_some(page: Tab) -> None:
    shown = opened(page)
    requests: list[str] = []
    shown.on("request", lambda request: requests.append(request.url))
    place = box(shown)
    shown.locator("#map-canvas").focus()
    for _ in range(3):
        shown.keyboard.press("+")
    shown.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    shown.mouse.wheel(0, 300)
    shown.keyboard.press("0")
    expect(shown.locator("#map-canvas")).to_be_focused()
    shown.wait_for_load_state("networkidle")
    pictures = [url for url in requests if "/thumbnail" in url]
    assert len(pictures) == len(set(pictures)) <= COUNT
    assert page.complaints == []


def test_an_empty_collection_has_nothing_to_map(page: Tab) -> None:
    shown = page.open("/?view=map&in=empty")
    expect(shown.locator("#map-more")).to_contain_text("Nothing to map yet")
    assert page.complaints == []
