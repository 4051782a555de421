"""Server-sent events of a real gateway on a real Valkey; the test plays planner and worker."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.api import events
from clipfleet.api.gateway import Gateway
from clipfleet.api.parts import connect
from clipfleet.common.ledger import Outcome
from clipfleet.common.settings import Settings
from support import services
from support.gateways import PLACES, Service, gateway
from support.ledgers import a_job, failure


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def service(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with gateway(tmp_path_factory.mktemp("gateway"), valkey) as made:
        yield made


def test_a_job_is_told_at_once_at_every_change_and_at_its_end(service: Service) -> None:
    claim = service.begun("told")
    with service.events("told") as told, service.http() as http:
        first = next(told)
        assert (first["event"], first["data"]["state"]) == ("job", "running")
        assert int(first["retry"]) > 0
        service.ledger.note("told", "the store is away")
        assert next(told)["data"]["waiting"] == "the store is away"
        service.ledger.mark(claim, Outcome(done=1, failures=(failure("b"),)))
        last = next(told)
        assert last["data"] == http.get("/v1/jobs/told").json()
        assert (last["data"]["state"], last["data"]["failed"]) == ("partial", 1)
        assert list(told) == []
    assert last["id"] != first["id"]


def test_an_ended_job_is_told_once_and_who_knows_it_is_told_to_stay_away(service: Service) -> None:
    service.begun("over")
    service.ledger.cancel("over", "enough")
    with service.events("over") as told:
        (only,) = told
    assert only["data"]["error"] == "enough"
    with service.http() as http:
        again = http.get("/v1/jobs/over/events", headers={"Last-Event-ID": only["id"]})
    assert (again.status_code, again.content) == (204, b"")


def test_who_comes_back_in_the_middle_is_told_where_the_job_is(service: Service) -> None:
    service.begun("back")
    with service.events("back") as told:
        seen = next(told)
    with service.events("back", **{"Last-Event-ID": seen["id"]}) as told:
        assert next(told)["id"] == seen["id"]
    service.ledger.cancel("back")


def test_a_job_that_is_deleted_ends_its_events(service: Service) -> None:
    service.begun("deleted")
    with service.events("deleted") as told:
        next(told)
        service.ledger.remove("deleted")
        assert [event["event"] for event in told] == ["deleted"]


def test_a_redis_that_is_away_is_waited_for(service: Service) -> None:
    service.begun("waits")
    with service.events("waits") as told:
        next(told)
        service.redis.client_pause(4_000)
        waiting = next(told)
        assert (waiting["event"], list(waiting["data"])) == ("waiting", ["detail"])
        back = next(told)
        assert (back["event"], back["data"]["state"]) == ("job", "running")
        service.ledger.cancel("waits")
        assert next(told)["data"]["state"] == "cancelled"


def test_there_are_so_many_places_and_who_leaves_makes_room(service: Service) -> None:
    service.begun("crowd")
    places = [service.events("crowd") for _ in range(PLACES)]
    streams = [place.__enter__() for place in places]
    for stream in streams:
        next(stream)
    with service.http() as http:
        refused = http.get("/v1/jobs/crowd/events")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "polled" in refused.json()["detail"]
        places.pop().__exit__(None, None, None)

        def let_in() -> bool:
            with service.events("crowd") as told:
                return bool(next(told))

        services.eventually(let_in, 10, "a free place")
        for place in places:
            place.__exit__(None, None, None)
        assert http.get("/v1/jobs/unknown/events").status_code == 404
    service.ledger.cancel("crowd")


def test_a_gateway_ends_though_somebody_follows(valkey: str, tmp_path: Path) -> None:
    with gateway(tmp_path, valkey) as service:
        service.begun("endless")
        with service.events("endless") as told:
            next(told)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(20) is not None
        service.ledger.cancel("endless")


def test_silence_is_kept_alive(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEPALIVE_S", 0.0)

    async def first_two() -> list[bytes]:
        settings = Settings(redis_url=valkey, blobs=str(tmp_path))
        made = Gateway(settings, connect(settings))
        made.ledger.create(a_job("silent"))
        stream = events.events(made.ledger.job("silent"), made)
        seen = [await anext(stream), await anext(stream)]
        await stream.aclose()
        await made.end()
        return seen

    told, comment = asyncio.run(first_two())
    assert told.startswith(b"event: job\n")
    assert comment == b": still here\n\n"
