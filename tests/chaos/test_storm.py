"""All faults at once: bad images, killing images, killed parts, and a Valkey that loses seconds.

`make chaos` is the long form.
"""

import io
import os
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from clipfleet.common.identity import primary_key
from clipfleet.common.ledger.catalogue import RedisCatalogue, require
from clipfleet.common.store.milvus import MilvusStore
from support import chaos, services, stack
from support.killer.sitecustomize import MARK
from support.models import data

KILLS = int(os.environ.get("CLIPFLEET_STORM_KILLS", "30"))
KILLS_AT_ONCE = 3
PAUSES = -(-KILLS // KILLS_AT_ONCE)
FORGOTTEN = -(-KILLS // 10)  # of the kills: Valkey loses what it wrote last
MAX_FORGOTTEN_S = 3.0
IMAGES = 20 * KILLS if KILLS < 200 else 100 * KILLS
BAD, KILLERS = IMAGES // 20, 3
GOOD = IMAGES - BAD - KILLERS
SEED = int(os.environ.get("CLIPFLEET_STORM_SEED", "0"))
WORKER = "worker-ingest-1"
PARTS = (WORKER, "planner", "milvus", "valkey", "gateway")
WITHOUT_LEASES = ("planner", "milvus", "gateway")
END_S = 60.0 * KILLS


def marked() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG", comment=MARK)
    return file.getvalue()


def folder_of_all_kinds(folder: Path, chance: random.Random) -> tuple[set[str], set[str], set[str]]:
    """Write images of all kinds; return the ids of the good, the bad and the killing ones."""
    folder.mkdir()
    photos = sorted(data("caltech101-128").glob("*/*.jpg"))[:500]
    kinds = ["killer"] * KILLERS + ["bad"] * BAD + ["good"] * GOOD
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


def kill_at_random(
    up: chaos.Up, job: str, log: chaos.Log, chance: random.Random
) -> tuple[Counter[str], list[int]]:
    """Kill parts at random; return how often each was killed, and the bytes lost each time.

    Each time a worker is held, at a random point, some parts are killed; the first time, all are.
    """
    killed: Counter[str] = Counter()
    forgotten: list[int] = []
    began = time.monotonic()
    while (remaining := KILLS - killed.total()) > 0:
        up.gate.wait()
        at_once = KILLS_AT_ONCE if killed else len(PARTS)
        parts = chance.sample(PARTS, min(at_once, remaining))
        for part in sorted(parts, key=WORKER.__eq__):  # a new worker may claim a last attempt
            if part not in WITHOUT_LEASES and on_its_last_attempt(up, job):
                part = chance.choice(WITHOUT_LEASES)
            job_s = time.monotonic() - began - 1  # the job itself is not to be forgotten
            due = len(forgotten) < FORGOTTEN * killed.total() / KILLS and job_s > 0.1
            if part == "valkey" and due:
                seconds = min(job_s, chance.uniform(0.1, MAX_FORGOTTEN_S))
                forgotten.append(log.forget(seconds))
            else:
                services.eventually(partial(kill, up, part), 60, f"the death of {part}")
            killed[part] += 1
            time.sleep(chance.uniform(0, 0.3))
        hold(up, chance)
    up.gate.open()
    return killed, forgotten


def hold(up: chaos.Up, chance: random.Random) -> None:
    """Hold the workers after some images; all pauses together need fewer than the good images."""
    images = chance.randint(chaos.CHUNK, GOOD // PAUSES - 2 * chaos.CHUNK)
    up.gate.hold(images, *chance.choice([(), ("stored",)]))


def kill(up: chaos.Up, part: str) -> bool:
    up.part(part).send_signal(signal.SIGKILL)
    return True


def on_its_last_attempt(up: chaos.Up, job: str) -> bool:
    """Return whether a worker holds a suspected image: a third death quarantines it."""

    def answer() -> tuple[bool]:
        with chaos.ledger(up) as ledger:
            return (any(chunk.leased and chunk.attempt > 2 for chunk in ledger.open_chunks(job)),)

    (last,) = services.eventually(answer, 60, "the ledger's answer")
    return bool(last)


@pytest.mark.timeout(int(END_S) + 600)
def test_after_the_storm_every_good_image_is_in_once_and_every_bad_one_has_its_reason(
    tmp_path: Path,
) -> None:
    chance = random.Random(SEED)
    good, bad, killers = folder_of_all_kinds(tmp_path / "all", chance)
    with chaos.up(tmp_path / "up") as up, up.client() as client, chaos.Log(up) as log:
        hold(up, chance)
        job = client.index("storm", tmp_path / "all")
        killed, forgotten = kill_at_random(up, job.id, log, chance)
        assert killed.total() == KILLS
        assert set(killed) == set(PARTS)
        print(f"killed {dict(killed)}, forgotten bytes {forgotten}")
        assert len(forgotten) >= FORGOTTEN - 1
        assert any(forgotten)
        stack.finished(client, job.id, END_S)
        services.eventually(up.ready, 90, "a ready stack")

        reasons = {failure.id: failure for failure in client.iter_failures(job.id)}
        assert {reasons[image_id].reason for image_id in set(reasons) - bad - killers} == set()
        assert set(reasons) == bad | killers
        assert all("SIGSEGV" in reasons[image_id].reason for image_id in killers)
        assert {reasons[image_id].stage for image_id in bad} == {"decode"}
        assert stored(up, "storm", bad | killers) == set()
        assert stored(up, "storm", good) == good
        assert client.collection("storm").count == len(good)
        ended = client.job(job.id)
        counts = (ended.state, ended.total, ended.done, ended.skipped, ended.failed)
        assert counts == ("partial", IMAGES, len(good), 0, len(bad) + len(killers))


def stored(up: chaos.Up, name: str, ids: set[str]) -> set[str]:
    """Return those of the ids that the store has."""
    port = chaos.option(up.part("milvus"), "--port")
    store = MilvusStore(f"http://127.0.0.1:{port}")
    with chaos.connection(up) as valkey:
        collection = require(RedisCatalogue(valkey), name)
    keys = {primary_key("default", image_id): image_id for image_id in ids}
    listed = list(keys)
    present: set[str] = set()
    for start in range(0, len(listed), 500):
        present |= set(store.fingerprints(collection, listed[start : start + 500]))
    return {keys[key] for key in present}
