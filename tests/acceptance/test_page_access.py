"""Accessibility of the web page by axe-core, in light and dark, from phone to desktop."""

from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from support.browser import Tab, violations

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def results(page: Page) -> None:
    expect(page.locator("#grid a").first).to_contain_text("guitar")


def a_query_of_several_parts(page: Page) -> None:
    page.get_by_label("Search by words").fill("a drum")
    page.get_by_role("button", name="not", exact=True).click()
    page.get_by_label("Search by words").fill("a guitar")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Weight of a drum")).to_be_visible()
    page.get_by_role("button", name="Filter", exact=True).click()


def what_is_avoided_next(page: Page) -> None:
    page.get_by_role("button", name="not", exact=True).click()
    expect(page.get_by_placeholder("what to avoid")).to_be_focused()


def groups_without_near_duplicates(page: Page) -> None:
    page.get_by_role("button", name="View", exact=True).click()
    page.get_by_label("Groups").select_option("label")
    page.get_by_label("Near-duplicates").select_option("0.97")
    expect(page.locator("#filters .chip")).to_have_count(2)


def sorted_by_name(page: Page) -> None:
    page.get_by_label("Search by words").fill("")
    page.keyboard.press("Enter")
    page.get_by_label("Sort").select_option("id")
    expect(page.locator("#grid a .name").first).to_have_text("accordion")


def one_image(page: Page) -> None:
    page.locator("#grid a").first.click()
    expect(page.get_by_label("Neighbours").locator("a")).to_have_count(12)


def adding(page: Page) -> None:
    page.get_by_role("button", name="Add images").click()
    page.locator("#upload-labels").select_option("one")


def keys(page: Page) -> None:
    page.locator("h1 a").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Help")).to_be_visible()


def jobs(page: Page) -> None:
    page.get_by_role("link", name="Jobs").click()
    expect(page.locator(".job").first).to_be_visible()


def nothing_found(page: Page) -> None:
    page.goto(page.url + "&where.label.eq=nowhere")
    expect(page.get_by_text("Nothing passes the filters")).to_be_visible()


SIGHTS = [
    results, a_query_of_several_parts, what_is_avoided_next, groups_without_near_duplicates,
    sorted_by_name, one_image, adding, keys, jobs, nothing_found,
]  # fmt: skip


@pytest.mark.parametrize("look", SIGHTS, ids=lambda look: look.__name__)
def test_axe_finds_nothing_serious_and_nothing_sticks_out_at_the_side(
    page: Tab, drawings: str, look: Callable[[Page], None]
) -> None:
    shown = page.open(f"/?in={drawings}&q=a+guitar")
    results(shown)
    look(shown)
    page.settled()  # meanwhile the images of before are dimmed
    for scheme in SCHEMES:
        shown.emulate_media(color_scheme=scheme)
        assert violations(shown) == [], scheme
    for width in (1440, 820, 390, 320):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        for dialog in shown.locator("dialog[open]").all():
            assert dialog.evaluate("it => it.scrollWidth <= it.clientWidth"), width


def test_it_speaks_of_what_changed(page: Tab, drawings: str) -> None:
    shown = page.open(f"/?in={drawings}&q=a+guitar")
    announcement = shown.locator("#said")
    expect(announcement).to_have_text("Images found, nearest first")
    shown.get_by_label("Search by words").fill("")
    shown.keyboard.press("Enter")
    expect(announcement).to_have_text("Images of the collection")
