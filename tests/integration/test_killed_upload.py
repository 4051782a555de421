"""A gateway that is killed during an upload: the housekeeper removes the stored files."""

import socket
from pathlib import Path

import httpx
import redis

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.workers.planner.housekeeper import DAY_S, Housekeeper
from support import gateways
from support.services import eventually

HEAD = (
    "POST /v1/collections/c/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
)
PART = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}.jpg"\r\n\r\nbytes\r\n'


def test_what_a_killed_gateway_had_stored_goes_a_day_later(
    client: "redis.Redis", valkey_url: str, tmp_path: Path
) -> None:
    RedisCatalogue(client).add(Collection.new("c", metric="cosine", model="m", dim=4, fields={}))
    folder, uploads = tmp_path / "gateway", tmp_path / "blobs" / "uploads"
    folder.mkdir()
    with gateways.gateway(folder, valkey_url) as service:
        url = httpx.URL(service.url)
        with socket.create_connection((url.host, url.port or 80)) as line:
            line.sendall((HEAD + PART.format("a") + PART.format("b")).encode())
            eventually(lambda: len(list(uploads.glob("*/*"))) == 2, 20, "two files")
            service.process.kill()
            service.process.wait()
    assert len(list(uploads.glob("*/*"))) == 2
    later = RedisUnfinished(client, lambda: RedisUnfinished(client)._clock() + DAY_S)
    Housekeeper("p", RedisLedger(client), later, Blobs(str(tmp_path / "blobs")), 30).tidy()
    assert list(uploads.iterdir()) == []


def test_of_an_upload_that_became_a_job_no_note_stays(
    client: "redis.Redis", valkey_url: str, tmp_path: Path
) -> None:
    RedisCatalogue(client).add(Collection.new("c", metric="cosine", model="m", dim=4, fields={}))
    with gateways.in_process(tmp_path, valkey_url) as http:
        answer = http.post("/v1/collections/c/images", files={"files": ("a.jpg", b"bytes")})
    assert RedisLedger(client).job(answer.json()["id"]).state == "queued"
    assert RedisUnfinished(client).older(0, 10) == []
