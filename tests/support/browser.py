"""A real Chromium, driven by Playwright: the system's own, none is downloaded."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support import services

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENT_MS = 60_000
# What Chromium itself writes about an answer of 4xx or 5xx, which some tests ask for.
REFUSED = "Failed to load resource"

expect.set_options(timeout=PATIENT_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        services.missing("there is no Chromium; Debian has it as `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Tab:
    """The page in a tab of its own, and what it complained about in the console."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)

    def open(self, address: str = "/") -> Page:
        self.page.goto(self.url + address)
        return self.page

    def names(self, count: int) -> list[str]:
        """Of the first tiles, once that many are there."""
        tiles = self.page.locator("#grid a .name")
        expect(tiles.nth(count - 1)).to_be_attached()
        return tiles.all_text_contents()[:count]

    def settled(self) -> None:
        """The images of this query are shown, not those of the one before."""
        expect(self.page.locator("#grid:not([aria-busy])")).to_be_attached()

    def drop(self, files: Sequence[Path], on: str) -> None:
        """As the browser does it when files are dragged onto it from the desktop."""
        target = self.page.locator(on)
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
        place = {"x": 200.0, "y": 400.0}
        for kind in ("dragEnter", "dragOver"):
            session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
        box = target.bounding_box()
        assert box is not None, f"{on} is not shown while files are dragged"
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
        session.detach()


@contextmanager
def tab(browser: Browser, url: str, **more: Any) -> Iterator[Tab]:
    """Fails the test when the page complained: an exception, an error, a refused script."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **more})
    made = Tab(page, url)
    page.on("pageerror", lambda error: made.said.append(str(error)))
    page.on("console", lambda message: _note(made, message))
    yield made
    page.close()
    assert made.said == []


def _note(tab: Tab, message: Any) -> None:
    if message.type in ("error", "warning") and REFUSED not in message.text:
        tab.said.append(message.text)


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
