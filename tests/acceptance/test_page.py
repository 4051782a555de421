"""The web page in a real Chromium: searching by words and images, combining, filters, one image."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from support.browser import Tab

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples"
HOUSE = SAMPLES / "buildings" / "house.png"


@pytest.fixture
def shown(page: Tab, drawings: str) -> Page:
    return page.open(f"/?in={drawings}")


def search(page: Page, words: str) -> None:
    page.get_by_label("Search by words").fill(words)
    page.keyboard.press("Enter")


def address(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def test_words_find_images_and_the_address_can_be_shared(page: Tab, shown: Page) -> None:
    search(shown, "a guitar")
    expect(shown.locator("#grid a").first).to_have_accessible_name(re.compile("guitar.*score"))
    assert address(shown) == {"in": ["drawings"], "q": ["a guitar"]}
    before = page.names(10)
    page.page.goto(shown.url)
    assert page.names(10) == before
    expect(shown.get_by_label("Search by words")).to_have_value("a guitar")


def test_words_typed_while_the_page_loads_stay(page: Tab, shown: Page) -> None:
    held: list[Route] = []
    shown.route("**/v1/collections", lambda route: held.append(route))
    shown.reload(wait_until="domcontentloaded")
    words = shown.get_by_label("Search by words")
    words.fill("a guitar")
    while not held:
        shown.wait_for_timeout(20)
    held[0].continue_()
    page.names(60)
    expect(words).to_have_value("a guitar")
    shown.keyboard.press("Enter")
    expect(shown.locator("#grid a").first).to_have_accessible_name(re.compile("guitar.*score"))


def test_the_time_of_a_search_says_where_it_went(shown: Page) -> None:
    search(shown, "a guitar")
    expect(shown.locator("#summary")).to_have_text(re.compile(r"nearest first · \d+ ms"))
    stages = re.compile(r"^queue [0-9.]+ ms · embed [0-9.]+ ms · search [0-9.]+ ms · total [0-9.]+")
    expect(shown.locator("#summary")).to_have_attribute("title", stages)


def cut_answers(shown: Page, count: int, limit: str) -> None:
    """From now on the answers end after `count` matches, because of a limit."""

    def cut(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        if len(answer["matches"]) > count:
            answer |= {"matches": answer["matches"][:count], "truncated": limit}
        route.fulfill(response=response, json=answer)

    shown.route("**/search", cut)


def test_after_an_answer_without_room_for_more_bytes_the_page_goes_on(shown: Page) -> None:
    cut_answers(shown, 20, "answer_bytes")
    shown.reload()
    while not shown.get_by_text("All 242 images").count():
        shown.mouse.wheel(0, 2_000)
        shown.wait_for_timeout(50)
    assert shown.locator("#grid a").count() == 242


def test_an_answer_that_another_limit_cut_says_so(shown: Page) -> None:
    cut_answers(shown, 20, "window")
    search(shown, "a guitar")
    expect(shown.get_by_text("no more than 20 images (limit: window)")).to_be_visible()


def test_scrolling_brings_more_until_all_are_there(page: Tab, shown: Page) -> None:
    page.names(60)
    assert not shown.get_by_text("All 242 images").count()
    while not shown.get_by_text("All 242 images").count():
        shown.mouse.wheel(0, 2_000)
        shown.wait_for_timeout(50)
    names = shown.locator("#grid a .name").all_text_contents()
    assert len(names) == len(set(names)) == 242


def test_scrolling_while_a_query_is_under_way_asks_for_nothing_more(page: Tab, shown: Page) -> None:
    page.names(60)
    shown.wait_for_load_state("networkidle")
    held: list[Route] = []
    shown.route("**/search", lambda route: held.append(route))
    search(shown, "a guitar")
    expect(shown.locator("#grid[aria-busy]")).to_be_attached()
    shown.evaluate("scrollTo(0, document.body.scrollHeight)")
    shown.wait_for_timeout(500)
    assert len(held) == 1
    held[0].continue_()
    expect(shown.locator("#grid a .name").first).to_contain_text("guitar")


def test_a_dropped_file_is_searched_by(page: Tab, shown: Page) -> None:
    page.names(1)
    page.drop([HOUSE], "[data-zone=search]")
    expect(shown.locator("#terms .what")).to_have_text("house.png")
    page.settled()
    assert set(page.names(8)) & {"house", "villa", "school", "cottage", "church"}
    assert address(shown)["dropped"] == ["house.png"]
    before = page.names(5)
    shown.reload()
    assert page.names(5) == before


def test_a_link_says_that_it_could_not_carry_the_image(page: Tab, drawings: str) -> None:
    page.open(f"/?in={drawings}&dropped=house.png")
    expect(page.page.get_by_role("alert")).to_contain_text("Drop house.png here again")


def test_a_pasted_image_is_searched_by(page: Tab, shown: Page) -> None:
    page.names(1)
    shown.evaluate(
        """bytes => {
            const file = new File([new Uint8Array(bytes)], "image.png", { type: "image/png" });
            const clipboardData = new DataTransfer();
            clipboardData.items.add(file);
            const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true });
            document.body.dispatchEvent(paste);
        }""",
        list(HOUSE.read_bytes()),
    )
    expect(shown.locator("#terms .what")).to_have_text("image.png")


def test_more_like_this(page: Tab, shown: Page) -> None:
    search(shown, "a guitar")
    first = shown.locator("#grid a").first
    expect(first).to_contain_text("guitar")
    name = page.names(1)[0]
    first.hover()
    shown.get_by_role("button", name=f"More like {name}", exact=True).click()
    expect(shown.locator("#terms .what")).to_have_text(name)
    expect(shown.locator("#grid a .score").first).to_contain_text("1.000")
    assert page.names(1) == [name]
    shown.go_back()
    expect(shown.get_by_label("Search by words")).to_have_value("a guitar")


def test_combining_with_a_minus(page: Tab, shown: Page) -> None:
    search(shown, "a vehicle")
    page.settled()
    before = page.names(40)
    shown.get_by_label("Search by words").fill("-a car")
    shown.keyboard.press("Enter")
    expect(shown.locator(".chip.avoided .what")).to_have_text("a car")
    search(shown, "a vehicle")
    page.settled()
    after = page.names(40)
    cars = [name for name in before if "car" in name.split("-")]
    assert sum(map(before.index, cars)) < sum(rank(after, name) for name in cars)
    assert address(shown) == {"in": ["drawings"], "q": ["a vehicle"], "text*-0.5": ["a car"]}

    weight = shown.get_by_label("Weight of a car")
    weight.fill("0.2")
    weight.press("Enter")
    expect(shown).to_have_url(re.compile(r"text\*-0\.2=a\+car"))
    shown.get_by_role("button", name="Not a car").click()
    expect(shown.locator(".chip.avoided")).to_have_count(0)
    shown.get_by_role("button", name="Remove a car").click()
    page.settled()
    assert page.names(40) == before


def rank(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def test_filters_of_the_declared_fields_and_the_label(page: Tab, shown: Page) -> None:
    form = shown.locator("#filter-form")
    add_filter(shown, "label", "is", "animals")
    expect(shown.locator("#filters .what")).to_have_text("label is animals")
    add_filter(shown, "letters", "≤", "3")
    expect(form).to_be_hidden()
    expect(shown.locator("#grid a .name").first).to_be_visible()
    expect(shown.locator("#grid a .label").filter(has_not_text="animals")).to_have_count(0)
    expect(shown.locator("#grid a .name").filter(has_text=re.compile(".{4}"))).to_have_count(0)
    assert address(shown)["where.letters.lte"] == ["3"]
    add_filter(shown, "letters", "≥", "90")
    expect(shown.get_by_text("Nothing passes the filters")).to_be_visible()
    shown.get_by_role("button", name="Remove the filters").click()
    page.names(60)


def add_filter(page: Page, field: str, op: str, value: str) -> None:
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Field").select_option(field)
    page.get_by_label("Condition").select_option(op)
    page.locator("#filter-value input").fill(value)
    page.keyboard.press("Enter")


def test_one_image_with_what_is_known_of_it_and_its_neighbours(page: Tab, shown: Page) -> None:
    search(shown, "a guitar")
    expect(shown.locator("#grid a").first).to_contain_text("guitar")
    name = page.names(1)[0]
    shown.locator("#grid a").first.click()
    dialog = shown.get_by_role("dialog", name=name, exact=True)
    expect(dialog.locator(".known")).to_contain_text("music")
    expect(dialog.locator(".known")).to_contain_text("letters")
    expect(dialog.get_by_label("Neighbours").locator("a")).to_have_count(12)
    expect(dialog.get_by_label("Neighbours").get_by_text(name, exact=True)).to_have_count(0)
    shown.keyboard.press("ArrowRight")
    expect(dialog).to_be_hidden()
    expect(shown.get_by_role("dialog", name=page.names(2)[1])).to_be_visible()
    shown.keyboard.press("Escape")
    expect(shown.get_by_role("dialog")).to_be_hidden()
    assert "image" not in address(shown)

    shown.goto(f"{page.url}/?in=drawings&image={name}")
    shown.get_by_role("button", name="Not like this").click()
    expect(shown.locator(".chip.avoided .what")).to_have_text(name)
    expect(shown.get_by_label(f"Weight of {name}")).to_have_value("0.2")


def test_everything_by_keyboard(page: Tab, shown: Page) -> None:
    page.names(30)
    shown.keyboard.press("/")
    expect(shown.get_by_label("Search by words")).to_be_focused()
    shown.keyboard.type("a guitar")
    shown.keyboard.press("Enter")
    expect(shown.locator("#grid a").first).to_contain_text("guitar")
    tiles = shown.locator("#grid a")
    shown.keyboard.press("ArrowDown")
    expect(tiles.nth(0)).to_be_focused()
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("ArrowUp")
    expect(tiles.nth(1)).to_be_focused()
    shown.keyboard.press("Enter")
    expect(shown.get_by_role("dialog")).to_be_visible()
    shown.keyboard.press("Escape")
    expect(tiles.nth(1)).to_be_focused()
    name = page.names(2)[1]
    shown.keyboard.press("m")
    expect(shown.locator("#terms .what")).to_have_text(name)
    expect(tiles.nth(0)).to_contain_text(name)
    shown.keyboard.press("/")
    shown.keyboard.press("Escape")
    expect(shown.locator("#terms .what")).to_have_count(0)
    shown.locator("h1 a").focus()
    shown.keyboard.press("?")
    expect(shown.get_by_role("dialog", name="Help")).to_be_visible()
