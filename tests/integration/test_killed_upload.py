"""A gateway that is killed over an upload: the files it stored are found and removed."""

import asyncio
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
import redis
from fastapi import UploadFile

from clipfleet.api.gateway import Gateway
from clipfleet.api.parts import connect
from clipfleet.api.uploads import _started
from clipfleet.common.blobs import Blobs
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.settings import Settings
from clipfleet.common.unfinished import RedisUnfinished
from clipfleet.workers.housekeeper import DAY_S, Housekeeper


class Killed(BaseException):
    """Nothing that comes after it is carried out."""


class Killing(Blobs):
    """The process ends after the second file."""

    stored = 0

    def put(self, key: str, source: BinaryIO) -> None:
        super().put(key, source)
        self.stored += 1
        if self.stored == 2:
            raise Killed


async def upload(settings: Settings, blobs: Blobs) -> None:
    gateway = Gateway(settings, replace(connect(settings), blobs=blobs))
    new = NewJob(
        id="sent", collection="c", generation="g", model="m", namespace="n",
        source={"type": "upload"},
    )  # fmt: skip
    files = [UploadFile(BytesIO(b"bytes"), filename=f"{n}.jpg") for n in range(3)]
    try:
        await _started(new, files, "", "", gateway)
    finally:
        await gateway.end()


def test_what_a_killed_gateway_had_stored_goes_a_day_later(
    client: "redis.Redis", valkey_url: str, tmp_path: Path
) -> None:
    settings = Settings(redis_url=valkey_url, blobs=str(tmp_path))
    with pytest.raises(Killed):
        asyncio.run(upload(settings, Killing(settings.blobs)))
    assert len(list((tmp_path / "uploads" / "sent").iterdir())) == 2
    later = RedisUnfinished(client, lambda: RedisUnfinished(client)._clock() + DAY_S)
    Housekeeper("p", RedisLedger(client), later, Blobs(settings.blobs), 30).tidy()
    assert not (tmp_path / "uploads" / "sent").exists()


def test_of_an_upload_that_became_a_job_no_note_stays(
    client: "redis.Redis", valkey_url: str, tmp_path: Path
) -> None:
    settings = Settings(redis_url=valkey_url, blobs=str(tmp_path))
    asyncio.run(upload(settings, Blobs(settings.blobs)))
    assert RedisLedger(client).job("sent").state == "queued"
    assert RedisUnfinished(client).older(0, 10) == []
