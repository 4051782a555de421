"""Everything at once: bad images, images that kill, and parts that are killed, again and again.

`CLIPFLEET_STORM_KILLS=200 pytest tests/chaos/test_storm.py` is the long form.
"""

import io
import os
import random
import signal
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import redis
from PIL import Image

from clipfleet import Client
from clipfleet.common.catalogue import RedisCatalogue, require
from clipfleet.common.identity import primary_key
from clipfleet.common.store.milvus import MilvusStore
from support import chaos, services, stack
from support.killer.sitecustomize import MARK
from support.models import data

KILLS = int(os.environ.get("CLIPFLEET_STORM_KILLS", "30"))
IMAGES = max(5_000, 100 * KILLS)
BAD, KILLERS = IMAGES // 20, 3
SEED = int(os.environ.get("CLIPFLEET_STORM_SEED", "0"))
PARTS = ("worker-ingest-1", "planner", "milvus", "valkey", "gateway")
# An image at a time, or the job is over before so many have died.
SLOW = {"CLIPFLEET_LEASE_S": "5", "CLIPFLEET_CHUNK_S": "2", "CLIPFLEET_EMBED_BATCH": "1"}
LEAST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
END_S = 60.0 * KILLS


def marked() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(made, "JPEG", comment=MARK)
    return made.getvalue()


def folder_of_all_kinds(folder: Path, chance: random.Random) -> tuple[set[str], set[str], set[str]]:
    """The ids of the good, the bad, and those that kill."""
    folder.mkdir()
    photos = sorted(data("caltech101-128").glob("*/*.jpg"))[:500]
    kinds = ["killer"] * KILLERS + ["bad"] * BAD + ["good"] * (IMAGES - BAD - KILLERS)
    chance.shuffle(kinds)
    ids: dict[str, set[str]] = {"good": set(), "bad": set(), "killer": set()}
    for number, kind in enumerate(kinds):
        path = folder / f"{number:05d}.jpg"
        if kind == "good":
            path.symlink_to(photos[number % len(photos)])
        else:
            path.write_bytes(marked() if kind == "killer" else b"no picture")
        ids[kind].add(str(path))
    return ids["good"], ids["bad"], ids["killer"]


def kill_at_random(up: stack.Up, client: Client, job: str, chance: random.Random) -> int:
    """Until the job has ended; how many processes were killed."""
    killed, deadline = 0, time.monotonic() + END_S
    while time.monotonic() < deadline:
        if killed < KILLS:
            with suppress(AssertionError, psutil.Error):  # it is just being started
                up.part(chance.choice(PARTS)).send_signal(signal.SIGKILL)
                killed += 1
        with suppress(Exception):  # the gateway may be the one that was killed
            if client.job(job).finished_at:
                return killed
        time.sleep(chance.uniform(LEAST_PAUSE_S, LONGEST_PAUSE_S))
    raise AssertionError(f"the job did not end: {client.job(job)}")


@pytest.mark.timeout(int(END_S) + 600)
def test_after_the_storm_every_good_image_is_in_once_and_every_bad_one_has_its_reason(
    tmp_path: Path, tiny: Path
) -> None:
    chance = random.Random(SEED)
    good, bad, killers = folder_of_all_kinds(tmp_path / "all", chance)
    settings = {**SLOW, **chaos.faults(tmp_path)}
    with (
        stack.up(tmp_path / "up", tiny, **settings) as up,
        up.client() as client,
    ):
        job = client.index(tmp_path / "all", "storm")
        killed = kill_at_random(up, client, job.id, chance)
        assert killed >= KILLS, "the job was too short"
        services.eventually(chaos.up_and_ready(up), 90, "a ready stack")

        ended = client.job(job.id)
        counts = (ended.state, ended.total, ended.done, ended.skipped, ended.failed)
        assert counts == ("partial", IMAGES, len(good), 0, len(bad) + len(killers))
        reasons = {one.id: one for one in client.iter_failures(job.id)}
        assert set(reasons) == bad | killers
        assert all("quarantined" in reasons[one].reason for one in killers)
        assert {reasons[one].stage for one in bad} == {"decode"}

        assert client.collection("storm").count == len(good)
        assert stored(up, "storm", good) == good
        assert stored(up, "storm", bad | killers) == set()


def stored(up: stack.Up, name: str, ids: set[str]) -> set[str]:
    """Which of the ids are in the store, asked directly."""
    port = chaos.option(up.part("milvus"), "--port")
    store = MilvusStore(f"http://127.0.0.1:{port}")
    with closing(redis.Redis.from_url(chaos.redis_url(up))) as valkey:
        collection = require(RedisCatalogue(valkey), name)
    keys = {primary_key("default", one): one for one in ids}
    listed = list(keys)
    found: set[str] = set()
    for start in range(0, len(listed), 500):
        found |= set(store.fingerprints(collection, listed[start : start + 500]))
    return {keys[key] for key in found}
