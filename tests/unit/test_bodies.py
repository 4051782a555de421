"""Request bodies: no body is read before the caller is admitted, and each has a limit of size, of
time, and of the memory that the gateway shares among all requests."""

import asyncio
import base64
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.http.bodies import (
    LONG_TEXT,
    RULES,
    UNCOUNTED,
    MemoryBudget,
    MemoryFull,
    Meter,
    Reservation,
)
from clipfleet.common.settings import Limits
from support.asgi import Exchange, endless, speak, spoken
from support.gateway_harness import World

SEARCH = "POST /v1/collections/acme/search"
VECTORS = "POST /v1/collections/acme/vectors"
MB = 1_000_000
JSON = {"content_type": "application/json"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def limited(folder: Path, **limits: Any) -> World:
    return World(folder, limits=Limits(**limits))


def too_large(seen: Exchange, setting: str) -> None:
    assert seen.status == 413
    assert f"CLIPFLEET_LIMITS__{setting.upper()}" in seen.problem["detail"]


@pytest.mark.parametrize(
    ("call", "size", "setting"),
    [
        (SEARCH, 95 * MB, "json_bytes"),
        (f"{SEARCH}/image", 95 * MB, "json_bytes"),
        (f"{SEARCH}/batch", 95 * MB, "batch_bytes"),
        ("POST /v1/embed", 95 * MB, "batch_bytes"),
        ("POST /v1/collections/acme/count", 2 * MB, "json_bytes"),
        ("PUT /v1/collections/acme", 2 * MB, "json_bytes"),
        ("POST /v1/collections/acme/jobs", 9 * MB, "job_bytes"),
        (VECTORS, 33 * MB, "vectors_bytes"),
        ("POST /v1/collections/acme/images", 1_001 * MB, "request_bytes"),
    ],
)
def test_a_body_that_says_it_is_too_large_is_not_read(
    world: World, call: str, size: int, setting: str
) -> None:
    seen = spoken(world.app, call, [b"x" * MB], "admin", content_length=str(size), **JSON)
    too_large(seen, setting)
    assert seen.read == 0


@pytest.mark.parametrize("call", [SEARCH, "POST /v1/embed", "POST /v1/collections/acme/images"])
def test_a_compressed_body_is_refused_by_its_name(world: World, call: str) -> None:
    seen = spoken(world.app, call, [b"x" * MB], "admin", content_encoding="gzip", **JSON)
    assert (seen.status, seen.read) == (415, 0)
    assert "Content-Encoding 'gzip'" in seen.problem["detail"]
    plain = spoken(world.app, SEARCH, [b"{}"], "admin", content_encoding="Identity", **JSON)
    assert plain.status == 422


def test_a_body_that_is_not_utf8_is_refused_by_that(world: World) -> None:
    seen = spoken(world.app, SEARCH, [b'{"text": "\xff"}'], "admin", **JSON)
    assert (seen.status, seen.problem["detail"]) == (422, "body: it is not UTF-8")


@pytest.mark.parametrize("call", [SEARCH, VECTORS])
@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"9" * 5_000, "a number has too many digits"), (b"[" * 5_000, "it is nested too deeply")],
)
def test_a_body_that_python_cannot_parse_is_refused_by_the_reason(
    world: World, call: str, value: bytes, reason: str
) -> None:
    seen = spoken(world.app, call, [b'{"filter": {"a": ' + value + b"}}"], "admin", **JSON)
    assert (seen.status, seen.problem["detail"]) == (422, f"body: not JSON: {reason}")


@pytest.mark.parametrize("kind", ["multipart/mixed; boundary=x", "multipart/form-data", "a/b", ""])
def test_the_limit_of_a_route_does_not_depend_on_what_a_body_is_called(
    world: World, kind: str
) -> None:
    for headers in ({"content_length": str(600 * MB)}, {"transfer_encoding": "chunked"}):
        pieces = endless(b"\0" * 100_000)
        seen = spoken(world.app, SEARCH, pieces, "read", content_type=kind, **headers)
        too_large(seen, "json_bytes")
        assert seen.read <= 1.2 * MB


