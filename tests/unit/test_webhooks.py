"""Webhooks from their signature to the receiver, on a service in memory and a real receiver."""

import base64
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as StandardWebhook
from typer.testing import CliRunner

import clipfleet
from clipfleet import Client, ProblemError, WebhookError, verify_webhook
from clipfleet.cli import app, show
from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch.post import Poster, Reply, require_sendable
from clipfleet.common.http.webhooks import key_of, signature
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.unfinished import MemoryUnfinished
from clipfleet.common.ledger.webhooks import MemoryWebhooks
from clipfleet.common.settings import Fetch, Settings, Webhooks
from clipfleet.testing import MemoryService
from clipfleet.workers.planner.housekeeper import Housekeeper
from clipfleet.workers.planner.webhooks import Outcome, WebhookSender, body_of, id_of, outcome_of
from support.ledgers import Clock, a_job
from support.services import eventually
from support.webhooks import OTHER_SECRET, SECRET, ended
from support.webserver import Held, Page, PageRequest, Site, body, in_turn, site, status, to

MUSIC = Path(str(files("clipfleet"))) / "samples" / "music"
PICTURE = sorted(MUSIC.glob("*.png"))[0]
LOCAL = {"allowed_networks": ["127.0.0.1/32"]}


def headers_of(request: PageRequest) -> dict[str, str]:
    return {name: str(value) for name, value in request.headers.items()}


# The signature


def signed(raw: bytes, secret: str = SECRET, at: int | None = None) -> dict[str, str]:
    now = int(datetime.now(UTC).timestamp()) if at is None else at
    return {
        "Webhook-Id": "job_1", "Webhook-Timestamp": str(now),
        "Webhook-Signature": signature(secret, "job_1", now, raw),
    }  # fmt: skip


def an_event() -> bytes:
    ledger = MemoryLedger()
    ended(ledger, "1", "https://a.example")
    return body_of(ledger.job("1"))


def test_the_signature_is_that_of_standard_webhooks() -> None:
    raw = an_event()
    event = StandardWebhook(SECRET).verify(raw, signed(raw))
    assert event["type"] == "job.cancelled"
    assert set(event) == {"type", "timestamp", "data"}
    now = datetime.now(UTC)
    theirs = StandardWebhook(SECRET).sign("job_1", now, raw.decode())
    headers = {**signed(raw, at=int(now.timestamp())), "Webhook-Signature": f"v1a,x v1,xx {theirs}"}
    verified = verify_webhook(raw, headers, SECRET)
    assert (verified.id, verified.type, verified.job.state) == (
        "job_1", "job.cancelled", "cancelled",
    )  # fmt: skip
    assert verified.timestamp.timestamp() == pytest.approx(verified.job.finished_at)
    in_bytes: dict[Any, Any] = {k.encode(): v.encode() for k, v in headers.items()}
    assert verify_webhook(raw.decode(), in_bytes, SECRET) == verified


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Webhook-Id": "job_2"}, "the signature is not that"),
        ({"Webhook-Id": ""}, "webhook-id is missing"),
        ({"Webhook-Timestamp": "now"}, "not a number of seconds"),
        ({"Webhook-Timestamp": "1"}, "the signature is not that"),
        ({"Webhook-Signature": "v1,"}, "the signature is not that"),
        ({"Webhook-Signature": "v2,é"}, "the signature is not that"),
        ({"Webhook-Signature": ""}, "webhook-signature is missing"),
    ],
)
def test_a_changed_header_is_refused(change: dict[str, str], message: str) -> None:
    raw = an_event()
    with pytest.raises(WebhookError, match=message):
        verify_webhook(raw, {**signed(raw), **change}, SECRET)


def test_another_body_secret_or_time_is_refused() -> None:
    raw = an_event()
    with pytest.raises(WebhookError, match="this body"):
        verify_webhook(raw + b" ", signed(raw), SECRET)
    with pytest.raises(WebhookError, match="this secret"):
        verify_webhook(raw, signed(raw), OTHER_SECRET)
    with pytest.raises(WebhookError, match="this secret"):
        verify_webhook(raw, signed(raw), [])
    assert verify_webhook(raw, signed(raw), [OTHER_SECRET, SECRET]).id == "job_1"
    now = int(datetime.now(UTC).timestamp())
    for at, word in ((now - 400, "too old"), (now + 400, "too far in the future")):
        with pytest.raises(WebhookError, match=word):
            verify_webhook(raw, signed(raw, at=at), SECRET)
        assert verify_webhook(raw, signed(raw, at=at), SECRET, tolerance_s=500).id == "job_1"
    with pytest.raises(WebhookError, match="of this version"):
        verify_webhook(b"{}", signed(b"{}"), SECRET)
    parsed: Any = json.loads(raw)
    with pytest.raises(TypeError, match="as it arrived"):
        verify_webhook(parsed, signed(raw), SECRET)


