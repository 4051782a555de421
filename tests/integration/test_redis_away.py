"""Clients of a Valkey that is unavailable, in every way, and the server that they use next."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis

from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.queue.broker import BrokerUnavailable, CeleryPublisher, make_celery
from clipfleet.common.queue.fleet import CARD, RedisFleet
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.queue.replies import RedisInbox
from clipfleet.common.redis.client import (
    RedisUnavailable,
    close_async_redis,
    make_async_redis,
    make_redis,
    translating_redis_errors,
)
from clipfleet.common.settings import Settings
from clipfleet.embedded.commands import free_port
from clipfleet.workers.queue.consumer import KEPT_EVENTS
from support import services, valkeys
from support.gateways import in_process
from support.query_fleet import COLLECTION, MODEL, a_card

NUDGE = IngestNudge(model="m")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkeys.Server]:
    with valkeys.server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def settings(valkey: valkeys.Server) -> Settings:
    return Settings(redis_url=valkey.url, call_timeout_s=2)


@pytest.fixture
def client(settings: Settings) -> Iterator["redis.Redis"]:
    with closing(make_redis(settings)) as client:
        yield client


@contextmanager
def busy(server: valkeys.Server) -> Iterator[None]:
    """Keep the server busy with a script that does not end."""
    with server.set_to(busy_reply_threshold=1):
        with suppress(redis.TimeoutError), closing(redis.Redis.from_url(server.url)) as other:
            other.connection_pool.connection_kwargs["socket_timeout"] = 0.1
            other.eval("while true do end", 0)
        try:
            yield
        finally:
            server.client.script_kill()
            services.eventually(server.client.ping, 30, "the end of the script")


FORMS: dict[str, Callable[[valkeys.Server], AbstractContextManager[None]]] = {
    "You can't write against a read only replica": valkeys.Server.read_only,
    "command not allowed when used memory": lambda server: server.set_to(maxmemory=1),
    "Not enough good replicas": lambda server: server.set_to(min_replicas_to_write=1),
    "running a script": busy,
}
away = pytest.mark.parametrize(("reason", "form"), FORMS.items(), ids=FORMS)


@away
def test_every_call_says_why_it_is_refused(
    valkey: valkeys.Server,
    client: "redis.Redis",
    reason: str,
    form: Callable[[valkeys.Server], AbstractContextManager[None]],
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.set("name", "value"),
        lambda: written(client.pipeline()),
        lambda: written(client.pipeline(transaction=False)),
        lambda: client.eval("return redis.call('SET', KEYS[1], 'value')", 1, "name"),
    ]
    with form(valkey):
        for call in calls:
            with pytest.raises(RedisUnavailable, match=reason), translating_redis_errors():
                call()
    assert all(call() for call in calls)


def test_a_replica_that_answers_nothing_says_why(
    valkey: valkeys.Server, client: "redis.Redis"
) -> None:
    with (
        valkey.set_to(replica_serve_stale_data="no"),
        valkey.read_only(),
        pytest.raises(RedisUnavailable, match="Link with MASTER is down"),
        translating_redis_errors(),
    ):
        client.get("name")
    client.get("name")


def written(pipe: Any) -> Any:
    return pipe.set("name", "value").set("other", "value").execute()


@away
def test_a_message_that_cannot_be_sent_is_refused_with_the_reason(
    valkey: valkeys.Server,
    settings: Settings,
    client: "redis.Redis",
    reason: str,
    form: Callable[[valkeys.Server], AbstractContextManager[None]],
) -> None:
    publisher = CeleryPublisher(make_celery(settings), client)
    with form(valkey), pytest.raises(BrokerUnavailable, match=reason):
        publisher.publish(NUDGE)
    publisher.publish(NUDGE)
    publisher.close()


def test_a_refused_write_goes_over_another_connection_the_next_time(
    valkey: valkeys.Server, client: "redis.Redis"
) -> None:
    """Behind a name or a proxy, another server may accept the next write."""
    before = client.client_id()
    with valkey.read_only():
        assert client.client_id() == before
        with pytest.raises(RedisUnavailable), translating_redis_errors():
            client.set("name", "value")
    assert client.client_id() != before


def test_who_waits_for_a_message_hears_that_redis_became_a_replica(
    valkey: valkeys.Server, settings: Settings, client: "redis.Redis"
) -> None:
    async def receive() -> bytes | str | None:
        receiver = make_async_redis(settings, timeout_s=10)
        inbox = RedisInbox(client, receiver)
        waiting = asyncio.create_task(inbox.receive("replies"))
        await asyncio.to_thread(services.eventually, lambda: is_blocked(valkey), 30, "a BLPOP")
        with valkey.read_only(), pytest.raises(RedisUnavailable, match="read only replica"):
            await waiting
        valkey.client.rpush("replies", "reply")
        reply = await inbox.receive("replies")
        await close_async_redis(receiver)
        return reply

    assert asyncio.run(receive()) == b"reply"


def is_blocked(valkey: valkeys.Server) -> bool:
    state: Any = valkey.client.info("clients")
    return bool(state["blocked_clients"])


def test_a_server_that_loads_its_data_says_so(
    valkey: valkeys.Server, client: "redis.Redis", settings: Settings
) -> None:
    publisher = CeleryPublisher(make_celery(settings), client)
    with valkey.loading():
        with (
            pytest.raises(RedisUnavailable, match="is loading its data"),
            translating_redis_errors(),
        ):
            client.get("name")
        with pytest.raises(BrokerUnavailable, match="is loading its data"):
            publisher.publish(NUDGE)
    assert client.set("name", "value")
    publisher.publish(NUDGE)
    publisher.close()


@pytest.mark.timeout(60)
def test_a_sender_is_told_at_once_that_nobody_answers(client: "redis.Redis") -> None:
    """kombu would retry for as long as one call may take."""
    nowhere = Settings(redis_url="redis://127.0.0.1:9", call_timeout_s=600)
    publisher = CeleryPublisher(make_celery(nowhere), client)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        publisher.publish(NUDGE)


def test_a_heartbeat_that_cannot_be_sent_holds_up_nothing(
    valkey: valkeys.Server, settings: Settings
) -> None:
    with dispatcher(settings) as events:
        events.send("worker-heartbeat", number=1)
        with valkey.set_to(replica_serve_stale_data="no"), valkey.read_only():
            # A daemon, since Celery's own dispatcher does not return.
            beat = {"number": 2, "retry": True}
            thread = Thread(target=events.send, args=["worker-heartbeat"], kwargs=beat, daemon=True)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
        assert kept(events) == [2]
        events.flush()
        assert kept(events) == []


def test_the_last_events_of_a_long_outage_are_kept() -> None:
    with dispatcher(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")) as events:
        for number in range(KEPT_EVENTS + 5):
            events.send("worker-heartbeat", number=number)
        assert kept(events) == list(range(5, KEPT_EVENTS + 5))


@contextmanager
def dispatcher(settings: Settings) -> Iterator[Any]:
    """A worker's dispatcher of events, with a health check before each event."""
    app = make_celery(settings)
    app.events.dispatcher_cls = "clipfleet.workers.queue.consumer:Dispatcher"
    app.conf.broker_transport_options["health_check_interval"] = 1e-9  # s
    with app.connection_for_write() as connection:
        yield app.events.Dispatcher(connection, enabled=True)


