"""Jobs on the web page in a real Chromium: progress, failures, and adding images."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from clipfleet import Client
from clipfleet.common.http.schemas import JobList
from support.browser import Tab
from support.services import eventually
from support.stack import Up, finished
from support.webserver import Held, body, site

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples"


@pytest.fixture
def folder(carried_stack: Up, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of this test alone, and a collection of the same name, deleted at the end."""
    path = carried_stack.beside(request.node.name.removeprefix("test_")[:60])
    path.mkdir()
    with carried_stack.client() as client:
        client.create_collection(path.name)
        yield path
        client.delete_collection(path.name)


def copies(folder: Path, count: int) -> list[Path]:
    samples = sorted(SAMPLES.rglob("*.png"))[:count]
    return [Path(shutil.copy(path, folder / path.name)) for path in samples]


@pytest.fixture
def held() -> Held:
    """An image that keeps its job running until the test releases it."""
    return Held(body((SAMPLES / "music" / "guitar.png").read_bytes()))


@pytest.fixture
def held_url(held: Held) -> Iterator[str]:
    with site({"/held.png": held}) as web:
        try:
            yield f"{web.url}/held.png"
        finally:
            held.open.set()


def listing(folder: Path, *uris: str) -> Path:
    listed = folder / "list.txt"
    listed.write_text("\n".join(uris))
    return listed


def test_progress_while_70_images_go_in(
    page: Tab, carried_stack: Up, folder: Path, held_url: str, held: Held
) -> None:
    """The page shows fewer images at first."""
    listed = listing(folder, *map(str, sorted(SAMPLES.rglob("*.png"))[:69]), held_url)
    shown = page.open(f"/?in={folder.name}&view=jobs")
    with carried_stack.client() as client:
        started = client.index(folder.name, listed)
    row = shown.locator(f'[data-job="{started.id}"]')
    shown.reload()
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("of 70 images")
    expect(shown.get_by_role("link", name="Jobs, 1 at work")).to_be_visible()
    expect(row.get_by_role("progressbar")).to_have_attribute("max", "70")
    held.open.set()
    expect(row).to_contain_text("succeeded")
    expect(row.locator(".numbers")).to_contain_text("70 images")
    expect(row.get_by_role("progressbar")).to_be_hidden()
    row.get_by_role("link", name="Show images").click()
    page.names(60)
    expect(shown.locator("#filters .what")).to_have_text(f"job_id is {started.id}")


def test_how_a_job_looks_half_way(page: Tab, carried_stack: Up, folder: Path) -> None:
    """The test changes the service's answer, since a worker may count 200 images at once."""
    copies(folder, 2)
    with carried_stack.client() as client:
        job = finished(client, client.index(folder.name, folder).id)
    half = job.model_copy(update={"state": "running", "finished_at": None, "total": 2_000})
    some = {"done": 900, "skipped": 90, "failed": 10, "rate": 34.2, "eta_s": 29.24}
    body = JobList(jobs=[half.model_copy(update=some)]).model_dump_json()
    answers = iter([body])

    def once(route: Route) -> None:
        if answer := next(answers, ""):
            route.fulfill(body=answer)
        else:
            route.abort()  # what comes later comes from the stream

    page.page.route("**/v1/jobs?*", once)
    news = half.model_copy(update={**some, "done": 910}).model_dump_json()
    stream = f"retry: 600000\nevent: job\ndata: {news}\n\n"
    page.page.route(
        f"**/v1/jobs/{job.id}/events",
        lambda route: route.fulfill(body=stream, content_type="text/event-stream"),
    )
    row = page.open(f"/?in={folder.name}&view=jobs").locator(".job")
    numbers = "1,010 of 2,000 images · 10 failed · 90 were in · 34 images/s · 29 s left"
    expect(row.locator(".numbers")).to_have_text(numbers)
    expect(row.get_by_role("progressbar")).to_have_attribute("max", "2000")


def test_a_failed_image_says_why_and_is_tried_again(
    page: Tab, carried_stack: Up, folder: Path
) -> None:
    good, *_ = copies(folder, 3)
    broken = folder / "broken.png"
    broken.write_bytes(b"no image at all")
    with carried_stack.client() as client:
        old = finished(client, client.index(folder.name, folder).id)
    shown = page.open(f"/?in={folder.name}&view=jobs")
    row = shown.locator(f'[data-job="{old.id}"]')
    expect(row).to_contain_text("partial")
    row.get_by_text("1 failure").click()
    expect(row.get_by_role("row").nth(1)).to_contain_text("broken.png")
    expect(row.get_by_role("row").nth(1)).to_contain_text(
        "the file is damaged or contains no image of a known format"
    )

    shutil.copy(good, broken)
    row.get_by_role("button", name="Retry the failures").click()
    retry = shown.locator(".job").filter(has_text=f"tries the failures of {old.id} again")
    expect(retry).to_contain_text("succeeded")
    expect(retry).to_contain_text("1 image")


