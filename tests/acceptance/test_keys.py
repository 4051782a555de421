"""A service with API keys: refusals, tenants, limits, rotation, and the web page."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from clipfleet import Client
from clipfleet.cli import app
from clipfleet.errors import NotFound, ProblemError
from support import stack
from support.browser import Tab, tab, violations
from support.chaos import stopped
from support.services import eventually
from support.stack import HASH_MODEL, Up, finished, up

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples" / "animals"
PICTURES = sorted(SAMPLES.glob("*.png"))[:3]
# Keys from before the start, by name: what `clipfleet keys create` gets beside it.
OPTIONS = {
    "terminal": (),
    "steady": (),
    "slow": ("--requests-per-minute", "2"),
    "patient": ("--requests-per-minute", "1"),
    "bygone": ("--expires", "1d"),
    "passing": ("--expires", "1d"),
    "visitor": ("--scope", "write", "--collection", "page-*"),
    **{
        name: ("--scope", "write", "--collection", f"{name}-*")
        for name in ("acme", "rival", "page", "stream")
    },
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    """The key of each name in `OPTIONS`; that of `bygone` has expired."""
    secrets = {}
    for name, options in OPTIONS.items():
        created = CliRunner().invoke(
            app, ["keys", "create", name, "--file", str(file), *options], catch_exceptions=False
        )
        assert created.exit_code == 0, created.output
        secrets[name] = created.stdout.strip()
    expire(file, "bygone")
    return secrets


def expire(file: Path, name: str) -> None:
    """Write into the keys file that a key expired long ago."""
    document = json.loads(file.read_text())
    (record,) = [key for key in document["keys"] if key["name"] == name]
    record["expires_at"] = "2020-01-31T00:00:00Z"
    file.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def keyed(file: Path, keys: dict[str, str], tmp_path_factory: Any) -> Iterator[Up]:
    assert keys
    settings = {"CLIPFLEET_KEYS_FILE": str(file), "CLIPFLEET_CALL_TIMEOUT_S": "3"}
    with up(tmp_path_factory.mktemp("up"), HASH_MODEL, **settings) as running:
        yield running


def client(keyed: Up, key: str) -> Client:
    return Client(keyed.url, api_key=key, retries=0)


def active_keys(keyed: Up, key: str) -> bool:
    with keyed.http() as http:
        return http.get("/v1/jobs", headers=bearer(key)).status_code != 401


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def tenant(keyed: Up, keys: dict[str, str]) -> Callable[[str], Client]:
    """Return a client for a key that may write collections with its name as a prefix."""
    return lambda name: client(keyed, keys[name])


def refusal(ask: Callable[[], Any]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        ask()
    return caught.value


def test_who_has_no_key_that_is_in_force_is_told_why(keyed: Up, keys: dict[str, str]) -> None:
    assert [slug(keyed, key) for key in ("", "cf_wrong")] == ["unauthorized", "unauthorized"]
    assert slug(keyed, keys["bygone"]) == "key-expired"


def test_a_key_that_expires_while_the_service_runs_is_refused(
    keyed: Up, keys: dict[str, str], file: Path
) -> None:
    assert active_keys(keyed, keys["passing"])
    expire(file, "passing")
    eventually(lambda: not active_keys(keyed, keys["passing"]), 30, "the end of the key")
    assert slug(keyed, keys["passing"]) == "key-expired"


def slug(keyed: Up, key: str) -> str:
    """Return why a key is refused."""
    with client(keyed, key) as asking:
        problem = refusal(asking.collections)
    assert problem.status == 401
    return problem.slug


def test_the_command_line_sends_its_key_and_says_when_it_needs_one(
    keyed: Up, keys: dict[str, str]
) -> None:
    without = keyed.cli("collections", "list")
    assert without.returncode == 1
    assert "an API key is needed" in without.stderr
    key = keys["terminal"]
    assert keyed.cli("collections", "list", CLIPFLEET_API_KEY=key).returncode == 0
    refused = keyed.cli("collections", "create", "photos", "--api-key", key)
    assert "this needs a key with the scope 'write'" in refused.stderr


def test_tenants_do_not_see_each_other(tenant: Callable[[str], Client]) -> None:
    with tenant("acme") as acme, tenant("rival") as rival:
        acme.create_collection("acme-cats")
        job = finished(acme, acme.upload("acme-cats", PICTURES).id)
        assert job.state == "succeeded"
        assert [collection.name for collection in acme.collections()] == ["acme-cats"]
        assert acme.search(id=PICTURES[0].name, collection="acme-cats").matches

        assert rival.collections() == []
        assert list(rival.jobs()) == []
        for there, nowhere in (
            (lambda: rival.collection("acme-cats"), lambda: rival.collection("acme-dogs")),
            (lambda: rival.job(job), lambda: rival.job("0" * 16)),
            (lambda: rival.cancel(job), lambda: rival.cancel("0" * 16)),
        ):
            hidden, absent = refusal(there), refusal(nowhere)
            assert isinstance(hidden, NotFound)
            assert hidden.problem.keys() == absent.problem.keys()
            assert hidden.title == absent.title
        assert refusal(lambda: rival.create_collection("acme-cats")).status == 403
        assert refusal(lambda: rival.create_collection("acme-dogs")).status == 403
        assert refusal(lambda: acme.delete_collection("acme-cats")).status == 403

        rival.create_collection("rival-cats")
        mine = acme.upload("acme-cats", PICTURES[:1], idempotency_key="the-same")
        theirs = rival.upload("rival-cats", PICTURES[:1], idempotency_key="the-same")
        assert mine.id != theirs.id
        assert [listed.id for listed in rival.jobs()] == [theirs.id]
        for owner, upload in ((acme, mine), (rival, theirs)):
            finished(owner, upload.id)


def test_a_key_is_rotated_and_revoked_while_the_service_runs(keyed: Up, file: Path) -> None:
    def create(name: str) -> str:
        """Create a key as an operator does."""
        created = stack.cli("keys", "create", name, "--file", str(file))
        assert created.returncode == 0, created.stderr
        return created.stdout.strip()

    gateway = keyed.part("gateway").pid
    old = create("shop")
    eventually(lambda: active_keys(keyed, old), 30, "the first key's being in force")
    new = create("shop-2")
    eventually(lambda: active_keys(keyed, new), 30, "the second key's being in force")
    assert active_keys(keyed, old), "both are, while clients move"
    assert stack.cli("keys", "revoke", "shop", "--file", str(file)).returncode == 0
    eventually(lambda: not active_keys(keyed, old), 30, "the first key's end")
    assert active_keys(keyed, new)
    assert keyed.part("gateway").pid == gateway


def test_a_broken_file_takes_no_key_away(keyed: Up, keys: dict[str, str], file: Path) -> None:
    key = keys["steady"]
    whole = file.read_text()
    file.write_text(whole[:-20])
    try:
        eventually(
            lambda: active_keys(keyed, key) and "stay in force" in keyed.log("gateway"),
            30,
            "the log's line",
        )
    finally:
        file.write_text(whole)
    assert key not in keyed.log("gateway")


def test_a_key_that_asks_too_often_waits(keyed: Up, keys: dict[str, str]) -> None:
    with keyed.http() as http:
        answers = [http.get("/v1/jobs", headers=bearer(keys["slow"])) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    last = answers[-1]
    assert 1 <= int(last.headers["retry-after"]) <= 30
    assert last.headers["ratelimit-policy"] == '"key";q=2;w=60'
    assert last.json()["detail"] == "the limit of this key is 2 requests a minute"


def test_while_redis_is_away_the_gateway_counts_for_itself(keyed: Up, keys: dict[str, str]) -> None:
    with stopped(keyed.part("valkey")), keyed.http() as http:
        answers = [http.get("/v1/jobs", headers=bearer(keys["patient"])) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 429]
    eventually(keyed.ready, 60, "the service's coming back")


def test_keys_that_cannot_be_used_are_said_at_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    command = ("up", "--data", str(folder))
    missing = stack.cli(*command, CLIPFLEET_KEYS_FILE=str(tmp_path / "none.json"))
    assert missing.returncode == 1
    assert "none.json cannot be read: No such file" in missing.stderr
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"keys": [{"name": "a", "key": "cf_secret"}]}))
    refused = stack.cli(*command, CLIPFLEET_KEYS_FILE=str(broken))
    assert refused.returncode == 1
    assert "broken.json cannot be used: keys.0" in refused.stderr
    assert "cf_secret" not in refused.stderr
    assert not folder.exists()


@pytest.fixture
def shown(browser: Browser, keyed: Up) -> Iterator[Tab]:
    with tab(browser, keyed.url) as shown:
        yield shown


def give(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def test_the_page_asks_for_a_key_and_forgets_it(
    shown: Tab, tenant: Callable[[str], Client], keys: dict[str, str]
) -> None:
    with tenant("page") as owner:
        owner.create_collection("page-cats")
        finished(owner, owner.upload("page-cats", PICTURES).id)
    key = keys["visitor"]
    page = shown.open("/?in=page-cats")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    assert violations(page) == []
    give(page, "cf_wrong")
    expect(dialog.get_by_role("alert")).to_have_text("there is no such API key")
    give(page, key)
    expect(dialog).to_be_hidden()
    pictures = page.locator("#grid img")
    expect(pictures).to_have_count(3)
    eventually(lambda: pictures.evaluate_all("all => all.every(it => it.naturalWidth)"), 30, "seen")
    assert all(source.startswith("blob:") for source in sources(page))

    page.reload()
    expect(pictures).to_have_count(3)
    page.get_by_role("button", name="Add images").click()
    page.locator("#files").set_input_files(sorted(SAMPLES.glob("*.png"))[5])
    page.get_by_role("button", name="Add 1 image").click()
    expect(page.get_by_role("complementary", name="Upload")).to_contain_text("1 image sent")
    page.get_by_role("link", name="Jobs").first.click()
    expect(page.locator(".job").first).to_contain_text("succeeded")

    page.get_by_role("button", name="Forget the API key").click()
    expect(dialog).to_be_visible()
    assert key not in page.evaluate("JSON.stringify([sessionStorage, localStorage])")
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("link", name="Search").first.click()
    page.get_by_role("button", name="Enter the key").click()
    give(page, key)
    expect(page.locator("#grid img")).to_have_count(4)


def sources(page: Page) -> list[str]:
    urls: list[str] = page.locator("#grid img").evaluate_all("all => all.map(it => it.src)")
    return urls


def test_the_page_follows_a_job_with_its_key(
    shown: Tab, keyed: Up, tenant: Callable[[str], Client], keys: dict[str, str]
) -> None:
    """The page requests the event stream with the key, and gets an answer."""
    with tenant("stream") as owner:
        owner.create_collection("stream-cats")
        page = shown.open("/?in=stream-cats&view=jobs")
        give(page, keys["stream"])
        expect(page.get_by_role("button", name="Forget the API key")).to_be_visible()
        with stopped(keyed.part("worker-ingest-1")):
            job = owner.upload("stream-cats", PICTURES)
            with page.expect_response("**/events") as streamed:
                page.reload()
        assert streamed.value.status == 200
        expect(page.locator(f'[data-job="{job.id}"]')).to_contain_text("succeeded")
