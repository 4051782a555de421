"""The web page in a real Chromium: the file of an image, many images at once, the collections."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, Route, expect

from clipfleet.common.imaging.embedder import HashEmbedder
from support.browser import Tab, tab, violations
from support.in_process import InProcess
from support.services import eventually

KEYS: dict[str, dict[str, Any]] = {
    "may-all": {"name": "all"},
    "may-write": {"name": "writes", "scopes": ["write"]},
    "may-read": {"name": "reads", "scopes": ["read"]},
}
MANY = 500
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def photo(path: Path, number: int, size: tuple[int, int] = (90, 60)) -> None:
    image = Image.new("RGB", size, (number * 7 % 256, number * 13 % 256, number * 29 % 256))
    ImageDraw.Draw(image).line((0, number % size[1], size[0], 0), "white", 3)
    image.save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files; one of them is a large photo, and one will be gone."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        photo(folder / f"p{number}.png", number)
    photo(folder / "large.jpg", 3, (2_400, 1_600))
    photo(folder / "gone.png", 77)
    return folder


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess() as running:
        yield running


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[InProcess]:
    """A service with keys, and a collection `photos`."""
    with InProcess(api_keys=KEYS, source_roots=[folder]) as running:
        with running.client("may-all") as client:
            client.index("photos", folder, wait=True)
        yield running


@pytest.fixture
def page(browser: Browser, service: InProcess, folder: Path) -> Iterator[Tab]:
    """A tab on a service whose collection `photos` is new."""
    with service.client() as client:
        if "photos" in [collection.name for collection in client.collections()]:
            client.delete_collection("photos")
        client.create_collection("photos", fields={"year": "int"})
        client.index("photos", folder, wait=True)
    (folder / "gone.png").unlink()
    with tab(browser, service.url) as opened:
        yield opened
    photo(folder / "gone.png", 77)


def with_key(opened: Tab, key: str, address: str) -> Page:
    page = opened.open(address)
    page.locator("#key-input").fill(key)
    page.get_by_role("button", name="Use this key").click()
    return page


def detail(page: Page) -> Locator:
    return page.locator("#detail")


def saved(page: Page, press: Locator) -> tuple[str, bytes]:
    with page.expect_download() as download:
        press.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def box(page: Page, place: int) -> Locator:
    return page.locator("#grid > li").nth(place).locator(".pick-box")


def selected(page: Page) -> str:
    return page.locator("#selection .said").inner_text()


def test_the_file_of_an_image_is_shown_larger_opened_and_saved(page: Tab, folder: Path) -> None:
    path = folder / "large.jpg"
    shown = page.open(f"/?in=photos&image={path}")
    picture = detail(shown).locator(".picture img")
    expect(picture).to_have_js_property("naturalWidth", 1_000)
    expect(detail(shown).get_by_text("JPEG, ")).to_be_visible()
    with shown.context.expect_page() as other:
        detail(shown).get_by_role("link", name="Open").click()
    expect(other.value.locator("img")).to_have_js_property("naturalWidth", 2_400)
    other.value.close()
    name, data = saved(shown, detail(shown).get_by_role("link", name="Download"))
    assert (name, data) == ("large.jpg", path.read_bytes())


def test_a_link_and_the_id_are_copied(page: Tab, folder: Path) -> None:
    path = str(folder / "p3.png")
    shown = page.open(f"/?in=photos&q=white&image={path}")
    shown.context.grant_permissions(["clipboard-read", "clipboard-write"])
    read = "navigator.clipboard.readText()"
    detail(shown).get_by_role("button", name="Copy id").click()
    expect(detail(shown).get_by_role("button", name="Copied")).to_be_visible()
    assert shown.evaluate(read) == path
    detail(shown).get_by_role("button", name="Copy link").click()
    expect(detail(shown).get_by_role("button", name="Copied")).to_have_count(2)
    link = shown.evaluate(read)
    assert link.startswith(f"{page.url}/?in=photos&image=")
    shown.goto(link)
    expect(detail(shown).get_by_role("heading", level=2)).to_have_text("p3")


def test_a_page_that_is_not_secure_copies_too(page: Tab, folder: Path) -> None:
    shown = page.open(f"/?in=photos&image={folder / 'p3.png'}")
    shown.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    shown.evaluate(
        "document.addEventListener('copy', () => { window.copied = getSelection() + ''; })"
    )
    detail(shown).get_by_role("button", name="Copy id").click()
    expect(detail(shown).get_by_role("button", name="Copied")).to_be_visible()


def test_everything_of_one_image_by_keyboard(page: Tab, folder: Path) -> None:
    shown = page.open(f"/?in=photos&image={folder / 'p3.png'}")
    expect(detail(shown).get_by_role("link", name="Open")).to_be_visible()
    names = []
    for _ in range(12):
        shown.keyboard.press("Tab")
        names.append(shown.evaluate("document.activeElement.textContent"))
    reached = [
        name for name in names if name in ("Open", "Download", "Copy link", "Copy id", "Remove")
    ]
    assert reached == ["Open", "Download", "Copy link", "Copy id", "Remove"]


def test_one_image_is_removed_after_a_question_and_the_next_is_shown(
    page: Tab, service: InProcess
) -> None:
    shown = page.open("/?in=photos")
    shown.locator("#grid a.tile").nth(2).click()
    first, second = (shown.locator("#grid a.tile").nth(n).get_attribute("data-id") for n in (2, 3))
    detail(shown).get_by_role("button", name="Remove").click()
    question = shown.get_by_role("dialog", name="Remove this image?")
    question.get_by_role("button", name="Cancel").click()
    expect(detail(shown).get_by_role("button", name="Remove")).to_be_focused()
    detail(shown).get_by_role("button", name="Remove").click()
    question.get_by_role("button", name="Remove").click()
    expect(shown.locator("#detail h2")).to_have_attribute("title", second or "")
    assert shown.locator("#grid a.tile").count() == 11
    expect(shown.locator("#collection")).to_contain_text("photos · 11")
    with service.client() as client:
        assert first not in set(client.iter_ids("photos"))
    assert first is not None
    assert Path(first).name == "gone.png" or Path(first).exists()


def test_an_image_that_is_not_there_offers_nothing(page: Tab) -> None:
    shown = page.open("/?in=photos&image=/nope.jpg")
    expect(detail(shown).get_by_text("This image is not in the collection photos.")).to_be_visible()
    assert detail(shown).locator("button, a").all_inner_texts() == [""]  # Close
    expect(detail(shown).get_by_text("Neighbours")).to_have_count(0)


def test_a_file_that_is_gone_is_said_to_be_gone(page: Tab, folder: Path) -> None:
    shown = page.open(f"/?in=photos&image={folder / 'gone.png'}")
    expect(detail(shown).get_by_text("The file cannot be opened: the file")).to_be_visible()
    expect(detail(shown).get_by_role("link", name="Open")).to_have_count(0)
    expect(detail(shown).get_by_role("button", name="Copy id")).to_be_visible()
    expect(detail(shown).get_by_label("Neighbours").locator("a")).to_have_count(11)


def test_an_image_of_the_web_is_opened_where_it_is(page: Tab, service: InProcess) -> None:
    url = "https://example.org/cat.jpg"
    with service.client() as client:
        client.upsert("photos", [{"id": "web", "values": [1.0] * 64, "uri": url}])
    shown = page.open("/?in=photos&image=web")
    opens = detail(shown).get_by_role("link", name="Open")
    expect(opens).to_have_attribute("href", url)
    expect(opens).to_have_attribute("rel", "noopener noreferrer")
    expect(detail(shown).get_by_role("link", name="Download")).to_have_count(0)


def test_boxes_ranges_and_all_are_selected(page: Tab) -> None:
    shown = page.open("/?in=photos")
    page.names(12)
    expect(shown.locator("#selection")).to_be_hidden()
    shown.locator("#grid > li").nth(1).hover()
    box(shown, 1).click()
    expect(box(shown, 1)).to_be_checked()
    assert selected(shown) == "1 selected"
    box(shown, 5).click(modifiers=["Shift"])
    assert selected(shown) == "5 selected"
    shown.locator("#grid a.tile").nth(2).click()  # while some are selected, a click selects
    assert selected(shown) == "4 selected"
    expect(detail(shown)).to_be_hidden()
    shown.keyboard.press("x")
    shown.keyboard.press("Control+a")
    assert selected(shown) == "12 selected"
    expect(shown.get_by_role("button", name="Select all shown")).to_be_hidden()
    shown.keyboard.press("Escape")
    expect(shown.locator("#selection")).to_be_hidden()
    shown.locator("#grid a.tile").nth(3).focus()
    shown.keyboard.press("x")
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("Shift+X")
    assert selected(shown) == "3 selected"
    shown.get_by_label("Search by words").fill("something else")
    shown.keyboard.press("Control+a")  # of the words
    assert selected(shown) == "3 selected"
    shown.keyboard.press("Enter")
    expect(shown.locator("#selection")).to_be_hidden()


def test_a_finger_selects(browser: Browser, page: Tab) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with tab(browser, page.url, **phone) as touched:
        shown = touched.open("/?in=photos")
        touched.names(12)
        box(shown, 1).tap()
        shown.locator("#grid a.tile").nth(2).tap()
        assert selected(shown) == "2 selected"
        bar = shown.locator("#selection").bounding_box()
        assert bar is not None
        assert bar["x"] >= 0
        assert bar["x"] + bar["width"] <= 390


def test_a_zip_has_the_files_and_names_what_is_left_out(page: Tab, folder: Path) -> None:
    shown = page.open("/?in=photos")
    page.names(12)
    shown.keyboard.press("Control+a")
    name, data = saved(shown, shown.get_by_role("button", name="Download"))
    assert name == "photos-12-images.zip"
    dialog = shown.get_by_role("dialog", name="11 images in the zip")
    expect(dialog).to_contain_text("1 image left out:")
    expect(dialog).to_contain_text(f"{folder / 'gone.png'} the file")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for path in folder.iterdir():
            assert archive.read(path.name) == path.read_bytes()
        assert "gone.png" in archive.read("left-out.txt").decode()
    dialog.get_by_role("button", name="OK").click()
    expect(shown.locator("#selection .said")).to_have_text("12 selected")


def test_hundreds_of_photos_of_one_name_go_into_a_zip(
    page: Tab, service: InProcess, tmp_path: Path
) -> None:
    for number in range(MANY):
        (tmp_path / str(number % 5)).mkdir(exist_ok=True)
        photo(tmp_path / str(number % 5) / f"IMG_{number // 5:04}.jpg", number)
    with service.client() as client:
        client.index("many", tmp_path, wait=True)
    shown = page.open("/?in=many")
    while not shown.get_by_text(f"All {MANY} images").count():
        shown.mouse.wheel(0, 6_000)
        shown.wait_for_timeout(50)
    shown.keyboard.press("Control+a")
    assert selected(shown) == f"{MANY} selected"
    _, data = saved(shown, shown.get_by_role("button", name="Download"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(set(names)) == MANY
        assert {"IMG_0000.jpg", "IMG_0000 (5).jpg"} < set(names)
    shown.keyboard.press("Delete")
    shown.get_by_role("button", name=f"Remove {MANY} images").click()
    expect(shown.get_by_role("heading", name="many is empty")).to_be_visible()
    with service.client() as client:
        assert client.count("many") == 0
        client.delete_collection("many")


def test_a_download_is_stopped(page: Tab) -> None:
    shown = page.open("/?in=photos")
    page.names(12)
    shown.route("**/images/original**", lambda _: None)  # never answered
    shown.keyboard.press("Control+a")
    shown.get_by_role("button", name="Download").click()
    expect(shown.locator("#selection progress")).to_be_visible()
    shown.get_by_role("button", name="Stop").click()
    expect(shown.get_by_role("button", name="Download")).to_be_visible()
    expect(shown.locator("#selection .said")).to_have_text("12 selected")


@pytest.mark.parametrize("kind", ["JSON lines", "CSV"])
def test_ids_and_metadata_are_exported_as_they_can_be_indexed(
    page: Tab, service: InProcess, tmp_path: Path, folder: Path, kind: str
) -> None:
    path, odd = str(folder / "p1.png"), 'a "b", c\nd'
    rows = [
        {"id": odd, "uri": path, "label": "x,y", "year": 1_999, "note": " spaces "},
        {"id": "plain", "uri": path, "year": 2_001, "sold": True},
    ]
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with service.client() as client:
        client.create_collection("rows", fields={"year": "int", "sold": "bool"})
        assert client.index("rows", listed, wait=True).done == 2
    shown = page.open("/?in=rows")
    page.names(2)
    shown.keyboard.press("Control+a")
    shown.get_by_role("button", name="Export").click()
    name, data = saved(shown, shown.get_by_role("button", name=kind))
    if kind == "CSV":
        assert name == "rows-2-images.csv"
        cells = {row["id"]: row for row in csv.DictReader(io.StringIO(data.decode(), newline=""))}
        assert cells[odd] == {
            "id": odd, "uri": path, "label": "x,y", "year": "1999", "note": " spaces ", "sold": "",
        }  # fmt: skip
        assert cells["plain"]["sold"] == "true"
    else:
        assert name == "rows-2-images.jsonl"
        assert {row["id"]: row for row in map(json.loads, data.splitlines())} == {
            row["id"]: row for row in rows
        }
    with service.client() as client:
        client.delete_collection("rows")


def test_a_collection_is_made_and_deleted(page: Tab, service: InProcess) -> None:
    shown = page.open("/?in=photos")
    shown.get_by_role("link", name="Collections").click()
    photos = shown.locator('[data-collection="photos"]')
    expect(photos).to_contain_text("12 images")
    expect(photos).to_contain_text("cosine, 64 numbers")
    expect(photos).to_contain_text("year (int)")
    shown.get_by_role("button", name="New collection").click()
    shown.get_by_label("Name", exact=True).fill("new-one")
    shown.get_by_label("Metric").select_option("euclidean")
    shown.get_by_role("button", name="Add a field").click()
    shown.get_by_label("Name of the field").fill("price")
    shown.get_by_label("Type of the field").select_option("float")
    shown.get_by_role("button", name="Create").click()
    created = shown.locator('[data-collection="new-one"]')
    expect(created).to_contain_text("price (float)")
    with service.client() as client:
        collection = client.collection("new-one")
    assert (collection.metric, collection.fields) == ("euclidean", {"price": "float"})
    created.get_by_role("link", name="Show images").click()
    expect(shown.get_by_text("new-one is empty")).to_be_visible()
    shown.go_back()
    created.get_by_role("button", name="Delete").click()
    question = shown.get_by_role("dialog", name="Delete new-one?")
    last = question.get_by_role("button", name="Delete the collection")
    expect(last).to_be_disabled()
    question.get_by_role("textbox").fill("new-on")
    expect(last).to_be_disabled()
    question.get_by_role("textbox").fill("new-one")
    last.click()
    expect(created).to_have_count(0)
    with service.client() as client:
        assert "new-one" not in [collection.name for collection in client.collections()]


def test_what_is_wrong_with_a_new_collection_is_said(page: Tab) -> None:
    shown = page.open("/?in=photos&view=collections")
    shown.get_by_role("button", name="New collection").click()
    shown.get_by_label("Name", exact=True).fill("photos")
    shown.get_by_role("button", name="Create").click()
    problem = shown.locator("#collection-problem")
    expect(problem).to_have_text("There is a collection photos already.")
    shown.get_by_label("Name", exact=True).fill("other")
    shown.get_by_label("Model").fill("no/such-model")
    shown.get_by_role("button", name="Create").click()
    expect(problem).to_contain_text("no/such-model")


def test_keys_are_offered_what_they_may_do(browser: Browser, keyed: InProcess) -> None:
    for key, writes, admin in (("may-read", 0, 0), ("may-write", 1, 0), ("may-all", 1, 1)):
        with tab(browser, keyed.url) as opened:
            shown = with_key(opened, key, "/?in=photos&view=collections")
            expect(shown.locator("#collections .job")).to_have_count(1)
            expect(shown.locator("html")).to_have_class(
                re.compile("no-admin") if not admin else re.compile("^(?!.*no-admin)")
            )
            buttons = shown.get_by_role("button")
            expect(buttons.filter(has_text="New collection")).to_have_count(writes)
            expect(shown.locator("#collections").get_by_role("button")).to_have_count(admin)
            shown.get_by_role("link", name="Search", exact=True).click()
            opened.names(11)
            shown.keyboard.press("Control+a")
            bar = shown.locator("#selection").get_by_role("button")
            expect(bar.filter(has_text="Remove")).to_have_count(writes)
            expect(bar.filter(has_text="Download")).to_have_count(1)
            shown.keyboard.press("Delete")
            expect(shown.locator("dialog[open]")).to_have_count(writes)
            for _ in range(2):
                shown.keyboard.press("Escape")
            opened.page.locator("#grid a.tile").first.click()
            expect(detail(shown).get_by_role("link", name="Download")).to_be_visible()
            expect(detail(shown).get_by_role("button", name="Remove")).to_have_count(writes)


def test_with_a_key_files_are_opened_and_saved(
    browser: Browser, keyed: InProcess, folder: Path
) -> None:
    path = folder / "large.jpg"
    with tab(browser, keyed.url) as opened:
        shown = with_key(opened, "may-read", f"/?in=photos&image={path}")
        expect(detail(shown).locator(".picture img")).to_have_js_property("naturalWidth", 1_000)
        name, data = saved(shown, detail(shown).get_by_role("link", name="Download"))
        assert (name, data) == ("large.jpg", path.read_bytes())
        with shown.context.expect_page() as other:
            detail(shown).get_by_role("link", name="Open").click()
        expect(other.value.locator("img")).to_have_js_property("naturalWidth", 2_400)
        shown.keyboard.press("Escape")
        shown.keyboard.press("Control+a")
        _, data = saved(shown, shown.get_by_role("button", name="Download"))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.read("large.jpg") == path.read_bytes()


def test_aliases_are_shown_with_their_collection(page: Tab, service: InProcess) -> None:
    with service.client() as client:
        client.set_alias("snaps", "photos")
        try:
            shown = page.open("/?in=photos&view=collections")
            expect(shown.locator('[data-collection="photos"]')).to_contain_text("snaps")
        finally:
            client.delete_alias("snaps")


def test_what_is_asked_twice_before_the_first_answer_is_answered_twice(page: Tab) -> None:
    """The page asks for the collections early; who opens them at once asks again."""
    held: list[Route] = []
    is_held = True
    page.page.route(
        "**/v1/collections", lambda route: held.append(route) if is_held else route.continue_()
    )
    page.page.goto(f"{page.url}/?in=photos", wait_until="commit")
    shown = page.page
    link = shown.get_by_role("link", name="Collections")
    expect(link).to_have_attribute("href", re.compile("in=photos"))  # the scripts have run
    link.click()
    is_held = False
    for route in held:
        route.continue_()
    expect(shown.locator('[data-collection="photos"]')).to_contain_text("12 images")
    expect(shown.locator("#collections-more")).to_be_empty()


def test_a_migration_shows_what_both_models_find_side_by_side(
    browser: Browser, folder: Path
) -> None:
    with (
        InProcess(dim=64, more={"hash:32": HashEmbedder(32)}, source_roots=[folder]) as service,
        service.client() as client,
        tab(browser, service.url) as page,
    ):
        client.index("photos", folder, wait=True)
        assert client.collection("photos").migration is None
        client.start_migration("photos", "hash:32")
        eventually(lambda: client.migration("photos").comparison, 60, "both models are compared")
        assert client.collection("photos").migration == "ready"
        shown = page.open("/?in=photos&view=collections")
        shown.get_by_role("button", name="Migration").click()
        compared = shown.locator("#collections .migration")
        expect(compared).to_contain_text("From hash:64 to hash:32: all images are copied")
        expect(compared).to_contain_text("of the ten nearest images in common")
        example = compared.locator(".compared").first
        expect(example.locator(".side")).to_have_count(3)
        expect(example.locator("img")).to_have_count(1 + 5 + 5)
        for picture in example.locator("img").all():
            picture.scroll_into_view_if_needed()
            expect(picture).to_have_js_property("complete", True)
            assert picture.evaluate("it => it.naturalWidth") in (90, 256)
        assert violations(shown) == []
        shown.set_viewport_size({"width": 390, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        shown.get_by_role("button", name="Migration").click()
        expect(compared).to_be_hidden()


def one_image(page: Page) -> None:
    page.locator("#grid a.tile").first.click()
    expect(detail(page).get_by_role("link", name="Download")).to_be_visible()


def a_selection(page: Page) -> None:
    page.keyboard.press("Control+a")


def a_question(page: Page) -> None:
    page.keyboard.press("Control+a")
    page.get_by_role("button", name="Export").click()


def the_collections(page: Page) -> None:
    page.get_by_role("link", name="Collections").click()
    page.get_by_role("button", name="New collection").click()
    page.get_by_role("button", name="Add a field").click()


def a_deletion(page: Page) -> None:
    page.get_by_role("link", name="Collections").click()
    page.locator("#collections").get_by_role("button", name="Delete").first.click()


SIGHTS = [one_image, a_selection, a_question, the_collections, a_deletion]


@pytest.mark.parametrize("look", SIGHTS, ids=lambda look: look.__name__)
def test_axe_finds_nothing_and_nothing_sticks_out(page: Tab, look: Any) -> None:
    shown = page.open("/?in=photos")
    page.names(12)
    look(shown)
    page.settled()
    for scheme in SCHEMES:
        shown.emulate_media(color_scheme=scheme)
        assert violations(shown) == [], scheme
    for width in (1440, 834, 390, 320):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        for dialog in shown.locator("dialog[open]").all():
            assert dialog.evaluate("it => it.scrollWidth <= it.clientWidth"), width
        bar = shown.locator("#selection").bounding_box()
        assert bar is None or (bar["x"] >= 0 and bar["x"] + bar["width"] <= width)
