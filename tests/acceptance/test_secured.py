"""The whole service on a Redis with TLS, a user and a database of its own."""

from pathlib import Path

import redis

from clipfleet.common.connection import make_redis
from clipfleet.common.settings import Settings
from support import services, stack

PHOTOS = 12


def test_photos_are_indexed_and_found_through_a_redis_with_tls_and_a_user(
    tmp_path: Path, tiny: Path, flickr: list[Path]
) -> None:
    signed = services.certificate(tmp_path / "tls", "localhost")
    stack.photos(tmp_path / "photos", flickr[:PHOTOS], PHOTOS)
    with services.valkey_with_tls(tmp_path / "valkey", signed) as url:
        given = {"CLIPFLEET_REDIS_URL": url, "CLIPFLEET_REDIS_CA": str(signed.authority)}
        with stack.up(tmp_path / "data", tiny, **given) as up, up.client() as client:
            client.create_collection("secured")
            job = client.index(tmp_path / "photos", "secured")
            assert stack.finished(client, job.id).done == PHOTOS
            assert len(client.search("secured", text="a dog", top_k=3).matches) == 3
            assert keys(url, signed.authority) > 0
            assert keys(url[:-1] + "0", signed.authority) == 0


def keys(url: str, authority: Path) -> int:
    client: redis.Redis = make_redis(Settings(redis_url=url, redis_ca=str(authority)))
    try:
        return int(str(client.dbsize()))
    finally:
        client.close()
