"""How smooth the map of the page is: the time that a frame of 20,000 points takes in Chromium.

    python benchmarks/page_map.py [--points 20000] [--screenshot FILE]

Serves a collection of random clusters from memory, makes its map by principal components, opens the
page, and moves and enlarges the map by the mouse. A frame is what the page's own drawing takes;
`between` is the time from one animation frame of the browser to the next while the map moves.
"""

import argparse
from typing import Any

import numpy as np
from playwright.sync_api import Page

from clipfleet.client import Client
from clipfleet.testing import MemoryService
from support.browser import chromium, tab

DIM, KINDS = 64, 12
MEASURE = """
async () => {
  const { measure } = await import("./page/map.js");
  window.frames_ = measure();
  window.between_ = [];
  let last = 0;
  const tick = (now) => {
    if (last) window.between_.push(now - last);
    last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}
"""


def fill(client: Client, points: int) -> None:
    """Store clusters of random embeddings."""
    numbers = np.random.default_rng(0)
    centres = numbers.normal(size=(KINDS, DIM))
    client.create_collection("clusters", fields={"kind": "string"})
    kinds = numbers.integers(0, KINDS, points)
    rows = centres[kinds] + 0.3 * numbers.normal(size=(points, DIM))
    client.upsert(
        "clusters",
        (
            {"id": f"image-{n}.jpg", "values": row.astype(np.float32), "label": f"kind {kind}"}
            for n, (row, kind) in enumerate(zip(rows, kinds, strict=True))
        ),
    )
    client.wait(client.make_map("clusters", "pca"))


def use(page: Page) -> None:
    """Drag the map, then turn the wheel in and out."""
    box: Any = page.locator("#map-canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(60):
        page.mouse.move(x + 3 * (step % 20), y + 2 * (step % 30))
    page.mouse.up()
    for step in range(40):
        page.mouse.wheel(0, -60 if step < 20 else 60)


def report(name: str, values: list[float]) -> None:
    """Print the median and the 95th percentile of milliseconds."""
    median, late = np.percentile(values, [50, 95])
    print(f"{name}: {len(values)} frames, median {median:.1f} ms, p95 {late:.1f} ms")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--points", type=int, default=20_000)
    arguments.add_argument("--screenshot", default="")
    chosen = arguments.parse_args()
    with MemoryService(dim=DIM) as service, service.client() as client, chromium() as browser:
        fill(client, chosen.points)
        with tab(browser, service.url) as opened:
            page = opened.open("/?view=map&in=clusters")
            page.locator("#map-body").wait_for(state="visible")
            page.evaluate(MEASURE)
            use(page)
            report("drawing", page.evaluate("window.frames_"))
            report("between", page.evaluate("window.between_"))
            page.locator("#map-whole").click()
            if chosen.screenshot:
                page.screenshot(path=chosen.screenshot)


if __name__ == "__main__":
    main()