@pytest.mark.parametrize("text", ["", "whsec_", "my secret", "whsec_abc", "whsec_" + "A" * 100])
def test_what_is_no_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 random bytes") as refused:
        key_of(text)
    assert len(text) < 10 or text not in str(refused.value)
    for raw in (b"a" * 24, b"a" * 64, b"\xff" * 32):
        plain = base64.b64encode(raw).decode()
        assert key_of(f"whsec_{plain}") == key_of(plain) == key_of(plain.rstrip("=")) == raw


def test_the_receiver_of_the_documentation_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    names: dict[str, Any] = {"SECRET": SECRET, "__name__": __name__}
    exec(page.split("```python\n")[1].split("```")[0], names)
    receiver, raw = names["app"].test_client(), an_event()
    for secret, code in ((SECRET, 204), (OTHER_SECRET, 400)):
        answer = receiver.post("/hooks/clipfleet", data=raw, headers=signed(raw, secret))
        assert answer.status_code == code


# From a job to its receiver


@pytest.fixture
def service() -> Iterator[MemoryService]:
    with MemoryService(fetch=LOCAL, webhooks={"pause_s": 0.05}) as running:
        yield running


def settled(client: Client, job: clipfleet.Job) -> str | None:
    """The webhook of a job once nothing more happens to it."""
    eventually(
        lambda: not str(client.job(job).webhook).startswith("pending"), 60, "the webhook's end"
    )
    return client.job(job).webhook


def test_a_receiver_gets_the_end_of_each_kind_of_job(
    service: MemoryService, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    with site({"/hook": body(b"ok")}) as web, service.client() as client:
        url = f"{web.url}/hook?of=mine"
        options: dict[str, Any] = {"webhook": url, "webhook_secret": SECRET, "wait": True}
        jobs = [
            client.index("music", MUSIC, **options),
            client.upload("music", [tmp_path / "bad.png", *MUSIC.glob("*.png")], **options),
            client.upload_folder("music", MUSIC, namespace="of a folder", **options),
        ]
        retry = client.retry(jobs[1])
        assert settled(client, retry) == "delivered"
        assert [settled(client, job) for job in jobs] == ["delivered"] * 3
        assert {request.path for request in web.seen} == {"/hook?of=mine"}
        events = [verify_webhook(r.sent, headers_of(r), SECRET) for r in web.seen]
        assert {event.job.id: event.type for event in events} == {
            jobs[0].id: "job.succeeded", jobs[1].id: "job.partial", retry.id: "job.failed",
            jobs[2].id: "job.succeeded",
        }  # fmt: skip
        for event in events:
            now = client.job(event.job.id).model_dump(exclude={"webhook", "retried_by"})
            assert event.job.model_dump(exclude={"webhook", "retried_by"}) == now
        for request in web.seen:
            assert request.headers["content-type"] == "application/json"
            StandardWebhook(SECRET).verify(request.sent, headers_of(request))


def test_it_is_sent_again_with_the_same_id_until_the_receiver_takes_it(
    service: MemoryService,
) -> None:
    pages = in_turn(status(503), lambda request: request.reset(), status(429), body(b""))
    with site({"/hook": pages}) as web, service.client() as client:
        job = client.index(
            "music", MUSIC, webhook=f"{web.url}/hook", webhook_secret=SECRET, wait=True
        )
        assert settled(client, job) == "delivered"
        assert len(web.seen) == 4
        assert {request.headers["webhook-id"] for request in web.seen} == {f"job_{job.id}"}
        assert len({request.sent for request in web.seen}) == 1
        assert service.parts.ledger.job(job.id).webhook_tries == 4


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (status(410), "failed: the receiver answered 410 Gone (1 try)"),
        (status(404), "failed: the receiver answered 404 Not Found (1 try)"),
        (to("https://example.org"), "failed: the receiver answered 302 Found; redirects are not "
         "followed (1 try)"),
    ],
)  # fmt: skip
def test_an_answer_that_is_final_ends_it(service: MemoryService, page: Page, shown: str) -> None:
    with site({"/hook": page}) as web, service.client() as client:
        job = client.index("music", MUSIC, webhook=f"{web.url}/hook", webhook_secret=SECRET)
        assert settled(client, job) == shown
        assert len(web.seen) == 1
        assert client.wait(job).state == "succeeded"


