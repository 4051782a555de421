"""The address of Redis Sentinels in CLIPFLEET_REDIS_URL, and what kombu is given in its place."""

from typing import Any

import pytest

from clipfleet.common.process.checks import NO_ADDRESS, service_checks
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.redis.client import make_redis, tls_options
from clipfleet.common.redis.sentinel import SentinelAddress, sentinel_address
from clipfleet.common.settings import Settings

WHOLE = (
    "rediss+sentinel://app:p%40ss%2Fword@one:26380,two,[::1]:26381/main/2"
    "?sentinel_username=watch&sentinel_password=d%40g"
)


def test_every_part_of_an_address_is_read() -> None:
    assert sentinel_address(WHOLE) == SentinelAddress(
        nodes=(("one", 26380), ("two", 26379), ("::1", 26381)),
        service="main",
        database=2,
        credentials={"username": "app", "password": "p@ss/word"},
        sentinel_credentials={"username": "watch", "password": "d@g"},
        tls=True,
    )


def test_an_address_is_checked_with_all_it_leads_to() -> None:
    assert len(service_checks(Settings(redis_url=WHOLE))) > 1


def test_what_is_left_out_has_the_usual_meaning() -> None:
    assert sentinel_address("redis+sentinel://one/main") == SentinelAddress(
        nodes=(("one", 26379),), service="main"
    )


@pytest.mark.parametrize("url", ["redis://one:6379/0", "rediss://one/0", "unix:///redis.sock", ""])
def test_other_addresses_are_none_of_sentinels(url: str) -> None:
    assert sentinel_address(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one:26379",
        "redis+sentinel://one:26379/",
        "redis+sentinel:///main",
        "redis+sentinel://one,,two/main",
        "redis+sentinel://one:port/main",
        "redis+sentinel://one/main/first",
        "redis+sentinel://one/main?password=secret",
        "redis+sentinel://one/main?ssl_cert_reqs=none",
    ],
)
def test_one_that_is_none_is_named_with_the_form_of_both_kinds(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        sentinel_address(url)
    (check,) = service_checks(Settings(redis_url=url))
    (finding,) = check()
    assert finding.part == "redis"
    assert "secret" not in str(finding)
    if "ssl_" not in url:
        assert finding == NO_ADDRESS
        assert "redis+sentinel://user:password@host:port,host:port/service/database" in finding.do


def test_the_queue_asks_the_same_sentinels_for_the_same_service() -> None:
    app = make_celery(Settings(redis_url=WHOLE, redis_ca="authority.pem", call_timeout_s=5))
    login = "app:p%40ss%2Fword"
    assert app.conf.broker_url == (
        f"sentinel://{login}@one:26380/2;sentinel://{login}@two:26379/2;"
        f"sentinel://{login}@[::1]:26381/2"
    )
    options = app.conf.broker_transport_options
    assert options["master_name"] == "main"
    assert options["sentinel_kwargs"]["password"] == "d@g"
    assert options["sentinel_kwargs"]["ssl"] is True
    assert options["sentinel_kwargs"]["ssl_ca_certs"] == "authority.pem"
    assert app.conf.broker_use_ssl["ssl_ca_certs"] == "authority.pem"
    assert app.connection().virtual_host == "2"


def test_sentinels_and_redis_are_verified_alike() -> None:
    settings = Settings(redis_url=WHOLE, redis_ca="authority.pem")
    pool: Any = make_redis(settings).connection_pool
    for verified in (pool.connection_kwargs, pool.sentinel_manager.sentinel_kwargs):
        assert tls_options(settings).items() <= verified.items()
    assert pool.connection_class.__name__ == "SentinelManagedSSLConnection"
    assert pool.connection_kwargs["db"] == 2
    assert pool.connection_kwargs["password"] == "p@ss/word"


def test_no_address_of_the_queue_is_shown_with_its_password() -> None:
    assert "p%40ss" not in make_celery(Settings(redis_url=WHOLE)).connection().as_uri()
