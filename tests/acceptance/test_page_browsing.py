"""Tiles, order, groups and filters of the web page, on a service in memory, in a real Chromium."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from clipfleet.testing import MemoryService
from support.browser import Tab, tab
from support.in_process import PixelEmbedder
from support.services import eventually

SIZES = ((300, 200), (200, 300), (240, 240), (600, 200), (200, 500))
LONG = "2024-06-16 Summer at the sea with everybody, IMG_"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryService]:
    """Collections: 150 pictures of five shapes without labels, 80 vectors without pictures, and one
    that is empty."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for n in range(150):
        colours = draw.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(colours).resize(SIZES[n % 5]).save(folder / f"{LONG}{n}.jpg")
    with MemoryService(embedder=PixelEmbedder()) as service, service.client() as client:
        client.index("pictures", folder, wait=True, create=True)
        dim = client.collection("pictures").dim
        client.create_collection("vectors", fields={"year": "int"})
        client.upsert("vectors", [row(n, dim) for n in range(80)])
        client.create_collection("empty")
        yield service


def row(n: int, dim: int) -> dict[str, Any]:
    values = np.sin(np.arange(dim) * (1 + n // 2)).tolist()  # two of each are the same
    metadata: dict[str, Any] = {"year": 2000 + n, "brand": ["Acme", "Bolt"][n % 2], "sold": n > 40}
    if n % 4 == 0:
        metadata["price"] = n
    return {"id": f"item {n}", "values": values, "label": "thing", "metadata": metadata}


@pytest.fixture
def page(browser: Browser, shelf: MemoryService) -> Iterator[Tab]:
    with tab(browser, shelf.url) as page:
        yield page


def search(page: Page, words: str) -> None:
    page.get_by_label("Search by words").fill(words)
    page.keyboard.press("Enter")


def search_by_keyboard(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("a truck")
    assert top(page) == 1200, "typing in the bar leaves the page where it is"
    page.keyboard.press("Enter")


def address(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def top(page: Page) -> float:
    return float(page.evaluate("scrollY"))


def scroll_down(page: Page, tiles: int) -> float:
    """Scroll until there are so many tiles; return how far."""
    while page.locator("#grid a").count() < tiles:
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(30)
    page.evaluate("scrollTo(0, 1200)")
    return top(page)


def test_a_new_search_begins_at_the_top_and_back_is_where_it_was(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    page.names(60)
    place = scroll_down(shown, 120)
    names = page.names(120)
    for begin in (search_by_keyboard, more_like_this):
        begin(shown)
        page.settled()
        expect(shown.locator("#grid a .score").first).to_be_attached()
        assert top(shown) == 0
        shown.go_back()
        expect(shown.locator("#grid a .score")).to_have_count(0)
        eventually(lambda: top(shown) == place, 10, "the page is where it was")
        assert page.names(120) == names


def more_like_this(page: Page) -> None:
    page.locator("#grid li").nth(40).scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 1200)")
    page.locator("#grid .like").nth(40).evaluate("it => it.click()")


def test_another_view_leaves_the_images_where_they_were(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    page.names(60)
    place = scroll_down(shown, 120)
    shown.get_by_role("link", name="Jobs").click()
    expect(shown.get_by_role("heading", name="Jobs")).to_be_visible()
    shown.get_by_role("link", name="Search").click()
    expect(shown.locator("#grid a").first).to_be_attached()
    assert top(shown) == place


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_of_a_tile_can_be_seen(page: Tab, scheme: Any) -> None:
    page.page.emulate_media(color_scheme=scheme)
    shown = page.open("/?in=pictures")
    page.names(3)
    shown.wait_for_load_state("networkidle")
    tile = shown.locator("#grid li").nth(1)
    before = pixels(tile.screenshot())
    shown.get_by_label("Search by words").focus()
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("ArrowRight")
    expect(tile.locator("a")).to_be_focused()
    shown.mouse.move(2, 2)
    shown.wait_for_timeout(300)  # the button of the tile fades in
    after = pixels(tile.screenshot())
    changed = np.abs(after - before).max(axis=2) > 40
    picture = changed.shape[0] - 27
    for edge in (
        changed[:picture, :8],
        changed[:picture, -8:],
        changed[:8],
        changed[:picture][-8:],
    ):
        assert edge.mean() > 0.25, "there is a ring along every side"
    ring = after[picture // 2, :4]  # along the left side
    ground = before[-4, 4]  # below the picture, beside the name
    assert max(contrast(pixel, ground) for pixel in ring) >= 3


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


def contrast(colour: Any, ground: Any) -> float:
    """The ratio of WCAG 2."""

    def luminance(rgb: Any) -> float:
        part = rgb / 255
        linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


BOXES = """() => [...document.querySelectorAll("#grid li")].slice(0, 40).map(it => {
    const { x, y, width, height } = it.getBoundingClientRect();
    return [x, y, width, height].map(Math.round);
})"""


def test_rows_are_filled_and_do_not_move_when_the_pictures_come(page: Tab) -> None:
    held: list[Route] = []
    page.page.route("**/thumbnail?*", lambda route: held.append(route))
    shown = page.open("/?in=pictures")
    page.names(60)
    before = shown.evaluate(BOXES)
    rows = {y: [box for box in before if box[1] == y] for _, y, _, _ in before}
    full = list(rows.values())[:-1]
    assert len(full) > 3
    for tiles in full:
        assert abs(tiles[0][0] - 16) <= 1
        assert abs(tiles[-1][0] + tiles[-1][2] - (1280 - 16)) <= 1
        heights = [height for *_, height in tiles]
        assert max(heights) - min(heights) <= 1  # browsers round each tile by itself
    widths = {round(width / (height - 27), 1) for _, _, width, height in before}
    assert widths == {1.5, 0.7, 1.0, 2.6, 0.6}
    for route in held:
        route.continue_()
    page.page.unroute("**/thumbnail?*")
    first = shown.locator("#grid img").first
    expect(first).to_have_js_property("complete", True)
    shown.wait_for_load_state("networkidle")
    assert first.evaluate("it => it.naturalWidth") > 0
    assert shown.evaluate(BOXES) == before


def test_names_are_cut_in_the_middle(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    page.names(20)
    names = shown.locator("#grid a .name")
    for at in range(20):
        name = names.nth(at)
        text = name.text_content() or ""
        assert re.fullmatch(LONG + r"\d+", text)
        end = name.locator(".end")
        assert end.text_content() == text[-6:]
        assert end.evaluate("it => it.scrollWidth <= it.clientWidth + 1")
    assert names.locator(".start").evaluate_all(
        "all => all.some(it => it.scrollWidth > it.clientWidth)"
    )


def test_vectors_without_pictures_are_not_asked_for_one_by_one(page: Tab) -> None:
    requests: list[str] = []
    page.page.on("request", lambda it: requests.append(it.url) if "/thumbnail" in it.url else None)
    shown = page.open("/?in=vectors")
    page.names(60)
    scroll_down(shown, 80)
    shown.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(shown.get_by_text("no picture")).to_have_count(80)
    assert len(requests) <= 4
    expect(shown.locator("#grid a .label").first).to_have_text("thing")


def test_images_are_sorted_by_name_and_by_a_field(page: Tab) -> None:
    shown = page.open("/?in=vectors")
    page.names(60)
    sort = shown.get_by_label("Sort")
    sort.select_option("id")
    page.settled()
    assert page.names(60) == [f"item {n}" for n in range(60)]
    scroll_down(shown, 80)
    assert page.names(80) == [f"item {n}" for n in range(80)]
    sort.select_option("-year")
    page.settled()
    expect(shown.locator("#grid a .name").first).to_have_text("item 79")
    assert address(shown) == {"in": ["vectors"], "sort": ["-year"]}
    sort.select_option("-price")  # nobody declared it, and not every image has it
    page.settled()
    expect(shown.locator("#grid a .name").first).to_have_text("item 76")
    shown.reload()
    assert page.names(22)[-4:] == ["item 4", "item 0", "item 1", "item 2"]
    expect(sort).to_have_value("-price")
    search(shown, "anything")
    expect(sort).to_be_hidden()


def test_a_collection_that_is_too_large_to_sort_says_so(browser: Browser) -> None:
    with MemoryService(dim=2, limits={"window": 300}) as service, service.client() as client:
        client.create_collection("many")
        client.upsert("many", [{"id": f"{n}", "values": [1.0, n]} for n in range(301)])
        with tab(browser, service.url) as page:
            shown = page.open("/?in=many&sort=id")
            expect(
                shown.get_by_role("heading", name="These images cannot be sorted")
            ).to_be_visible()
            expect(shown.locator("#more")).to_contain_text("use a narrower filter")
            shown.get_by_role("button", name="Show them in any order").click()
            page.names(60)


def test_groups_and_near_duplicates(page: Tab) -> None:
    shown = page.open("/?in=vectors&q=anything")
    page.names(60)
    shown.get_by_role("button", name="View", exact=True).click()
    shown.get_by_label("Near-duplicates").select_option("0.97")
    expect(shown.locator("#grid a")).to_have_count(40)
    expect(shown.locator("#grid .duplicates").first).to_contain_text("+1")
    shown.get_by_label("Groups").select_option("brand")
    expect(shown.locator("#grid a")).to_have_count(2)
    assert address(shown) == {
        "in": ["vectors"], "q": ["anything"], "group": ["brand"], "collapse": ["0.97"],
    }  # fmt: skip
    shown.reload()
    expect(shown.locator("#grid a")).to_have_count(2)
    shown.get_by_role("button", name="Remove one for each brand").click()
    shown.get_by_role("button", name="Remove without near-duplicates").click()
    page.names(60)


def test_fields_that_nobody_declared_can_be_filtered_by(page: Tab) -> None:
    shown = page.open("/?in=vectors")
    page.names(60)
    shown.get_by_role("button", name="Filter", exact=True).click()
    fields = shown.get_by_label("Field").locator("option").all_text_contents()
    assert fields[:5] == ["label", "year", "brand", "price", "sold"]
    shown.get_by_label("Field").select_option("brand")
    expect(shown.locator("#values option")).to_have_count(2)
    shown.get_by_label("Value").fill("Bolt")
    shown.keyboard.press("Enter")
    expect(shown.locator("#summary")).to_contain_text("40 of 80 images")
    for condition, count in (
        ("where.price.eq=8", 1), ("where.price.gte=40", 10), ("where.sold.eq=true", 39),
        ("where.brand.prefix=Ac", 40), ("where.brand.ne=Acme", 40), ("where.price.ne=8", 79),
    ):  # fmt: skip
        shown.goto(f"{page.url}/?in=vectors&{condition}")
        expect(shown.locator("#summary")).to_contain_text(f"{count} of 80 images")


def test_suggestions_are_those_of_the_whole_collection(browser: Browser) -> None:
    with MemoryService(dim=2) as service, service.client() as client:
        client.create_collection("many")
        rows = [{"id": f"{n}", "values": [1.0, n], "label": f"kind {n // 5}"} for n in range(400)]
        client.upsert("many", rows)
        with tab(browser, service.url) as page:
            shown = page.open("/?in=many")
            page.names(60)
            shown.get_by_role("button", name="Filter", exact=True).click()
            expect(shown.locator("#values option")).to_have_count(80)


def test_not_is_read_as_people_read_it(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    page.names(1)
    shown.get_by_label("Search by words").fill("a dog in water")
    shown.get_by_role("button", name="not", exact=True).click()
    expect(shown.get_by_placeholder("what to avoid")).to_be_focused()
    shown.keyboard.type("people")
    shown.keyboard.press("Enter")
    expect(shown.locator(".chip .what")).to_have_text(["a dog in water", "people"])
    expect(shown.locator(".chip.avoided .what")).to_have_text("people")
    expect(shown.get_by_label("Weight of people")).to_have_value("0.5")
    assert address(shown) == {
        "in": ["pictures"], "text": ["a dog in water"], "text*-0.5": ["people"],
    }  # fmt: skip
    shown.get_by_role("button", name="Not people").click()
    expect(shown.locator(".chip.avoided")).to_have_count(0)
    assert address(shown)["text"] == ["a dog in water", "people"]
    shown.get_by_role("button", name="not", exact=True).click()
    shown.keyboard.press("Backspace")
    shown.keyboard.type("snow")
    shown.keyboard.press("Enter")
    assert address(shown)["q"] == ["snow"]


def test_the_keyboard_goes_on_from_where_it_was(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    page.names(30)
    tiles = shown.locator("#grid a")
    shown.get_by_label("Search by words").focus()
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Enter")
    expect(shown.get_by_role("dialog")).to_be_visible()
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("Escape")
    expect(tiles.nth(2)).to_be_focused()
    names = page.names(3)
    shown.keyboard.press("-")
    expect(shown.locator(".chip.avoided .what")).to_have_text(names[2])
    expect(tiles.first).to_be_focused()
    first = page.names(1)[0]
    shown.keyboard.press("m")
    expect(shown.locator("#terms .what")).to_have_text(first)
    expect(tiles.first).to_be_focused()


SMALL = """() => [...document.querySelectorAll("a, button, input, select, summary")]
    .filter(it => it.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .filter(it => !it.matches(".unseen, .skip, [type=checkbox]"))
    .map(it => [it, it.getBoundingClientRect()])
    .filter(([, { width, height }]) => width < 44 || height < 44)
    .map(([it, { width, height }]) => `${it.id || it.className} ${width}x${height}`)
"""


def test_fingers_find_what_they_press(browser: Browser, shelf: MemoryService) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    with tab(browser, shelf.url, **phone) as page:
        shown = page.open("/?in=pictures&q=a+dog&text*-0.5=snow&where.label.exists=false")
        page.names(20)
        assert shown.evaluate(SMALL) == []
        shown.get_by_role("button", name="Filter", exact=True).click()
        shown.get_by_role("button", name="View", exact=True).click()
        assert shown.evaluate(SMALL) == []
        first = page.names(1)[0]
        shown.get_by_role("button", name=f"More like {first}", exact=True).tap()
        expect(shown.locator("#terms .what")).to_have_text(first)
        shown.get_by_role("button", name="Help").tap()
        expect(shown.get_by_role("dialog", name="Help")).to_be_visible()
        assert shown.evaluate(SMALL) == []


def test_help_can_be_seen_and_leads_to_the_interface(page: Tab) -> None:
    shown = page.open("/?in=pictures")
    shown.get_by_role("button", name="Help").click()
    link = shown.get_by_role("dialog", name="Help").get_by_role("link", name="The HTTP interface")
    expect(link).to_have_attribute("href", "docs")
    expect(shown.get_by_role("dialog", name="Help")).to_contain_text("search by words")


KEYS = {
    "reader": {"scopes": ["read"], "collections": ["shop"]},
    "writer": {"scopes": ["write"]},
}


@pytest.fixture(scope="module")
def keyed() -> Iterator[MemoryService]:
    with MemoryService(dim=2, api_keys=KEYS) as service, service.client(api_key="writer") as client:
        client.create_collection("shop")
        client.upsert("shop", [{"id": f"{n}", "values": [1.0, n]} for n in range(5)])
        client.create_collection("void")
        yield service


def enter_key(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_key_that_may_only_read_is_offered_no_uploads(
    browser: Browser, keyed: MemoryService, tmp_path: Path
) -> None:
    with tab(browser, keyed.url) as page:
        shown = page.open("/?in=shop")
        enter_key(shown, "reader")
        page.names(5)
        expect(shown.locator("#add")).to_be_hidden()
        (tmp_path / "notes.txt").write_text("x")
        shown.evaluate(
            """() => {
                const dataTransfer = new DataTransfer();
                for (const name of ["a.jpg", "b.jpg"])
                    dataTransfer.items.add(new File(["x"], name, { type: "image/jpeg" }));
                document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
            }"""
        )
        expect(shown.get_by_role("alert").filter(visible=True)).to_contain_text("a.jpg, b.jpg")
        expect(shown.get_by_role("dialog")).to_have_count(0)


def test_a_key_that_may_write_is_offered_uploads(browser: Browser, keyed: MemoryService) -> None:
    with tab(browser, keyed.url) as page:
        shown = page.open("/?in=void")
        enter_key(shown, "writer")
        expect(shown.get_by_role("heading", name="void is empty")).to_be_visible()
        expect(shown.locator("#add")).to_be_visible()
        expect(shown.locator("#more").get_by_role("button", name="Add images")).to_be_visible()


def answer(status: int, **problem: Any) -> Any:
    body = json.dumps({"status": status, **problem})
    return lambda route: route.fulfill(status=status, body=body)


def test_a_service_for_its_own_machine_says_so(page: Tab) -> None:
    kind = "urn:problem:clipfleet:no-keys"
    page.page.route("**/v1/**", answer(401, type=kind, detail="this service has no keys"))
    shown = page.open("/?in=pictures")
    heading = "This service answers only its own machine"
    expect(shown.get_by_role("heading", name=heading)).to_be_visible()
    expect(shown.locator("#more")).to_contain_text("this service has no keys.")
    expect(shown.get_by_role("combobox", name="Collection", exact=True)).to_be_hidden()


def test_a_visitor_is_told_that_searching_has_to_wait(page: Tab) -> None:
    detail = "no live worker serves the query lane of model 'm'; start one with CLIPFLEET_MODEL=m"
    page.page.route("**/search", answer(503, detail=detail, model="m"))
    shown = page.open("/?in=pictures")
    expect(shown.get_by_role("heading", name="Searching has to wait")).to_be_visible()
    expect(shown.locator("#more > .message > p").first).not_to_contain_text("lane")
    shown.get_by_text("For who runs it").click()
    expect(shown.get_by_text("CLIPFLEET_MODEL=m.")).to_be_visible()
    page.page.unroute("**/search")
    shown.get_by_role("button", name="Ask now").click()
    page.names(60)


def test_what_goes_wrong_has_the_colour_of_errors(page: Tab, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    shown = page.open("/?in=pictures")
    page.names(60)
    page.drop([tmp_path / "notes.txt"], "[data-zone=search]")
    notice = shown.get_by_role("alert").filter(visible=True)
    expect(notice).to_contain_text("notes.txt is no image.")
    red, green, blue = channels(notice.evaluate("it => getComputedStyle(it).color"))
    assert red > 1.5 * max(green, blue)
    shown.goto(f"{page.url}/?in=pictures&dropped=cat.jpg")  # no error, only something to know
    expect(notice).to_contain_text("Drop cat.jpg here again")
    assert max(channels(notice.evaluate("it => getComputedStyle(it).color"))) < 60


def channels(colour: str) -> list[float]:
    return [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]


def test_the_address_of_an_image_is_searched_as_an_image(page: Tab) -> None:
    dim = 0
    requests: list[Any] = []

    def embedded(route: Route) -> None:
        requests.append(json.loads(route.request.post_data or ""))
        route.fulfill(json={"model": "m", "dim": dim, "embeddings": [[1.0, *[0.0] * (dim - 1)]]})

    page.page.route("**/v1/embed", embedded)
    url = "https://example.org/red/cat.jpg"
    shown = page.open("/?in=pictures")
    page.names(60)
    collections = shown.request.get(f"{page.url}/v1/collections").json()["collections"]
    dim = next(it["dim"] for it in collections if it["name"] == "pictures")
    search(shown, url)
    expect(shown.locator(".chip .what")).to_have_text("cat.jpg")
    expect(shown.locator("#grid a .score").first).to_be_attached()
    assert [call["images"] for call in requests] == [[{"url": url}]]
    assert address(shown) == {"in": ["pictures"], "url": [url]}
    scroll_down(shown, 120)
    assert len(requests) == 1, "its embedding is used for every page"
    shown.reload()
    expect(shown.locator("#grid a .score").first).to_be_attached()
    shown.evaluate(
        """url => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", url);
            const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true });
            document.body.dispatchEvent(paste);
        }""",
        "https://example.org/dog.jpg",
    )
    expect(shown.locator(".chip .what")).to_have_text("dog.jpg")


JOB = {
    "id": "j1", "collection": "empty", "namespace": "default", "source": "", "state": "running",
    "total": 600, "done": 0, "failed": 0, "skipped": 0, "left_out": {}, "remarks": {},
    "rate": None, "eta_s": None, "created_at": 1.0, "started_at": 1.0, "finished_at": None,
    "error": None, "waiting": None, "retry_of": None, "retried_by": None,
}  # fmt: skip


class ShortSighted(PixelEmbedder):
    """Reads 40 characters of a text."""

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) > 40 for text in texts]


def test_words_that_are_longer_than_the_model_reads_are_said(browser: Browser) -> None:
    with MemoryService(embedder=ShortSighted()) as service, service.client() as client:
        dim = client.create_collection("vectors").dim
        client.upsert("vectors", [row(n, dim) for n in range(3)])
        with tab(browser, service.url) as page:
            shown = page.open("/?in=vectors")
            summary = shown.locator("#summary")
            search(shown, "a dog " * 10)
            expect(summary).to_contain_text("the model reads only the beginning of these words")
            search(shown, "a dog")
            expect(summary).not_to_contain_text("the beginning")
            expect(summary).to_contain_text("nearest first")


def test_an_empty_collection_says_that_its_job_is_at_work(page: Tab, shelf: MemoryService) -> None:
    job = dict(JOB)
    page.page.route("**/v1/jobs?*", lambda route: route.fulfill(json={"jobs": [job]}))
    shown = page.open("/?in=empty")
    expect(shown.get_by_role("heading", name="Nothing is in yet")).to_be_visible()
    expect(shown.locator("#more")).to_contain_text("1 job at work for empty: 0 of 600 images")
    with shelf.client() as client:
        client.upsert("empty", [row(0, client.collection("empty").dim)])
        job["done"] = 1
        expect(shown.locator("#grid a")).to_have_count(1)
        client.delete("empty", all=True)


def test_the_tray_says_how_many_images_are_in(page: Tab, shelf: MemoryService) -> None:
    good = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(good, "JPEG")
    files: list[Any] = [
        {"name": f"{n}.jpg", "mimeType": "image/jpeg", "buffer": content}
        for n, content in enumerate([good.getvalue()] * 3 + [b"no image"] * 2)
    ]
    shown = page.open("/?in=uploads")
    shown.get_by_role("button", name="Add images").first.click()
    dialog = shown.get_by_role("dialog", name="Add images")
    dialog.get_by_label("Collection").fill("uploads")
    shown.locator("#files").set_input_files(files)
    dialog.get_by_role("button", name="Add 5 images").click()
    tray = shown.get_by_role("complementary", name="Upload")
    expect(tray).to_contain_text("3 in, 2 failed.")
    with shelf.client() as client:
        client.delete_collection("uploads")
