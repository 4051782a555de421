"""docs/backup.md on the embedded stack: a copied data folder started elsewhere, and parts of it
that are of different moments."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clipfleet import Client, Job
from clipfleet.errors import NotFound
from support.stack import HASH_MODEL, finished, up

SAMPLES = sorted((Path(__file__).parents[2] / "clipfleet" / "samples").rglob("*.png"))[::20]
WORDS = ("a dog", "a church", "something red")
BROKEN = b"no picture"


@dataclass(frozen=True)
class Kept:
    """A stopped stack, and copies of two of its parts from an earlier moment.

    At that moment `early` was indexed. Since then: `late` into the same collection, and a
    collection `other` from an upload; of each job one image failed.
    """

    folder: Path
    earlier: Path
    photos: Path
    seen: dict[str, Any]


@contextmanager
def running(folder: Path) -> Iterator[Client]:
    with up(folder, HASH_MODEL) as started, started.client() as client:
        yield client


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("backup")
    here, earlier, photos = root / "here", root / "earlier", root / "photos"
    middle = len(SAMPLES) // 2
    manifest(photos / "early.jsonl", SAMPLES[:middle])
    manifest(photos / "late.jsonl", [*SAMPLES[middle:], photos / "broken.png"])
    with running(here) as client:
        client.create_collection("drawings", fields={"letters": "int"})
        finished(client, client.index(photos / "early.jsonl", "drawings").id)
    for part in ("milvus", "valkey"):
        shutil.copytree(here / part, earlier / part)
    (photos / "broken.png").write_bytes(BROKEN)
    with running(here) as client:
        finished(client, client.index(photos / "late.jsonl", "drawings").id)
        some = [SAMPLES[0], SAMPLES[1], photos / "broken.png"]
        finished(client, client.upload(some, "other").id)
        seen = everything(client)
    return Kept(here, earlier, photos, seen)


def manifest(path: Path, images: list[Path]) -> None:
    rows = [{"id": one.stem, "uri": str(one), "letters": len(one.stem)} for one in images]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))


def everything(client: Client) -> dict[str, Any]:
    """All that a user can see."""
    names = [one.name for one in client.collections()]
    ids = {name: sorted(client.iter_ids(name)) for name in names}
    return {
        "collections": {one.name: one.model_dump() for one in client.collections()},
        "ids": ids,
        "jobs": {one.id: one.model_dump() for one in client.jobs()},
        "failures": {
            one.id: [failure.model_dump() for failure in client.iter_failures(one)]
            for one in client.jobs()
        },
        "matches": {
            (name, text): matches(client, name, text=text) for name in names for text in WORDS
        },
        "similar": {
            (name, how): matches(client, name, **query)
            for name in names
            for how, query in by_picture(client, SAMPLES[0], ids[name][0]).items()
        },
        "filtered": matches(client, "drawings", text="a dog", filter={"letters": {"$gt": 5}}),
        "thumbnails": {
            (name, one): hashlib.sha256(client.thumbnail(one, name)).hexdigest()
            for name in names
            for one in ids[name]
        },
    }


def by_picture(client: Client, picture: Path, image_id: str) -> dict[str, dict[str, Any]]:
    """Every way of searching that is not by words."""
    (vector,) = client.embed(images=[picture])
    return {"image": {"image": picture}, "id": {"id": image_id}, "vector": {"vector": vector}}


def matches(client: Client, collection: str, **query: Any) -> list[Any]:
    found = client.search(collection, **query)
    return [(one.id, one.score, one.metadata) for one in found.matches]


def partial(client: Client, collection: str) -> Job:
    (found,) = client.jobs(collection=collection, state="partial")
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mixed(kept: Kept, where: Path, part: str) -> Path:
    """The folder, one part of it from the earlier moment."""
    shutil.copytree(kept.folder, where)
    shutil.rmtree(where / part)
    shutil.copytree(kept.earlier / part, where / part)
    return where


@pytest.fixture(autouse=True)
def _broken_again(kept: Kept) -> None:
    """A test may have mended it."""
    (kept.photos / "broken.png").write_bytes(BROKEN)


def test_a_copy_of_the_folder_is_the_whole_service_at_another_place(
    kept: Kept, tmp_path: Path
) -> None:
    assert len(kept.seen["jobs"]) == 3
    assert kept.seen["collections"]["drawings"]["count"] == len(SAMPLES)
    assert all(kept.seen["matches"].values())
    assert all(kept.seen["similar"].values())
    before = digests(kept.folder)
    shutil.copytree(kept.folder, tmp_path / "there")
    with running(tmp_path / "there") as client:
        now = everything(client)
        for what, was in kept.seen.items():
            assert now[what] == was, what

        uploaded = finished(client, client.retry(partial(client, "other")).id)
        (failure,) = client.iter_failures(uploaded)
        assert failure.stage == "decode", "its bytes were found, and are still no picture"
        (kept.photos / "broken.png").write_bytes(SAMPLES[2].read_bytes())
        again = finished(client, client.retry(partial(client, "drawings")).id)
        assert (again.state, again.done) == ("succeeded", 1)
        assert client.collection("drawings").count == len(SAMPLES) + 1
    assert digests(kept.folder) == before


def test_what_an_older_milvus_lacks_is_found_and_brought_back(kept: Kept, tmp_path: Path) -> None:
    early = len(SAMPLES) // 2
    with running(mixed(kept, tmp_path / "mixed", "milvus")) as client:
        done = sum(job.done for job in client.jobs(collection="drawings"))
        assert (done, client.collection("drawings").count) == (len(SAMPLES), early)
        assert len(matches(client, "drawings", text="a dog", top_k=100)) == early
        job = finished(client, client.index(kept.photos / "late.jsonl", "drawings").id)
        assert (job.done, job.skipped, job.failed) == (len(SAMPLES) - early, 0, 1)
        job = finished(client, client.index(kept.photos / "early.jsonl", "drawings").id)
        assert (job.done, job.skipped) == (0, early)

        with pytest.raises(NotFound, match="not there any more"):
            client.collection("other")
        client.delete_collection("other")
        client.upload([SAMPLES[0], SAMPLES[1]], "other", wait=True)
        now = everything(client)
        for what in ("ids", "thumbnails", "matches", "similar", "filtered"):
            assert now[what] == kept.seen[what], what


def test_what_an_older_redis_does_not_know_of_is_brought_back(kept: Kept, tmp_path: Path) -> None:
    late = len(SAMPLES) - len(SAMPLES) // 2
    with running(mixed(kept, tmp_path / "mixed", "valkey")) as client:
        (only,) = client.jobs()
        assert only.state == "succeeded"
        assert client.collection("drawings").count == len(SAMPLES), "images stay without their job"
        with pytest.raises(NotFound, match="there is no collection 'other'"):
            client.collection("other")
        job = finished(client, client.index(kept.photos / "late.jsonl", "drawings").id)
        assert (job.done, job.skipped, job.failed) == (0, late, 1)
        client.upload([SAMPLES[0], SAMPLES[1]], "other", wait=True)
        now = everything(client)
        for what in ("ids", "thumbnails", "matches", "similar", "filtered"):
            assert now[what] == kept.seen[what], what
