"""A folder changes while mirrors of it run and parts are killed: index and folder are equal."""

import os
import random
from pathlib import Path

import pytest

from clipfleet import Client
from support import chaos, stack
from support.mirror_harness import picture

PARTS = ("planner", "worker-ingest-1", "gateway", "milvus", "valkey")
IMAGES = 120


def change(folder: Path, number: random.Random) -> None:
    """Some files come, change, vanish and are moved."""
    for _ in range(20):
        path = folder / f"{number.randrange(4)}" / f"{number.randrange(60)}.png"
        path.parent.mkdir(exist_ok=True)
        match number.randrange(4):
            case 0:
                path.unlink(missing_ok=True)
            case 1 if path.exists():
                os.replace(path, path.with_name(f"{number.randrange(60)}.png"))
            case _:
                path.write_bytes(picture(number.randrange(1 << 24)))


def mirrored(client: Client, folder: Path) -> None:
    job = client.index("mirrors", folder, mirror={"max_delete": 1.0}, create=True)
    ended = stack.finished(client, job.id, chaos.END_S)
    assert ended.state == "succeeded", ended
    files = sorted(str(path) for path in folder.rglob("*.png"))
    assert sorted(client.iter_ids("mirrors")) == files


@pytest.mark.parametrize("part", PARTS)
def test_a_mirror_survives_the_sudden_death_of(
    part: str, slow_stack: chaos.Up, tmp_path: Path
) -> None:
    number, folder = random.Random(part), tmp_path / "photos"
    for n in range(IMAGES):
        path = folder / f"{n % 4}" / f"{n // 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    with slow_stack.tidied(), slow_stack.client() as client:
        mirrored(client, folder)
        for after in (0, 4):  # before the first image, and after some
            change(folder, number)
            with slow_stack.gate.closed(after):
                job = client.index("mirrors", folder, mirror={"max_delete": 1.0})
                slow_stack.gate.wait()
                change(folder, number)
                victim = slow_stack.part(part)
                victim.kill()
                chaos.restarted(slow_stack, part, victim.pid)
            ended = stack.finished(client, job.id, chaos.END_S)
            assert ended.state in ("succeeded", "partial"), (
                ended
            )  # files vanish while they are read
        mirrored(client, folder)
        again = client.index("mirrors", folder, mirror={"max_delete": 0})
        last = stack.finished(client, again.id, chaos.END_S)
        assert (last.done, last.failed, last.mirror and last.mirror.gone) == (0, 0, 0)