def kept(events: Any) -> list[int]:
    return [event["number"] for event, _ in events._outbound_buffer]


def test_who_is_alive_is_told_by_a_replica_too(
    valkey: valkeys.Server, client: "redis.Redis"
) -> None:
    fleet = RedisFleet(client)
    for worker in ("one", "other"):
        fleet.announce(a_card(worker))
    client.delete(f"{CARD}other")
    with valkey.read_only():
        assert [card.id for card in fleet.alive()] == ["one"]
    client.flushall()


def test_a_gateway_that_ends_leaves_no_connection(valkey: valkeys.Server, tmp_path: Path) -> None:
    valkey.client.flushall()
    RedisCatalogue(valkey.client).add(COLLECTION)
    RedisFleet(valkey.client).announce(a_card("w", MODEL).model_copy(update={"dim": 16}))
    before = connections(valkey)
    with in_process(tmp_path, valkey.url, query_timeout_s=0.2) as http:
        answer = http.post("/v1/collections/c/search", json={"text": "a dog"})
        assert answer.status_code == 503
        assert valkey.client.llen(f"query.{MODEL}") == 1
        services.eventually(lambda: is_blocked(valkey), 30, "a reader of replies")
        assert len(connections(valkey)) > len(before) + 2
    services.eventually(lambda: connections(valkey) == before, 30, "the end of all connections")


def connections(valkey: valkeys.Server) -> set[str]:
    listed: Any = valkey.client.client_list()
    return {line["id"] for line in listed}
