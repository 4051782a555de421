"""A worker that computes for half a minute on one chunk answers pings and holds its lease."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from clipfleet.common.broker import make_celery
from clipfleet.common.fleet import RedisFleet
from clipfleet.common.ledger import OpenChunk
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.settings import Settings
from support import chaos, services, stack
from support.models import data

CHUNK_S = 40.0
NAME = f"worker-ingest-1@{socket.gethostname()}"


def slow_clip(folder: Path) -> Path:
    """Half of a ViT-B/16: a few images a second on two cores."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    }
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    CLIPModel(
        CLIPConfig(projection_dim=32, vision_config=vision, text_config=text)
    ).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    CLIPTokenizerFast.from_pretrained(data("clip-vit-base-patch32")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Up]:
    model = slow_clip(tmp_path_factory.mktemp("slow-clip"))
    longer = {"CLIPFLEET_CHUNK_S": "60", "CLIPFLEET_LEASE_S": "5"}
    with stack.up(tmp_path_factory.mktemp("busy"), model, **longer) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: stack.Up) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(chaos.redis_url(running))) as client:
        yield client


@pytest.fixture(scope="module")
def count(
    running: stack.Up, client: "redis.Redis", tmp_path_factory: pytest.TempPathFactory
) -> int:
    """How many images take this worker CHUNK_S: fewer than go into one chunk."""
    photos = chaos.many_photos(tmp_path_factory.mktemp("first"), 32)
    with running.client() as http:
        http.create_collection("first")
        stack.finished(http, http.index(photos, "first").id)
    fleet = RedisFleet(client)

    def rates() -> list[float]:
        return [card.rate for card in fleet.alive() if card.rate]

    (rate,) = services.eventually(rates, 30, "the announcement of its rate")
    return max(4, int(CHUNK_S * rate))


def in_one_chunk(
    running: stack.Up, ledger: RedisLedger, collection: str, photos: Path
) -> tuple[str, OpenChunk]:
    with running.client() as http:
        http.create_collection(collection)
        job = http.index(photos, collection).id

    def leased() -> OpenChunk | None:
        chunks = ledger.open_chunks(job)
        return chunks[0] if ledger.job(job).planned and chunks and chunks[0].leased else None

    return job, services.eventually(leased, 30, "the claim")


def test_a_busy_worker_answers_every_ping_and_keeps_its_lease(
    running: stack.Up, client: "redis.Redis", count: int, tmp_path: Path
) -> None:
    ledger = RedisLedger(client)
    photos = chaos.many_photos(tmp_path / "photos", count)
    job, _ = in_one_chunk(running, ledger, "busy", photos)
    answered, seen = [], []
    with closing(make_celery(Settings(redis_url=chaos.redis_url(running)))) as app:
        while chunks := ledger.open_chunks(job):
            seen += chunks
            answered.append(app.control.ping(destination=[NAME], timeout=3))
            time.sleep(1)
    assert len(answered) >= 10, "the chunk was over too soon to say anything"
    assert all(answer == [{NAME: {"ok": "pong"}}] for answer in answered)
    assert {chunk.no for chunk in seen} == {1}
    assert {(chunk.attempt, chunk.leased, chunk.expired) for chunk in seen} == {(1, True, False)}
    chaos.require_exact(running, job, "busy", count)


def test_a_worker_told_to_end_hands_its_chunk_back_uncounted(
    running: stack.Up, client: "redis.Redis", count: int, tmp_path: Path
) -> None:
    ledger = RedisLedger(client)
    photos = chaos.many_photos(tmp_path / "photos", count)
    job, chunk = in_one_chunk(running, ledger, "told", photos)
    assert chunk.attempt == 1
    worker = running.part("worker-ingest-1")
    worker.terminate()
    services.eventually(lambda: not chaos.still_running([worker]), 60, "the worker's end")
    (handed_back,) = ledger.open_chunks(job)
    assert (handed_back.attempt, handed_back.leased) == (0, False)
    chaos.restarted(running, "worker-ingest-1", worker.pid)
    chaos.require_exact(running, job, "told", count)