def test_it_is_given_up_in_the_end() -> None:
    hooks = {"pause_s": 0.05, "retry_s": 0.4}
    with (
        MemoryService(fetch=LOCAL, webhooks=hooks) as service,
        site({"/hook": status(500)}) as web,
        service.client() as client,
    ):
        job = client.index("music", MUSIC, webhook=f"{web.url}/hook", webhook_secret=SECRET)
        shown = settled(client, job)
        tries = len(web.seen)
        assert tries > 1
        assert shown == (f"failed: the receiver answered 500 Internal Server Error ({tries} tries)")


def test_an_inner_address_is_refused_at_once_or_when_its_name_is_looked_up() -> None:
    with MemoryService(webhook_secret=SECRET) as service, service.client() as client:
        client.create_collection("music")
        for url, message in (
            ("http://127.0.0.1:1/", "not a public one"),
            ("http://[::1]/", "not a public one"),
            ("http://169.254.169.254/latest", "CLIPFLEET_FETCH__ALLOWED_NETWORKS"),
            ("http://localhost/", "not a public one"),
            ("ftp://example.org/", "https:// or http://"),
            ("https://", "not a valid URL"),
            ("https://user:word@example.org/", "user name"),
        ):
            for start in (client.index, client.upload):
                source: Any = MUSIC if start == client.index else PICTURE
                with pytest.raises(ProblemError, match=r"webhook\.url: ") as refused:
                    start("music", source, webhook=url)
                assert refused.value.status == 422
                assert message in refused.value.detail
        assert client.jobs() == []
        job = client.index("music", MUSIC, webhook="http://2130706433/")  # 127.0.0.1
        assert str(settled(client, job)).startswith("failed: the address of '2130706433' is not")


def test_a_secret_is_needed_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        MemoryService(fetch=LOCAL, webhook_secret=OTHER_SECRET) as service,
        site({"/hook": body(b"")}) as web,
        service.client() as client,
    ):
        url = f"{web.url}/hook"
        own = client.index("music", MUSIC, webhook=url, webhook_secret=SECRET, wait=True)
        of_service = client.index("music", MUSIC, webhook=url, wait=True)
        for job, secret in ((own, SECRET), (of_service, OTHER_SECRET)):
            assert settled(client, job) == "delivered"
            event = next(r for r in web.seen if r.headers["webhook-id"] == f"job_{job.id}")
            assert verify_webhook(event.sent, headers_of(event), secret).job.id == job.id
        http = client._http
        answers = [
            http.get(path).text
            for path in (
                "/v1/jobs", f"/v1/jobs/{own.id}", f"/v1/jobs/{own.id}/events", "/v1/fleet",
                f"/v1/jobs/{own.id}/failures", "/metrics",
            )
        ]  # fmt: skip
        wrong = {
            "source": {"type": "folder", "path": "/"},
            "webhook": {"url": url, "secret": "abc-def-ghi"},
        }
        refused = http.post("/v1/collections/music/jobs", json=wrong)
        assert refused.status_code == 422
        assert "24 to 64 random bytes" in refused.text
        assert '"body.webhook.secret"' in refused.text
        plain = {**wrong, "webhook": url}
        refused_text = http.post("/v1/collections/music/jobs", json=plain)
        assert "a webhook is an object" in refused_text.text
        lonely = {"webhook_secret": SECRET}
        parts = {"files": ("a.png", b"x")}
        upload = http.post("/v1/collections/music/images", data=lonely, files=parts)
        assert "it needs webhook_url" in upload.text
        shown = [
            upload.text,
            *answers,
            refused.text,
            caplog.text,
            repr(service.parts.ledger.jobs()),
            repr(service.settings),
        ]
        for secret in (SECRET, OTHER_SECRET, "abc-def-ghi"):
            assert [text for text in shown if secret in text] == []
    with MemoryService() as service, service.client() as client:
        client.create_collection("music")
        with pytest.raises(ProblemError, match="CLIPFLEET_WEBHOOK_SECRET"):
            client.index("music", MUSIC, webhook="https://example.org/")
        for start in (client.index, client.upload):
            with pytest.raises(ValueError, match="24 to 64 random bytes"):
                start("music", PICTURE, webhook="https://a.example/", webhook_secret="abc-def-ghi")
            with pytest.raises(ValueError, match="needs webhook="):
                start("music", PICTURE, webhook_secret=SECRET)
    with pytest.raises(ValueError, match="24 to 64 random bytes") as unusable:
        Settings(webhook_secret="abc-def-ghi")
    assert "abc-def-ghi" not in str(unusable.value)