def test_of_a_body_of_unknown_length_no_more_is_read_than_the_route_takes(world: World) -> None:
    for call, key, limit in (
        ("POST /v1/collections/acme/count", "read", 1 * MB),
        ("POST /v1/collections/acme/jobs", "write", 8 * MB),
        (VECTORS, "write", 32 * MB),
    ):
        pieces = endless(b" " * 100_000)
        seen = spoken(world.app, call, pieces, key, transfer_encoding="chunked", **JSON)
        assert seen.status == 413
        assert limit < seen.read <= limit + 100_000


def test_who_is_not_admitted_is_answered_before_anything_is_read(world: World) -> None:
    for key, status in (("", 401), ("old", 401), ("read", 403), ("acme-read", 403)):
        pieces = endless(b"x" * 100_000, 3)
        chunked = {"transfer_encoding": "chunked"}
        seen = spoken(world.app, "POST /v1/collections/other/images", pieces, key, **chunked)
        assert (seen.status, seen.read) == (status, 0)
        assert seen.headers["connection"] == "close"
        assert seen.drained == 300_000  # a client that sends first gets its answer


def test_a_refused_client_is_not_listened_to_for_ever(world: World) -> None:
    chunked = {"transfer_encoding": "chunked"}
    seen = spoken(world.app, SEARCH, endless(b"x" * 100_000), **chunked)
    assert seen.status == 401
    assert seen.drained == 32 * MB


def test_an_image_counts_for_itself_and_nothing_else_does(world: World) -> None:
    """The bytes outside the image decide, however the body is cut into pieces."""
    image = base64.b64encode(bytes(6 * MB)).decode()
    whole = json.dumps({"image": {"base64": image}, "filter": {"a": "b" * 900_000}}).encode()
    for size in (1_000, 65_536, len(whole)):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        chunked = {"transfer_encoding": "chunked"}
        seen = spoken(world.app, SEARCH, pieces, "read", **JSON, **chunked)
        assert seen.status == 422, seen.content
        assert seen.read == len(whole)