def test_a_job_is_cancelled(page: Tab, carried_stack: Up, folder: Path, held_url: str) -> None:
    shown = page.open(f"/?in={folder.name}&view=jobs")
    with carried_stack.client() as client:
        started = client.index(folder.name, listing(folder, held_url))
    row = shown.locator(f'[data-job="{started.id}"]')
    shown.reload()
    row.get_by_role("button", name="Cancel").click()
    expect(row).to_contain_text("cancelled")


def test_a_job_that_failed_says_why(page: Tab, carried_stack: Up, folder: Path) -> None:
    (folder / "list.jsonl").write_text("this is no JSON")
    with carried_stack.client() as client:
        failed = finished(client, client.index(folder.name, folder / "list.jsonl").id)
    shown = page.open(f"/?in={folder.name}&view=jobs")
    row = shown.locator(f'[data-job="{failed.id}"]')
    expect(row).to_contain_text(failed.state)
    expect(row.locator(".said, .failures").filter(visible=True)).not_to_have_count(0)


def test_a_job_says_what_it_left_out(page: Tab, carried_stack: Up, folder: Path) -> None:
    copies(folder, 1)
    for name in ("a.psd", "b.PSD", "c.mov", "notes"):
        (folder / name).write_bytes(b"x")
    with carried_stack.client() as client:
        started = client.index(folder.name, folder, wait=True)
        assert started.left_out == {".psd": 2, "": 1, ".mov": 1}
    row = page.open(f"/?in={folder.name}&view=jobs").locator(f'[data-job="{started.id}"]')
    expect(row).to_contain_text("4 files left out: 2 .psd, 1 without suffix, 1 .mov")


def test_a_dropped_folder_goes_in_with_its_names_as_labels(page: Tab, folder: Path) -> None:
    for label in ("animals", "music"):
        (folder / label).mkdir()
        for path in sorted((SAMPLES / label).glob("*.png"))[:3]:
            shutil.copy(path, folder / label)
    (folder / "notes.txt").write_text("no image")
    shown = page.open(f"/?in={folder.name}")
    expect(shown.get_by_role("heading", name=f"{folder.name} is empty")).to_be_visible()
    page.drop([folder], "[data-zone=add]")
    dialog = shown.get_by_role("dialog", name="Add images")
    expect(dialog).to_contain_text("6 images")
    expect(dialog).to_contain_text("1 file left out")
    dialog.get_by_role("button", name="Add 6 images").click()
    tray = shown.get_by_role("complementary", name="Upload")
    expect(tray).to_contain_text("6 images sent")
    expect(tray).to_contain_text("6 in.")
    expect(shown.locator("#grid a")).to_have_count(6)
    expect(shown.locator("#grid a .label").filter(has_text="music")).to_have_count(3)


def test_two_files_of_one_name_are_two_images(page: Tab, folder: Path) -> None:
    shown = page.open(f"/?in={folder.name}")
    shown.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            for (const text of ["first", "other", "first"]) {
                const options = { type: "image/jpeg", lastModified: text.charCodeAt(0) };
                dataTransfer.items.add(new File([text], "1.jpg", options));
            }
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    shown.get_by_role("dialog", name="Add images").get_by_role(
        "button", name="Add 2 images"
    ).click()
    expect(shown.get_by_role("complementary", name="Upload")).to_contain_text("0 in, 2 failed.")
    with Client(page.url) as client:
        (job,) = client.jobs(collection=folder.name)
        failures = client.failures(job).failures
    assert {failure.id for failure in failures} == {"1.jpg", "1 (2).jpg"}


def planned(client: Client, collection: str) -> list[int]:
    return sorted(job.total for job in client.jobs(collection=collection))


def test_a_thousand_files_go_in_one_job(page: Tab, carried_stack: Up, folder: Path) -> None:
    """A request takes 500 files. They are no images, so the workers fail them quickly."""
    shown = page.open(f"/?in={folder.name}")
    shown.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            for (let n = 0; n < 1001; n++) {
                dataTransfer.items.add(new File(["x"], `photo-${n}.jpg`, { type: "image/jpeg" }));
            }
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    dialog = shown.get_by_role("dialog", name="Add images")
    expect(dialog).to_contain_text("1,001 images, 1.0 kB.")
    first: list[Route] = []
    shown.route("**/images", lambda route: route.continue_() if first else first.append(route))
    dialog.get_by_role("button", name="Add 1,001 images").click()
    tray = shown.get_by_role("complementary", name="Upload")
    expect(tray).to_contain_text("Sending 1,001 images")
    while not first:
        shown.wait_for_timeout(20)
    first[0].continue_()
    expect(tray).to_contain_text("1,001 images sent")
    with carried_stack.client() as client:
        eventually(lambda: planned(client, folder.name) == [1_001], 120, "the job is planned")
    tray.get_by_role("link", name="Show jobs").click()
    expect(shown.locator(".job", has_text=folder.name)).to_have_count(1)