def test_the_same_request_with_another_secret_is_the_same_job(service: MemoryService) -> None:
    with site({"/hook": body(b"")}) as web, service.client() as client:
        urls = (f"{web.url}/hook", f"{web.url}/hook", f"{web.url}/other")
        secrets = (SECRET, OTHER_SECRET, SECRET)

        def start(n: int) -> clipfleet.Job:
            return client.index(
                "music", MUSIC, webhook=urls[n], webhook_secret=secrets[n], idempotency_key="k"
            )

        assert start(0).id == start(1).id
        with pytest.raises(ProblemError, match="another job"):
            start(2)


def test_the_command_line_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with MemoryService() as service, service.client() as client:
        job = client.index("music", MUSIC, wait=True)
    for state, line in (("pending", "webhook: pending\n"), (None, "")):
        show.job(job.model_copy(update={"webhook": state}))
        assert ("webhook" in capsys.readouterr().out) == bool(line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--webhook", "https://a.example"], "--webhook-secret is missing"),
        (["--webhook", "http://10.0.0.1"], "--webhook: the address of '10.0.0.1'"),
        (["--webhook", "a.example"], "--webhook: it must begin with https://"),
        (
            ["--webhook", "https://a.example", "--webhook-secret", "abc-def-ghi"],
            "--webhook-secret: a",
        ),
    ],
)
def test_the_command_line_names_its_options(options: Sequence[str], message: str) -> None:
    with MemoryService() as service:
        for source in ([str(MUSIC)], [str(PICTURE)], [str(MUSIC), "--upload"]):
            done = CliRunner().invoke(
                app, ["index", *source, "--no-wait", *options, "--url", service.url],
                env={"COLUMNS": "1000", "CLIPFLEET_WEBHOOK_SECRET": ""},
            )  # fmt: skip
            assert done.exit_code == 2
            assert message in done.stderr
            assert "abc-def-ghi" not in done.stderr
            assert not service.parts.ledger.jobs()


# The sender


