"""Measures the web page of a running service in headless Chromium: its first screen, and scrolling.

    clipfleet up --model hash:64 --port 8300 --data /tmp/page-data     # in another terminal
    python benchmarks/page.py --url http://127.0.0.1:8300 --fill 10000 # makes images, indexes them
    python benchmarks/page.py --url http://127.0.0.1:8300 [--runs 7] [--json]

It uses the tests' way to Chromium: PYTHONPATH=tests. `--fill` makes JPEG files of 640 pixels in six
shapes, in a temporary folder that the service must be able to read, and indexes them.

First screen: a browser context without a cache opens `/?in=COLLECTION`, 1280 x 800. The clock
begins with the navigation (`performance.timeOrigin`) and ends with the first frame in which every
tile of the window has a decoded thumbnail. The median and the range of `--runs` runs are printed,
after one run that is not counted.

Scrolling: all images are brought into the document. Then Chromium's own scroll gesture (CDP
`Input.synthesizeScrollGesture`, as a wheel) moves 3,000 pixels a second for ten seconds, from the
top and, again, from the middle, where nothing has been drawn yet. Frames are the events
`Display::FrameDisplayed` of Chromium's trace from the first to the last one of the gesture: what
was shown, not what was asked for. `missing` is the share of frames that left a part of the window
empty, because it had not been drawn yet. "loading" is the same gesture on a page that was just
opened, so that it also waits for pages of images. Chromium shows 60 frames a second at most.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

from clipfleet import Client
from support.browser import chromium

SHAPES = ((640, 427), (427, 640), (640, 480), (480, 480), (640, 360), (640, 260))
SPEED = 3_000  # pixels a second
SECONDS = 10
FIRST = """() => {
    const seen = [...document.querySelectorAll("#grid li")].filter(it => {
        const { top, bottom } = it.getBoundingClientRect();
        return bottom > 0 && top < innerHeight;
    });
    const ready = seen.length > 4 && seen.every(it => {
        const picture = it.querySelector("img");
        return picture && picture.complete && picture.naturalWidth;
    });
    return ready && performance.now();
}"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--collection", default="page")
    parser.add_argument("--fill", type=int, default=0, help="index so many images, and end")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", choices=["first", "scroll"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.fill:
        fill(args.url, args.collection, args.fill)
        return
    address = f"{args.url}/?in={args.collection}"
    result: dict[str, Any] = {"url": args.url, "collection": args.collection}
    with Client(args.url) as client:
        result["images"] = client.count(args.collection)
    with chromium() as browser:
        result["chromium"] = browser.version
        if args.only != "scroll":
            runs = [first_screen(browser, address) for _ in range(args.runs + 1)][1:]
            result["first_screen_ms"] = _spread(runs)
        if args.only != "first":
            result |= scrolling(browser, address, result["images"])
    print(json.dumps(result) if args.json else _shown(result))


def fill(url: str, collection: str, count: int) -> None:
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Client(url) as client:
        for n in range(count):
            colours = draw.integers(0, 255, (5, 5, 3), np.uint8)
            picture = Image.fromarray(colours).resize(SHAPES[n % len(SHAPES)])
            picture.save(Path(folder) / f"IMG_{n:05}.jpg", quality=80)
        job = client.index(collection, folder, wait=True, create=True)
        print(f"{job.done} images are in, {job.failed} failed")


def first_screen(browser: Browser, address: str) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(address, wait_until="commit")
    took = float(page.wait_for_function(FIRST, polling="raf").json_value())
    context.close()
    return took


def scrolling(browser: Browser, address: str, images: int) -> dict[str, Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.wait_for_function(FIRST)
    measured = {"loading": frames(browser, page)}
    while (tiles := page.locator("#grid a").count()) < min(images, 10_000):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(20)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1_000)
    measured["all_from_top"] = frames(browser, page)
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_timeout(1_000)
    measured["all_from_middle"] = frames(browser, page)
    page.close()
    return {"tiles": tiles, "scrolling": measured}


def frames(browser: Browser, page: Page) -> dict[str, float]:
    """Scroll, and count the frames that were drawn meanwhile."""
    session = page.context.new_cdp_session(page)
    before = page.evaluate("scrollY")
    browser.start_tracing(page=page, categories=["benchmark"])
    session.send(
        "Input.synthesizeScrollGesture",
        {
            "x": 640, "y": 400, "yDistance": -SPEED * SECONDS, "speed": SPEED,
            "gestureSourceType": "mouse", "preventFling": True,
        },
    )  # fmt: skip
    events = json.loads(browser.stop_tracing())["traceEvents"]
    session.detach()
    shown = sorted(event["ts"] for event in events if event["name"] == "Display::FrameDisplayed")
    seconds = (shown[-1] - shown[0]) / 1e6
    gaps = np.diff(shown) / 1e3
    reports = [
        event["args"]["frame_reporter"]
        for event in events
        if event["name"] == "PipelineReporter" and "frame_reporter" in event.get("args", {})
    ]
    scrolled = [report for report in reports if report["scroll_state"] != "SCROLL_NONE"]
    missing = sum(report["has_missing_content"] for report in scrolled)
    return {
        "frames_per_second": round((len(shown) - 1) / seconds, 1),
        "missing": round(missing / max(1, len(scrolled)), 3),
        "gap_ms_p99": round(float(np.percentile(gaps, 99)), 1),
        "gap_ms_max": round(float(gaps.max()), 1),
        "seconds": round(seconds, 1),
        "pixels": page.evaluate("scrollY") - before,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values)),
        "min": round(min(values)),
        "max": round(max(values)),
    }


def _shown(result: dict[str, Any]) -> str:
    lines = [f"{result['images']} images, Chromium {result['chromium']}"]
    if "first_screen_ms" in result:
        spread = result["first_screen_ms"]
        lines.append(f"first screen: {spread['median']} ms ({spread['min']} to {spread['max']})")
    for name, scroll in result.get("scrolling", {}).items():
        rest = ", ".join(f"{key} {value}" for key, value in scroll.items())
        lines.append(f"scrolling, {name}: {rest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
