"""TLS, user, password and database of Redis: queries work, and wrong settings are named."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clipfleet.common.redis.client import (
    RedisRefuses,
    RedisUnavailable,
    make_redis,
    translating_redis_errors,
)
from clipfleet.common.settings import Settings
from support import services
from support.gateways import gateway
from support.query_fleet import Fleet, answer, begin_search
from support.services import Certificate


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return services.certificate(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture(scope="module")
def url(signed: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.valkey_with_tls(tmp_path_factory.mktemp("valkey"), signed) as url:
        yield url


def refusal(url: str, authority: object = "") -> str:
    with closing(make_redis(Settings(redis_url=url, redis_ca=str(authority)))) as client:
        with pytest.raises(RedisRefuses) as refused, translating_redis_errors():
            client.ping()
        assert "\n" not in refused.value.detail
        assert "p@ss" not in refused.value.detail
        return refused.value.detail


def test_a_query_goes_its_whole_way_over_tls_with_a_user_of_database_two(
    url: str, signed: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_CA", str(signed.authority))
    with gateway(tmp_path, url) as service, Fleet(service, url, 1) as fleet:
        fleet.put(["a dog"])
        assert service.redis.connection_pool.connection_kwargs["db"] == 2
        asking = begin_search(service, "a dog")
        working = threading.Thread(target=lambda: fleet.answer(next(fleet.batches())))
        working.start()
        assert answer(asking)["matches"][0]["id"] == "a dog"
        working.join()


def test_a_wrong_user_or_password_is_named(url: str, signed: Certificate) -> None:
    for wrong in (url.replace("p%40ss", "other"), url.replace("app:", "nobody:")):
        assert "the user or the password in CLIPFLEET_REDIS_URL" in refusal(wrong, signed.authority)


def test_what_a_user_may_not_do_is_named(url: str, signed: Certificate) -> None:
    client = make_redis(Settings(redis_url=url, redis_ca=str(signed.authority)))
    with closing(client), pytest.raises(RedisRefuses, match="'config"), translating_redis_errors():
        client.config_get("maxmemory-policy")


def test_a_database_that_is_not_there_is_named(url: str, signed: Certificate) -> None:
    assert "no database with the number" in refusal(url[:-1] + "99", signed.authority)


def test_a_certificate_that_nobody_here_trusts_is_told_from_one_for_another_host(
    url: str, signed: Certificate, tmp_path: Path
) -> None:
    other = services.certificate(tmp_path, "localhost").authority
    for authority in ("", other):
        assert "CLIPFLEET_REDIS_CA" in refusal(url, authority)
    elsewhere = url.replace("localhost", "127.0.0.1")
    assert "not for the host" in refusal(elsewhere, signed.authority)


def test_a_redis_that_is_away_is_no_refusal() -> None:
    for scheme in ("redis", "rediss"):
        with closing(make_redis(Settings(redis_url=f"{scheme}://127.0.0.1:9"))) as client:
            with pytest.raises(RedisUnavailable) as away, translating_redis_errors():
                client.ping()
            assert not isinstance(away.value, RedisRefuses)