@pytest.mark.parametrize("piece", [b'{"a":1},', b"1,", b"[],", b'"",', b'\\"', b" "])
def test_a_document_without_an_image_may_not_take_its_room(world: World, piece: bytes) -> None:
    many = piece * (65_536 // len(piece))
    seen = spoken(world.app, SEARCH, endless(many), "read", transfer_encoding="chunked", **JSON)
    too_large(seen, "json_bytes")
    assert seen.read <= 2.2 * MB


def test_the_meter_counts_what_is_no_long_text() -> None:
    long, short = b"A" * (LONG_TEXT + 1), b"A" * LONG_TEXT
    for document, beside in (
        (b'{"text": "a"}', 13),
        (b'{"base64": "%s"}' % long, 14),
        (b'{"base64": "%s"}' % short, 14 + len(short)),
        (b'{"base64": "data:image/png;base64,%s"}' % long, 14 + len(":;,")),
        (b'["%s", "%s"]' % (long, long), 8),
        (b"[%s]" % (b"1," * LONG_TEXT), 2 + LONG_TEXT),
    ):
        for size in (7, 65_536, len(document)):
            meter = Meter()
            for start in range(0, len(document), size):
                meter.feed(document[start : start + size])
            assert meter.other_bytes + meter.open_bytes == beside, (document[:40], size)


@pytest.mark.parametrize("call", [SEARCH, f"{SEARCH}/image", VECTORS])
def test_a_body_that_does_not_come_in_is_given_up(tmp_path: Path, call: str) -> None:
    world = limited(tmp_path, body_s=0.05)
    headers = {"content_type": "multipart/form-data; boundary=x"} if "image" in call else JSON
    seen = spoken(world.app, call, endless(b"-", 2), "admin", content_length="100", **headers)
    assert seen.status == 408
    assert "CLIPFLEET_LIMITS__BODY_S" in seen.problem["detail"]
    assert seen.headers["connection"] == "close"


async def half_sent(world: World, pieces: int) -> "asyncio.Task[Exchange]":
    """Send `pieces` pieces of 100,000 bytes of a longer body; return once the gateway holds them
    all."""
    request = asyncio.create_task(
        speak(world.app, VECTORS, endless(b" " * 100_000, pieces), "write", **JSON,
              content_length=f"{100_000 * (pieces + 1)}")
    )  # fmt: skip
    while world.app.state.gateway.memory.used < 100_000 * pieces - UNCOUNTED:
        await asyncio.sleep(0)
    return request


def test_large_bodies_share_what_the_gateway_holds_and_small_ones_need_no_share(
    tmp_path: Path,
) -> None:
    world = limited(tmp_path, in_hand_bytes=300_000)

    async def scene() -> None:
        memory = world.app.state.gateway.memory
        held = await half_sent(world, 3)
        refused = await speak(world.app, VECTORS, [b" " * 150_000], "write", **JSON,
                              content_length="150000")  # fmt: skip
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "CLIPFLEET_LIMITS__IN_HAND_BYTES" in refused.problem["detail"]
        small = b" " * 60_000
        served = await speak(world.app, SEARCH, [small], "read", content_length="60000", **JSON)
        assert served.status == 422  # read, and found to say nothing
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert memory.used == 0
        served = await speak(world.app, VECTORS, [b" " * 150_000], "write", **JSON,
                             content_length="150000")  # fmt: skip
        assert served.status == 422
        assert memory.used == 0

    asyncio.run(scene())


def test_the_large_requests_of_one_key_hold_half_of_it_at_most(tmp_path: Path) -> None:
    """A body may take minutes to arrive, and must not keep the other keys out."""
    world = limited(tmp_path, in_hand_bytes=800_000)

    async def scene() -> None:
        memory = world.app.state.gateway.memory
        held = await half_sent(world, 4)
        refused = await speak(world.app, VECTORS, [b" " * 200_000], "write", **JSON,
                              content_length="200000")  # fmt: skip
        assert refused.status == 503
        assert "of this key fill its share" in refused.problem["detail"]
        served = await speak(world.app, VECTORS, [b" " * 400_000], "admin", **JSON,
                             content_length="400000")  # fmt: skip
        assert served.status == 422  # read, and found to say nothing
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        served = await speak(world.app, VECTORS, [b" " * 700_000], "write", **JSON,
                             content_length="700000")  # fmt: skip
        assert served.status == 422, "a single request may have more than half"
        assert memory.held_by == {}

    asyncio.run(scene())


def test_keys_share_it_so_that_a_new_key_finds_room() -> None:
    """Two keys together cannot fill it with many requests."""
    budget, piece = MemoryBudget(16_000), 1_000
    held: Counter[str] = Counter()
    for key in ("a", "b", "c", "d"):
        with suppress(MemoryFull):
            while True:
                Reservation(budget, key).add(UNCOUNTED + piece)
                held[key] += 1
    assert held == {"a": 8, "b": 4, "c": 2, "d": 1}
    Reservation(budget, "new").add(UNCOUNTED + piece)
    with pytest.raises(MemoryFull, match="fill the 16000 bytes"):
        Reservation(budget, "late").add(UNCOUNTED + piece)


def test_a_single_request_of_a_key_may_hold_all_that_is_free() -> None:
    budget = MemoryBudget(16_000)
    Reservation(budget, "a").add(UNCOUNTED + 9_000)
    only = Reservation(budget, "b")
    only.add(UNCOUNTED + 4_000)
    only.add(3_000)
    with pytest.raises(MemoryFull):
        only.add(1)


def test_every_rule_names_a_limit() -> None:
    assert {rule.setting for rule in RULES.values()} <= Limits.model_fields.keys()
