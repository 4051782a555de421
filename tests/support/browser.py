"""Drives the Chromium of the system with Playwright. Downloads none."""

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
TIMEOUT_MS = 60_000
# What Chromium itself writes about an answer of 4xx or 5xx, which some tests ask for.
REFUSED = "Failed to load resource"

expect.set_options(timeout=TIMEOUT_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        services.missing("there is no Chromium; Debian has it as `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Tab:
    """A tab with the page, and the errors and warnings in its console."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, address: str = "/") -> Page:
        self.page.goto(self.url + address)
        return self.page

    def names(self, count: int) -> list[str]:
        """Names of the first tiles, once there are `count`."""
        tiles = self.page.locator("#grid a .name")
        expect(tiles.nth(count - 1)).to_be_attached()
        return tiles.all_text_contents()[:count]

    def settled(self) -> None:
        """Wait until the images of the current query are shown."""
        expect(self.page.locator("#grid:not([aria-busy])")).to_be_attached()

    def drop(self, files: Sequence[Path], on: str) -> None:
        """Drop files on an element as the browser does for files from the desktop."""
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
    """Open a tab. The test fails if the page has an exception, an error or a refused script."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **more})
    opened = Tab(page, url)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("console", lambda message: _note(opened, message))
    yield opened
    page.close()
    assert opened.complaints == []


def _note(tab: Tab, message: Any) -> None:
    if message.type in ("error", "warning") and REFUSED not in message.text:
        tab.complaints.append(message.text)


def violations(page: Page) -> list[str]:
    """Violations that axe-core calls serious or critical."""
    reported = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:160]}"
        for violation in reported
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
