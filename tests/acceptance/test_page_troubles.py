"""Errors on the web page in a real Chromium: it says what is wrong, and what to do."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from support.browser import Tab
from support.stack import Up, finished

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples"
EVIL = '<script>alert(1)<script><img src=x onerror="alert(2)">'


def test_the_service_is_away_and_comes_back(page: Tab, drawings: str) -> None:
    page.page.route("**/v1/**", lambda route: route.abort())
    shown = page.open(f"/?in={drawings}")
    expect(shown.get_by_role("heading", name="The service is away")).to_be_visible()
    expect(shown.get_by_text("Is clipfleet still running?").first).to_be_visible()
    page.page.unroute("**/v1/**")
    shown.get_by_role("button", name="Ask now").click()
    page.names(60)
    expect(shown.get_by_text("The service is away")).to_be_hidden()


def test_it_asks_again_by_itself_when_told_to_come_back(page: Tab, drawings: str) -> None:
    urls = []

    def first_refused(route: Route) -> None:
        urls.append(route.request.url)
        if len(urls) > 1:
            route.continue_()
            return
        problem = json.dumps({"detail": "no worker serves the model"})
        route.fulfill(status=503, body=problem, headers={"Retry-After": "1"})

    page.page.route("**/search", first_refused)
    shown = page.open(f"/?in={drawings}")
    expect(shown.get_by_role("heading", name="The service is not ready")).to_be_visible()
    expect(shown.locator("#more")).to_contain_text("no worker serves the model")
    page.names(60)


@pytest.mark.parametrize("query", ["", "&q=a+guitar"])
def test_going_away_while_one_scrolls_keeps_what_is_shown(
    page: Tab, drawings: str, query: str
) -> None:
    urls = []

    def only_the_first_page(route: Route) -> None:
        urls.append(route.request.url)
        if len(urls) > 1:
            route.abort()
        else:
            route.continue_()

    page.page.route("**/search", only_the_first_page)
    shown = page.open(f"/?in={drawings}{query}")
    page.names(60)
    shown.locator("#grid a").last.scroll_into_view_if_needed()
    expect(shown.get_by_role("heading", name="The service is away")).to_be_attached()
    assert len(page.names(60)) == 60


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damaged.png", "damaged.png: the file is damaged or contains no image of a known format"),
        ("notes.txt", "notes.txt is no image."),
    ],
)
def test_a_file_that_is_no_image(
    page: Tab, drawings: str, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / name).write_text("no image")
    shown = page.open(f"/?in={drawings}")
    before = page.names(60)
    page.drop([tmp_path / name], "[data-zone=search]")
    expect(shown.get_by_role("alert").filter(visible=True)).to_contain_text(message)
    expect(shown.locator(".chip")).to_have_count(0)
    assert page.names(60) == before


def test_nothing_from_data_is_markup(page: Tab, carried_stack: Up) -> None:
    rows = [
        {"id": EVIL, "uri": str(SAMPLES / "food" / "apple.png"), "label": EVIL, "note": EVIL},
        {"id": f"{EVIL}.png", "uri": f"/nowhere/{EVIL}.png"},
        {"id": "scheme", "uri": "javascript:alert(3)"},
    ]
    listed = carried_stack.beside("evil.jsonl")
    listed.write_text("\n".join(json.dumps(row) for row in rows))
    with carried_stack.client() as client:
        client.create_collection("evil", fields={"note": "string"})
        job = finished(client, client.index("evil", listed).id)
        assert (job.done, job.failed) == (1, 2)
        dim = client.collection("evil").dim
        with carried_stack.http() as http:
            own = {"id": "own", "uri": "javascript:alert(4)", "values": [1.0] * dim}
            answer = http.post("/v1/collections/evil/vectors", json={"vectors": [own]})
            assert answer.status_code == 200
    alerts: list[str] = []
    page.page.on("dialog", lambda dialog: alerts.append(dialog.message))

    shown = page.open("/?in=evil&where.note.eq=" + "%3Cimg%20src=x%20onerror=alert(5)%3E")
    expect(shown.get_by_text("Nothing passes the filters")).to_be_visible()
    shown.get_by_role("button", name="Remove the filters").click()
    expect(shown.locator("#grid a")).to_have_count(2)
    tile = shown.locator("#grid a").filter(has_text="<script>")
    expect(tile).to_have_attribute("title", EVIL)
    tile.click()
    expect(shown.locator(".known dd").filter(has_text=EVIL)).to_have_count(3)
    shown.get_by_role("button", name="Add to the search").click()
    expect(shown.locator("#terms .what")).to_have_text(EVIL)
    shown.goto(f"{page.url}/?in=evil&image=own")
    expect(shown.locator(".known")).to_contain_text("javascript:alert(4)")
    expect(shown.locator(".known a")).to_have_count(0)
    shown.goto(f"{page.url}/?in=evil&view=jobs")
    row = shown.locator(f'[data-job="{job.id}"]')
    row.get_by_text("2 failures").click()
    expect(row.locator("tbody")).to_contain_text("<script>")
    assert alerts == []
    assert shown.locator("main script, main img[src=x]").count() == 0
    with carried_stack.client() as client:
        client.delete_collection("evil")


def test_a_collection_that_is_not_there(page: Tab, drawings: str) -> None:
    shown = page.open("/?in=nowhere")
    expect(shown.get_by_role("heading", name="No such collection")).to_be_visible()
    shown.get_by_role("combobox", name="Collection", exact=True).select_option(drawings)
    page.names(60)


def test_the_first_visit_says_how_to_begin(page: Tab) -> None:
    page.page.route("**/v1/collections", lambda route: route.fulfill(body='{"collections": []}'))
    shown = page.open("/")
    expect(shown.get_by_role("heading", name="No collection yet")).to_be_visible()
    shown.locator("#more").get_by_role("button", name="Add images").click()
    expect(shown.get_by_role("dialog", name="Add images")).to_be_visible()


def test_a_filter_that_the_service_refuses(page: Tab, drawings: str) -> None:
    shown = page.open(f"/?in={drawings}&where.letters.gte=many")
    expect(shown.get_by_role("heading", name="This cannot be searched for")).to_be_visible()
    expect(shown.locator("#more")).to_contain_text("field letters must be int, not str")
