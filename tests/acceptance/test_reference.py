"""The page about the HTTP interface in a browser."""

import httpx
from playwright.sync_api import Browser, expect

from clipfleet.testing import MemoryService


def operations(url: str) -> int:
    """The number of operations in the document."""
    paths = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    return sum(len(path) for path in paths.values())


def test_it_shows_every_operation_and_sends_requests_without_any_other_host(
    browser: Browser,
) -> None:
    with MemoryService(root_path="/clip") as service:
        page = browser.new_page()
        hosts, complaints = set[str](), list[str]()
        page.on("request", lambda sent: hosts.add(sent.url.split("/")[2]))
        page.on("console", lambda line: complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{service.url}/clip/docs")
        expect(page.locator(".opblock")).to_have_count(operations(service.url))
        page.locator(".opblock", has_text="List collections").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        answer = page.locator(".live-responses-table .response .response-col_status")
        expect(answer.first).to_contain_text("200")
        assert hosts == {service.url.removeprefix("http://")}
        assert complaints == []