class _Desk:
    """A sender, with what it talks to, and a clock."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock)
        self.webhooks = MemoryWebhooks(self.ledger, self.clock)
        fetch = Fetch(allowed_networks=LOCAL["allowed_networks"])
        settings = Webhooks(**options)
        poster = Poster(fetch, settings.timeout_s, look_up=_everything_is_here)
        self.sender = WebhookSender(self.webhooks, self.ledger, poster, settings, clock=self.clock)
        self.limits = settings

    def start_all(self) -> int:
        """Begin to send all that is due and may be sent; return how many."""
        count = 0
        while self.sender.start_next():
            count += 1
        return count

    def state(self, job_id: str) -> str:
        return self.ledger.job(job_id).webhook

    def add(
        self, web: Site, host: str, names: Sequence[str], key: str = "", path: str = ""
    ) -> None:
        for name in names:
            ended(self.ledger, name, f"http://{host}:{web.port}/{path}", key)


def _everything_is_here(_: str, __: int) -> Sequence[str]:
    return ["127.0.0.1"]


def test_slow_receivers_leave_room_for_those_of_other_hosts_and_keys() -> None:
    slow = Held(body(b""))
    desk = _Desk(at_once=8, per_host=3)
    with site({"/slow": slow, "/fast": body(b"")}) as web:
        try:
            desk.add(web, "slow.test", [f"one-{n}" for n in range(20)], "one", "slow")
            assert desk.start_all() == 3  # of one host
            for host in range(20):
                desk.add(web, f"slow-{host}.test", [f"many-{host}"], "one", "slow")
            assert desk.start_all() == 1  # a key has half of all
            desk.add(web, "fast.test", ["fast"], "two", "fast")
            assert desk.start_all() == 1
            eventually(lambda: desk.state("fast") == "delivered", 60, "the other key's webhook")
            for n in range(3):
                desk.add(web, f"slow-too-{n}.test", [f"no-key-{n}"], "", "slow")
            assert desk.start_all() == 3  # without keys only hosts share
        finally:
            slow.open.set()
        eventually(lambda: not desk.start_all() and not desk.sender._threads, 60, "the rest")
        states = [job.webhook for job in desk.ledger.jobs(limit=100)]
        assert set(states) == {"delivered"}
        assert len(states) == len(web.seen) == 44


def test_the_pauses_grow_and_end() -> None:
    desk = _Desk(pause_s=10.0, retry_s=86_400.0)
    with site({"/": status(503)}) as web:
        desk.add(web, "a.test", ["j"])
        pauses, before = [], desk.clock.now
        while desk.state("j") == "pending":
            if desk.sender.start_next():
                eventually(lambda: not desk.sender._threads, 60, "a try")
                pauses.append(desk.clock.now - before)
                before = desk.clock.now
            desk.clock.now += 1.0 if len(pauses) < 4 else 60.0
    assert pauses[0] == 0
    for pause, expected in zip(pauses[1:5], (10, 30, 90, 270), strict=True):
        assert 0.8 * expected <= pause <= 1.2 * expected + 61
    assert 7_200 * 0.8 < max(pauses) < 7_200 * 1.2 + 61
    assert 10 < len(pauses) < 25
    assert desk.clock.now - 1_000_000 < 86_400 + 120
    assert desk.ledger.job("j").webhook_reason == "the receiver answered 503 Service Unavailable"


def test_a_receiver_may_ask_for_a_longer_pause() -> None:
    desk = _Desk(pause_s=1.0)
    with site({"/": in_turn(status(503, Retry_After="100"), body(b""))}) as web:
        desk.add(web, "a.test", ["j"])
        for wait_s, tries in ((0, 1), (99, 1), (2, 2)):
            desk.clock.now += wait_s
            desk.start_all()
            eventually(lambda: not desk.sender._threads, 60, "a try")
            assert len(web.seen) == tries
    assert desk.state("j") == "delivered"


def test_a_receiver_that_does_not_answer_is_tried_again() -> None:
    silent = Held(body(b""))
    desk = _Desk(timeout_s=0.2)
    with site({"/": silent}) as web:
        desk.add(web, "a.test", ["j"])
        desk.start_all()
        eventually(lambda: not desk.sender._threads, 60, "the timeout")
        silent.open.set()
    job = desk.ledger.job("j")
    assert (job.webhook, job.webhook_reason) == ("pending", "the server did not answer in time")


def test_a_sender_that_stops_gives_its_webhooks_back() -> None:
    silent, stopping = Held(body(b"")), threading.Event()
    desk = _Desk(timeout_s=60.0)
    with site({"/": silent}) as web:
        desk.add(web, "a.test", ["j"])
        thread = threading.Thread(target=desk.sender.run, args=(stopping,))
        thread.start()
        assert silent.reached.wait(60)
        assert desk.webhooks.claim(1.0) is None
        stopping.set()
        thread.join(60)
        claim = desk.webhooks.claim(1.0)
        silent.open.set()
    assert claim
    assert claim.job_id == "j"


def test_a_job_is_not_deleted_before_its_webhook_is_settled() -> None:
    desk = _Desk()
    desk.ledger.create(a_job("without"))
    desk.ledger.cancel("without")
    ended(desk.ledger, "j", "http://a.test/")
    keeper = Housekeeper("k", desk.ledger, MemoryUnfinished(), Blobs("memory://hooks"), 1.0)
    desk.clock.now += 2 * 86_400
    assert keeper.tidy() == 1
    assert [job.id for job in desk.ledger.jobs()] == ["j"]
    claim = desk.webhooks.claim(1.0)
    assert claim
    desk.webhooks.settle(claim, "failed", "gone")
    assert keeper.tidy() == 1


def test_what_each_status_means() -> None:
    def meaning(code: int) -> Outcome:
        return outcome_of(Reply(code, 7.0))

    assert {meaning(code).state for code in (200, 201, 202, 204, 299)} == {"delivered"}
    assert {meaning(code).state for code in (301, 308, 400, 401, 404, 410, 422)} == {"failed"}
    temporary = [meaning(code) for code in (408, 425, 429, 500, 502, 503, 504, 599)]
    assert {(outcome.state, outcome.after_s) for outcome in temporary} == {("pending", 7.0)}
    assert meaning(599).reason == "the receiver answered 599"


def test_the_id_has_no_full_stop() -> None:
    ledger = MemoryLedger()
    ended(ledger, "0a1b", "https://a.example")
    assert id_of(ledger.job("0a1b")) == "job_0a1b"


IMPOSSIBLE_HOSTS = ["a..b", ".a", f"{'a' * 64}.org", f"{'a.' * 126}ab"]


@pytest.mark.parametrize("host", IMPOSSIBLE_HOSTS)
def test_a_host_that_cannot_be_looked_up_is_no_valid_url(host: str) -> None:
    with pytest.raises(Unreadable, match="not a valid URL"):
        require_sendable(f"http://{host}/", [])


@pytest.mark.parametrize("host", ["xn--", "xn--a", "xn--0.org", "xn--zzzzzz99999.org"])
def test_a_host_that_cannot_be_decoded_is_no_valid_url(host: str) -> None:
    with pytest.raises(Unreadable, match="not a valid URL"):
        require_sendable(f"http://{host}/", [])
    with pytest.raises(ValueError, match="is no address"):
        Client(f"http://{host}")
