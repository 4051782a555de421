"""Real Sentinels: every client follows the primary, and wrong settings are named."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
import redis

from clipfleet.common.errors import Unavailable
from clipfleet.common.process.checks import Finding, check_redis
from clipfleet.common.queue.broker import CeleryPublisher, make_celery
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.common.queue.replies import RedisInbox
from clipfleet.common.redis.client import (
    RedisUnavailable,
    close_async_redis,
    close_redis,
    make_async_redis,
    make_redis,
    translating_redis_errors,
)
from clipfleet.common.settings import Settings
from support import services, valkeys

NUDGE = IngestNudge(model="m")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkeys.Watched]:
    with valkeys.watched(tmp_path_factory.mktemp("watched")) as servers:
        yield servers


@pytest.fixture
def settings(watched: valkeys.Watched) -> Settings:
    return Settings(redis_url=watched.url, call_timeout_s=2)


@pytest.fixture
def client(settings: Settings) -> Iterator["redis.Redis"]:
    client = make_redis(settings)
    yield client
    close_redis(client)


def test_a_client_writes_to_the_primary(client: "redis.Redis", watched: valkeys.Watched) -> None:
    client.set("who", "primary")
    assert watched.primary().client.get("who") == b"primary"


def test_the_checks_find_nothing_wrong(settings: Settings, client: "redis.Redis") -> None:
    errors = [finding for finding in check_redis(settings, client) if finding.severity == "error"]
    assert errors == []


def test_a_sentinel_that_is_away_is_passed_over(
    watched: valkeys.Watched, settings: Settings
) -> None:
    first = f"127.0.0.1:{watched.sentinels[0]}"
    elsewhere = settings.redis_url.replace(first, "127.0.0.1:9")
    lacking = settings.model_copy(update={"redis_url": elsewhere})
    with closing(make_redis(lacking)) as client:
        assert client.set("passed", "over")
        publisher = CeleryPublisher(make_celery(lacking), client)
        publisher.publish(IngestNudge(model="other"))
        assert publisher.waiting(IngestNudge(model="other").queue) == 1
        publisher.close()


def found_with(settings: Settings, right: str, wrong: str) -> Finding:
    """Return the finding for the address with `right` replaced by `wrong`."""
    address = settings.redis_url.replace(right, wrong)
    changed = settings.model_copy(update={"redis_url": address})
    with closing(make_redis(changed)) as client:
        (finding,) = check_redis(changed, client)
    return finding


def test_a_password_that_the_sentinels_refuse_is_named(settings: Settings) -> None:
    finding = found_with(settings, "watch%3Adog", "wrong")
    assert finding.severity == "error"
    assert "the Sentinel at 127.0.0.1:" in finding.what
    assert "the user or the password in CLIPFLEET_REDIS_URL" in finding.what
    assert "wrong" not in str(finding)


def test_a_password_that_redis_refuses_is_named(settings: Settings) -> None:
    wrong = settings.model_copy(update={"redis_url": settings.redis_url.replace("p%40ss", "other")})
    with closing(make_redis(wrong)) as client:
        (finding,) = check_redis(wrong, client)
    assert finding.what.startswith("Redis refuses the user or the password")


def test_a_service_that_no_sentinel_knows_is_away(settings: Settings) -> None:
    unknown = settings.model_copy(
        update={"redis_url": settings.redis_url.replace(valkeys.SERVICE, "other")}
    )
    with (
        closing(make_redis(unknown)) as client,
        pytest.raises(RedisUnavailable, match="know no primary"),
        translating_redis_errors(),
    ):
        client.ping()


def test_messages_go_to_the_new_primary(
    watched: valkeys.Watched, settings: Settings, client: "redis.Redis"
) -> None:
    publisher = CeleryPublisher(make_celery(settings), client)
    publisher.publish(NUDGE)
    watched.fail_over()
    services.eventually(lambda: sent(publisher), 30, "a message at the new primary")
    assert watched.primary().client.llen(NUDGE.queue) == publisher.waiting(NUDGE.queue)
    publisher.close()
    watched.heal()


def sent(publisher: CeleryPublisher) -> bool:
    """Publish a message; raises once where the connection to the old primary is still open."""
    publisher.publish(NUDGE)
    return True


def test_replies_are_read_from_the_new_primary(
    watched: valkeys.Watched, settings: Settings, client: "redis.Redis"
) -> None:
    async def receive() -> list[bytes | str | None]:
        receiver = make_async_redis(settings, timeout_s=10)
        inbox = RedisInbox(client, receiver)
        client.rpush("replies", "before")
        replies: list[bytes | str | None] = [await inbox.receive("replies")]
        watched.fail_over()
        services.eventually(lambda: client.rpush("replies", "after"), 30, "a reply")
        while len(replies) < 2:
            with suppress(Unavailable):
                replies.append(await inbox.receive("replies"))
        await close_async_redis(receiver)
        return replies

    assert asyncio.run(asyncio.wait_for(receive(), 60)) == [b"before", b"after"]
    watched.heal()


def test_an_address_of_sentinels_with_the_wrong_scheme_is_named(settings: Settings) -> None:
    finding = found_with(settings, "redis+", "rediss+")
    assert "does not use TLS" in finding.what
    assert finding.do == "CLIPFLEET_REDIS_URL must begin with redis+sentinel://"
