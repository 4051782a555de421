"""Event streams of several keys over HTTP: their places, and what a cut stream costs."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from clipfleet.common.ledger import NewJob
from clipfleet.testing import MemoryService, write_keys
from support.gateways import parsed
from support.services import eventually

KEYS: dict[str, dict[str, Any]] = {"many": {"name": "many"}, "few": {"name": "few"}}
PATH = "/v1/jobs/waits/events"


@pytest.fixture
def service() -> Iterator[MemoryService]:
    """A service with room for eight streams, and with a job that no worker takes."""
    with MemoryService(dim=4, api_keys=KEYS, limits={"event_streams": 8}) as running:
        with http(running, "many") as client:
            assert client.put("/v1/collections/mine", json={}).status_code == 201
        mine = running.parts.catalogue.find("mine")
        assert mine
        items = [{"id": "1", "uri": "", "read": "blob:uploads/waits/0"}]
        new = NewJob(
            id="waits", collection="mine", generation=mine.generation, model="nobody",
            namespace="default", source={"type": "upload", "items": items},
        )  # fmt: skip
        running.parts.ledger.create(new)
        yield running


def http(service: MemoryService, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False)


class Follower:
    """A connection that follows the job. `status` and `headers` are those of the answer."""

    def __init__(self, service: MemoryService, key: str) -> None:
        url = httpx.URL(service.url)
        self.socket = socket.create_connection((url.host, url.port), timeout=60)
        self.file = self.socket.makefile("rb")
        lines = [f"GET {PATH} HTTP/1.1", f"Host: {url.host}", f"Authorization: Bearer {key}"]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.status = int(self.file.readline().split()[1])
        self.headers = dict(line.split(": ", 1) for line in iter(self._line, ""))

    def _line(self) -> str:
        return self.file.readline().decode().strip().lower()

    def first(self, size: int) -> bytes:
        """The first bytes of the body, with the sizes of its pieces."""
        return self.file.read(size)

    def reset(self) -> None:
        """Break the connection off, as a crash does."""
        linger = struct.pack("ii", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def follow(service: MemoryService) -> Iterator[Any]:
    with ExitStack() as stack:

        def begin(key: str) -> Follower:
            follower = Follower(service, key)
            stack.callback(follower.close)
            return follower

        yield begin


def followers(follow: Any, key: str) -> list[Follower]:
    """As many streams as the key gets; the last answer is a refusal."""
    begun: list[Follower] = []
    while not begun or begun[-1].status == 200:
        begun.append(follow(key))
    return begun


@pytest.mark.parametrize("end", [Follower.reset, Follower.close])
def test_a_key_leaves_streams_to_others_and_has_its_own_again_when_it_hangs_up(
    follow: Any, end: Any
) -> None:
    *many, refused = followers(follow, "many")
    assert (len(many), refused.status) == (4, 429)
    assert int(refused.headers["retry-after"]) > 0
    *few, refused = followers(follow, "few")
    assert (len(few), refused.status) == (2, 429)
    assert follow("many").status == 429
    for follower in many:
        end(follower)
    eventually(lambda: follow("few").status == 200, 30, "a place that was left")


def test_the_places_of_a_revoked_key_are_free(service: MemoryService, follow: Any) -> None:
    *many, _ = followers(follow, "many")
    write_keys(service.folder / "keys.json", {"few": KEYS["few"]})
    for follower in many:
        assert b"event: unauthorized" in follower.file.read()
    assert [follow("few").status for _ in range(5)] == [200] * 4 + [429]


def test_a_stream_that_was_cut_within_an_event_goes_on_with_the_present_state(
    service: MemoryService, follow: Any
) -> None:
    cut = follow("many")
    assert b"event: job" in cut.first(60)
    cut.reset()
    with http(service, "many") as client:
        with client.stream("GET", PATH) as answer:
            event = next(parsed(answer.iter_lines()))
            assert event["data"]["state"] in ("queued", "running")
        service.parts.ledger.cancel("waits")
        again = {"Last-Event-ID": event["id"]}
        with client.stream("GET", PATH, headers=again) as answer:
            (last,) = parsed(answer.iter_lines())
            assert last["data"]["state"] == "cancelled"
        ended = client.get(PATH, headers={"Last-Event-ID": last["id"]})
        assert ended.status_code == 204
