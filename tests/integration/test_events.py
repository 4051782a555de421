"""Server-sent events of a real gateway on a real Valkey; the test plays planner and worker."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.parts import connect
from clipfleet.api.jobs import events
from clipfleet.common.ledger import Outcome
from clipfleet.common.settings import Settings
from support import services
from support.chaos import stopped
from support.gateways import MAX_STREAMS, Service, gateway
from support.ledgers import a_job, failure


@pytest.fixture(scope="module")
def lone_gateway(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with gateway(tmp_path_factory.mktemp("gateway"), valkey_url) as service:
        yield service


def test_a_job_is_told_at_once_at_every_change_and_at_its_end(lone_gateway: Service) -> None:
    claim = lone_gateway.begun("told")
    with lone_gateway.events("told") as stream, lone_gateway.http() as http:
        first = next(stream)
        assert (first["event"], first["data"]["state"]) == ("job", "running")
        assert int(first["retry"]) > 0
        lone_gateway.ledger.set_waiting_reason("told", "the store is away")
        assert next(stream)["data"]["waiting"] == "the store is away"
        lone_gateway.ledger.mark(claim, Outcome(done=1, failures=(failure("b"),)))
        last = next(stream)
        assert last["data"] == http.get("/v1/jobs/told").json()
        assert (last["data"]["state"], last["data"]["failed"]) == ("partial", 1)
        assert list(stream) == []
    assert last["id"] != first["id"]


def test_an_ended_job_is_told_once_and_who_knows_it_is_told_to_stay_away(
    lone_gateway: Service,
) -> None:
    lone_gateway.begun("over")
    lone_gateway.ledger.cancel("over", "enough")
    with lone_gateway.events("over") as stream:
        (only,) = stream
    assert only["data"]["error"] == "enough"
    with lone_gateway.http() as http:
        again = http.get("/v1/jobs/over/events", headers={"Last-Event-ID": only["id"]})
    assert (again.status_code, again.content) == (204, b"")


def test_who_comes_back_in_the_middle_is_told_where_the_job_is(lone_gateway: Service) -> None:
    lone_gateway.begun("back")
    with lone_gateway.events("back") as stream:
        seen = next(stream)
    with lone_gateway.events("back", **{"Last-Event-ID": seen["id"]}) as stream:
        assert next(stream)["id"] == seen["id"]
    lone_gateway.ledger.cancel("back")


def test_a_job_that_is_deleted_ends_its_events(lone_gateway: Service) -> None:
    lone_gateway.begun("deleted")
    with lone_gateway.events("deleted") as stream:
        next(stream)
        lone_gateway.ledger.remove("deleted")
        assert [event["event"] for event in stream] == ["deleted"]


def test_a_redis_that_is_away_is_waited_for(lone_gateway: Service) -> None:
    lone_gateway.begun("waits")
    with lone_gateway.events("waits") as stream:
        next(stream)
        valkey = psutil.Process(lone_gateway.redis.info()["process_id"])
        with stopped(valkey):
            waiting = next(stream)
        assert (waiting["event"], list(waiting["data"])) == ("waiting", ["detail"])
        back = next(stream)
        assert (back["event"], back["data"]["state"]) == ("job", "running")
        lone_gateway.ledger.cancel("waits")
        assert next(stream)["data"]["state"] == "cancelled"


def test_there_are_so_many_places_and_who_leaves_makes_room(lone_gateway: Service) -> None:
    lone_gateway.begun("crowd")
    places = [lone_gateway.events("crowd") for _ in range(MAX_STREAMS)]
    streams = [place.__enter__() for place in places]
    for stream in streams:
        next(stream)
    with lone_gateway.http() as http:
        refused = http.get("/v1/jobs/crowd/events")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "poll GET" in refused.json()["detail"]
        places.pop().__exit__(None, None, None)

        def let_in() -> bool:
            with lone_gateway.events("crowd") as followed:
                return bool(next(followed))

        services.eventually(let_in, 10, "a free place")
        for place in places:
            place.__exit__(None, None, None)

        def is_unknown() -> bool:  # 503 until the gateway has seen that all have left
            return http.get("/v1/jobs/unknown/events").status_code == 404

        services.eventually(is_unknown, 10, "a free place")
    lone_gateway.ledger.cancel("crowd")


def test_a_gateway_ends_though_somebody_follows(valkey_url: str, tmp_path: Path) -> None:
    with gateway(tmp_path, valkey_url) as service:
        service.begun("endless")
        with service.events("endless") as stream:
            next(stream)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(20) is not None
        service.ledger.cancel("endless")


def test_silence_is_kept_alive(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEPALIVE_S", 0.0)

    async def first_two() -> list[bytes]:
        settings = Settings(redis_url=valkey_url, blobs=str(tmp_path))
        own_gateway = Gateway(settings, connect(settings))
        own_gateway.ledger.create(a_job("silent"))
        stream = events.events(own_gateway.ledger.job("silent"), own_gateway)
        seen = [await anext(stream), await anext(stream)]
        await stream.aclose()
        await own_gateway.stop()
        return seen

    event, comment = asyncio.run(first_two())
    assert event.startswith(b"event: job\n")
    assert comment == b": still here\n\n"
