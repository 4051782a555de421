"""docs/backup.md on the embedded stack: a copied data folder starts elsewhere.

Some copies mix parts of different moments.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from clipfleet import Client, Job
from clipfleet.errors import NotFound
from support.stack import HASH_MODEL, finished, up

SAMPLES = sorted((Path(__file__).parents[2] / "clipfleet" / "samples").rglob("*.png"))[::20]
MIDDLE = len(SAMPLES) // 2
WORDS = ("a dog", "a church", "something red")


@dataclass(frozen=True)
class Kept:
    """A stopped stack at `first`, and its copy at `here`, which ran on and was stopped, too.

    `first` has `early` in the collection `drawings`, and two collections with an image that
    failed: `sketches` from a manifest, `uploads` from an upload. At `here`, both failures were
    retried, of which the first succeeded; `late` went into `drawings`; `other` was created.
    """

    first: Path
    here: Path
    photos: Path
    before: dict[str, Any]  # what a user saw at `first`
    files: dict[str, str]  # of `first`, when it was stopped
    moved: dict[str, Any]  # what a user saw of that at `here`
    retries: tuple[Job, Job]  # of `sketches` and of `uploads`
    stage: str  # of the failure that was left
    seen: dict[str, Any]  # at the end


@contextmanager
def running(folder: Path) -> Iterator[Client]:
    with up(folder, HASH_MODEL) as started, started.client() as client:
        yield client


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("backup")
    first, here, photos = root / "first", root / "here", root / "photos"
    photos.mkdir()
    mended, broken = photos / "mended.png", photos / "broken.png"
    for path in (mended, broken):
        path.write_bytes(b"no picture")
    manifest(photos / "early.jsonl", SAMPLES[:MIDDLE])
    manifest(photos / "late.jsonl", [*SAMPLES[MIDDLE:], broken])
    manifest(photos / "sketches.jsonl", [SAMPLES[0], mended])
    with running(first) as client:
        client.create_collection("drawings", fields={"letters": "int"})
        client.index("drawings", photos / "early.jsonl", wait=True)
        client.index("sketches", photos / "sketches.jsonl", wait=True)
        client.upload("uploads", [SAMPLES[0], SAMPLES[1], broken], wait=True)
        before = everything(client)
    files = digests(first)
    shutil.copytree(first, here)
    with running(here) as client:
        moved = everything(client)
        mended.write_bytes(SAMPLES[2].read_bytes())
        retries = tuple(
            finished(client, client.retry(partial(client, name)).id)
            for name in ("sketches", "uploads")
        )
        (failure,) = client.iter_failures(retries[1])
        client.index("drawings", photos / "late.jsonl", wait=True)
        client.upload("other", [SAMPLES[0], SAMPLES[1], broken], wait=True)
        seen = everything(client)
    return Kept(first, here, photos, before, files, moved, retries, failure.stage, seen)


def manifest(path: Path, images: list[Path]) -> None:
    rows = [{"id": image.stem, "uri": str(image), "letters": len(image.stem)} for image in images]
    path.write_text("\n".join(json.dumps(row) for row in rows))


def everything(client: Client) -> dict[str, Any]:
    """Return all that a user can see."""
    names = [collection.name for collection in client.collections()]
    ids = {name: sorted(client.iter_ids(name)) for name in names}
    return {
        "collections": {
            collection.name: collection.model_dump() for collection in client.collections()
        },
        "ids": ids,
        "jobs": {job.id: job.model_dump() for job in client.jobs()},
        "failures": {
            job.id: [failure.model_dump() for failure in client.iter_failures(job)]
            for job in client.jobs()
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
            (name, image_id): hashlib.sha256(client.thumbnail(name, image_id)).hexdigest()
            for name in names
            for image_id in ids[name]
        },
    }


def by_picture(client: Client, picture: Path, image_id: str) -> dict[str, dict[str, Any]]:
    """Return one query for each way of searching without text."""
    (vector,) = client.embed(images=[picture])
    return {"image": {"image": picture}, "id": {"id": image_id}, "vector": {"vector": vector}}


class Score(float):
    """A score that equals another within rounding: float32 sums depend on the size of the batch."""

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and isclose(self, other, abs_tol=1e-6)


def matches(client: Client, collection: str, **query: Any) -> list[Any]:
    result = client.search(collection, **query)
    return [(match.id, Score(match.score), match.metadata) for match in result.matches]


def partial(client: Client, collection: str) -> Job:
    (job,) = client.jobs(collection=collection, state="partial")
    return job


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mixed(kept: Kept, where: Path, part: str) -> Path:
    """Copy `here` to `where` with one part of it taken from `first`."""
    shutil.copytree(kept.here, where)
    shutil.rmtree(where / part)
    shutil.copytree(kept.first / part, where / part)
    return where


def test_a_copy_of_the_folder_is_the_whole_service_at_another_place(kept: Kept) -> None:
    assert len(kept.before["jobs"]) == 3
    assert kept.before["collections"]["drawings"]["count"] == MIDDLE
    assert all(kept.before["matches"].values())
    assert all(kept.before["similar"].values())
    for what, was in kept.before.items():
        assert kept.moved[what] == was, what
    sketches, uploads = kept.retries
    assert (sketches.state, sketches.done) == ("succeeded", 1)
    assert kept.seen["collections"]["sketches"]["count"] == 2
    assert uploads.state == "failed"
    assert kept.stage == "decode", "its bytes were found, and are still no picture"
    assert kept.seen["collections"]["drawings"]["count"] == len(SAMPLES)
    assert digests(kept.first) == kept.files


def test_what_an_older_milvus_lacks_is_found_and_brought_back(kept: Kept, tmp_path: Path) -> None:
    with running(mixed(kept, tmp_path / "mixed", "milvus")) as client:
        done = sum(job.done for job in client.jobs(collection="drawings"))
        assert (done, client.collection("drawings").count) == (len(SAMPLES), MIDDLE)
        assert len(matches(client, "drawings", text="a dog", top_k=100)) == MIDDLE
        job = finished(client, client.index("drawings", kept.photos / "late.jsonl").id)
        assert (job.done, job.skipped, job.failed) == (len(SAMPLES) - MIDDLE, 0, 1)
        job = finished(client, client.index("drawings", kept.photos / "early.jsonl").id)
        assert (job.done, job.skipped) == (0, MIDDLE)
        job = finished(client, client.index("sketches", kept.photos / "sketches.jsonl").id)
        assert (job.done, job.skipped) == (1, 1)

        with pytest.raises(NotFound, match="no longer exists"):
            client.collection("other")
        client.delete_collection("other")
        client.upload("other", [SAMPLES[0], SAMPLES[1]], wait=True)
        now = everything(client)
        for what in ("ids", "thumbnails", "matches", "similar", "filtered"):
            assert now[what] == kept.seen[what], what


def test_what_an_older_redis_does_not_know_of_is_brought_back(kept: Kept, tmp_path: Path) -> None:
    late = len(SAMPLES) - MIDDLE
    with running(mixed(kept, tmp_path / "mixed", "valkey")) as client:
        assert {job.id: job.state for job in client.jobs()} == {
            job: was["state"] for job, was in kept.before["jobs"].items()
        }
        assert client.collection("drawings").count == len(SAMPLES), "images stay without their job"
        with pytest.raises(NotFound, match="there is no collection 'other'"):
            client.collection("other")
        job = finished(client, client.index("drawings", kept.photos / "late.jsonl").id)
        assert (job.done, job.skipped, job.failed) == (0, late, 1)
        client.upload("other", [SAMPLES[0], SAMPLES[1]], wait=True)
        now = everything(client)
        for what in ("ids", "thumbnails", "matches", "similar", "filtered"):
            assert now[what] == kept.seen[what], what
