"""One stack with settings that no other test wants: a Redis with TLS, a user and a database of its
own, and ended jobs that are kept for a moment only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from support.ledgers import traces
from support.services import certificate, eventually, valkey_with_tls
from support.stack import HASH_MODEL, Up, photos, up

PHOTOS = 12
KEPT_S = 1.0


@dataclass
class Secured:
    """`redis_url` is the database of the stack, `authority` the certificate that it trusts."""

    stack: Up
    redis_url: str
    authority: Path

    def redis(self, database: str = "") -> "redis.Redis":
        url = self.redis_url[:-1] + database if database else self.redis_url
        return make_redis(Settings(redis_url=url, redis_ca=str(self.authority)))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    signed = certificate(folder / "tls", "localhost")
    with valkey_with_tls(folder / "valkey", signed) as url:
        settings = {
            "CLIPFLEET_REDIS_URL": url,
            "CLIPFLEET_REDIS_CA": str(signed.authority),
            "CLIPFLEET_RETENTION_DAYS": str(KEPT_S / 86_400),
        }
        with up(folder / "data", HASH_MODEL, **settings) as running:
            yield Secured(running, url, signed.authority)


def test_photos_are_indexed_and_found_through_a_redis_with_tls_and_a_user(
    secured: Secured, tmp_path: Path, flickr: list[Path]
) -> None:
    """The job may be gone before its end is seen here; what it did stays."""
    photos(tmp_path / "photos", flickr, PHOTOS)
    with secured.stack.client() as client:
        client.create_collection("secured")
        client.index("secured", tmp_path / "photos")
        eventually(lambda: client.collection("secured").count == PHOTOS, 60, "all photos")
        assert len(client.search("secured", text="a dog", top_k=3).matches) == 3
    with secured.redis() as own, secured.redis("0") as other:
        assert int(str(own.dbsize())) > 0
        assert int(str(other.dbsize())) == 0


def test_jobs_that_ended_long_ago_go_by_themselves(
    secured: Secured, tmp_path: Path, flickr: list[Path]
) -> None:
    files = [*photos(tmp_path, flickr, 1), tmp_path / "bad.png"]
    files[-1].write_bytes(b"not yet an image")
    with secured.stack.client() as client:
        job = client.upload("short", files)
        stored = secured.stack.folder / "blobs" / "uploads" / job.id
        eventually(lambda: not client.jobs(), 60, "the end of its keeping")
        assert not stored.exists()
        assert client.collection("short").count == 1
        with secured.redis() as connection:
            assert traces(connection, job.id) == []
