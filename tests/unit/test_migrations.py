"""Migrations to another model over HTTP, in a whole service in memory."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipfleet import Client
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.testing import MemoryService
from support import services
from support.archives import KINDS, packed
from support.images import encoded
from support.in_process import GatedImages

DIM, IMAGES = 64, 40
MIGRATIONS = "/v1/collections/photos/migrations"


class OtherWeights(HashEmbedder):
    """A model with the same dimension as another one, and other embeddings."""

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return super().embed_images(255 - pixels)

    def embed_texts(self, texts: "Any") -> Embeddings:
        return super().embed_texts([f"other {text}" for text in texts])


EMBEDDERS: dict[str, HashEmbedder] = {"hash:64": HashEmbedder(DIM), "other": OtherWeights(DIM)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for n in range(IMAGES):
        pixels = numbers.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@contextmanager
def served(
    photos: Path,
    other: HashEmbedder | None = None,
    own: HashEmbedder | None = None,
    **settings: Any,
) -> Iterator["Run"]:
    """A service with workers of two models, and the photos in a collection."""
    own, more = own or EMBEDDERS["hash:64"], {"other": other or EMBEDDERS["other"]}
    with (
        MemoryService(embedder=own, more=more, source_roots=[photos.parent], **settings) as service,
        service.client() as client,
        httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http,
    ):
        client.index("photos", str(photos), label_from_folder=True, wait=True)
        yield Run(service, client, http, photos)


class Run:
    def __init__(
        self, service: MemoryService, client: Client, http: httpx.Client, photos: Path
    ) -> None:
        self.service, self.client, self.http, self.photos = service, client, http, photos

    def post(self, step: str = "", **body: Any) -> httpx.Response:
        return self.http.post(f"{MIGRATIONS}{step and '/'}{step}", json=body or None)

    def start(self, model: str = "other") -> None:
        assert self.post(model=model).status_code == 201

    def shown(self) -> dict[str, Any]:
        answer = self.http.get(MIGRATIONS)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        services.eventually(lambda: holds(self.shown()), 60, what)
        return self.shown()

    def ready(self) -> dict[str, Any]:
        return self.until(lambda it: it["state"] == "ready", "all images to be copied")

    def generation(self, model: str) -> Collection:
        migration = self.service.parts.catalogue.migration("photos")
        assert migration is not None
        return migration.old if migration.old.model == model else migration.new

    def labels(self, model: str) -> dict[str, str]:
        rows = self.service.parts.store.scan(self.generation(model), limit=10_000)
        return {row.id: row.label for row in rows}

    def id(self, n: int) -> str:
        return str(self.photos / f"{n}.png")


@pytest.fixture
def run(photos: Path) -> Iterator[Run]:
    with served(photos) as run:
        yield run


def detail(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["detail"])


def test_answers_come_from_one_model_while_it_is_swapped_to_and_fro(run: Run) -> None:
    vectors = {
        model: {
            str(path): embedder.embed_images(
                embedder.preprocess.apply(np.asarray(Image.open(path)))[None]
            )[0]
            for path in run.photos.iterdir()
        }
        for model, embedder in EMBEDDERS.items()
    }
    over, models, faults = threading.Event(), set[str](), list[str]()

    def search() -> None:
        with httpx.Client(base_url=run.service.url, timeout=60, trust_env=False) as http:
            number = 0
            while not over.is_set():
                number += 1
                text = f"text {number}"
                answer = http.post("/v1/collections/photos/search", json={"text": text, "top_k": 5})
                if answer.status_code != 200:
                    faults.append(answer.text)
                    continue
                body = answer.json()
                model = body["model"]
                models.add(model)
                query = EMBEDDERS[model].embed_texts([text])[0]
                scores = {key: float(query @ vector) for key, vector in vectors[model].items()}
                best = sorted(scores.values(), reverse=True)[:5]
                matches = [(match["id"], match["score"]) for match in body["matches"]]
                if body["generation"] != run.generation(model).generation:
                    faults.append(f"{model} has another generation: {body['generation']}")
                elif not np.allclose([score for _, score in matches], best, atol=1e-5):
                    faults.append(f"{model}: {matches} in place of {best}")
                elif not np.allclose([scores[key] for key, _ in matches], best, atol=1e-5):
                    faults.append(f"{model}: {matches} are scores of another model")

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        run.start()
        run.ready()
        for step, model in 3 * (("swap", "other"), ("rollback", "hash:64")):
            assert run.post(step).json()["state"] == {"swap": "swapped", "rollback": "ready"}[step]
            answer = run.http.post("/v1/collections/photos/search", json={"text": "x"})
            assert answer.json()["model"] == model
            time.sleep(0.1)
        run.post("swap")
        assert run.post("finish").json()["state"] == "finished"
        run.start("hash:64")  # and back
        run.ready()
        run.post("swap")
        assert run.post("finish").json()["state"] == "finished"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert models == {"hash:64", "other"}


def test_what_cannot_be_started_is_refused(run: Run) -> None:
    assert "there is no migration" in detail(run.http.get(MIGRATIONS), 404)
    assert "already has the model 'hash:64'" in detail(run.post(model="hash:64"), 409)
    assert "start one with CLIPFLEET_MODEL=none" in detail(run.post(model="none"), 503)
    missing = run.http.post("/v1/collections/none/migrations", json={"model": "other"})
    assert "no collection 'none'" in detail(missing, 404)
    for body in ({}, {"model": ""}, {"model": 3}, {"model": "other", "dim": 3}):
        assert run.http.post(MIGRATIONS, json=body).status_code == 422
    for step in ("swap", "rollback", "finish", "pause", "resume"):
        assert "there is no migration" in detail(run.post(step), 404)
    run.start()
    for model in ("other", "hash:64", "none"):
        again = run.post(model=model)
        assert "being migrated to the model 'other' already" in detail(again, 409)
    assert again.json()["migration"] == run.shown()["id"]
    put = run.http.put("/v1/collections/photos", json={"model": "other"})
    assert "migrate it (POST /v1/collections/photos/migrations)" in detail(put, 409)


def test_a_swap_before_all_is_copied_needs_force(photos: Path) -> None:
    gated = GatedImages()
    with served(photos, gated) as run:
        run.start()
        assert gated.reached.wait(60)
        try:
            refused = run.post("swap")
            assert f"{IMAGES} of {IMAGES} images are not copied" in detail(refused, 409)
            assert (refused.json()["missing"], refused.json()["images"]) == (IMAGES, IMAGES)
            assert run.shown()["missing"] == IMAGES
            swapped = run.post("swap", force=True).json()
            assert swapped["state"] == "swapped"
            assert [swapped[side]["answers"] for side in ("old", "new")] == [False, True]
            refused = run.post("finish")
            assert f"{IMAGES} of {IMAGES} images" in detail(refused, 409)
        finally:
            gated.gate.set()
        run.until(lambda it: it["new"]["images"] == IMAGES, "the rest of the images")
        assert run.post("finish").json()["state"] == "finished"


def test_what_cannot_be_read_any_more_is_listed_before_the_swap(run: Run) -> None:
    job = run.client.upload("photos", [Path(run.id(0))], ids=["uploaded"], wait=True)
    run.http.delete(f"/v1/jobs/{job.id}").raise_for_status()  # and its files
    vector = {"id": "own", "values": [1.0] * DIM}
    run.http.post("/v1/collections/photos/vectors", json={"vectors": [vector]}).raise_for_status()
    lost = run.photos / "3.png"
    kept = lost.read_bytes()
    lost.unlink()
    run.start()
    shown = run.ready()
    assert (shown["unreadable"], shown["missing"]) == (3, 0)
    reasons: dict[str, str] = {}
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        page = run.http.get(
            f"{MIGRATIONS}/unreadable", params={"limit": 1, "cursor": page["next"]}
        ).json()
        reasons |= {image["id"]: image["reason"] for image in page["images"]}
    assert "No such file" in reasons.pop(str(lost))
    assert "CLIPFLEET_KEEP_UPLOADS" in reasons.pop("uploaded")
    assert "a client wrote its embedding" in reasons.pop("own")
    assert reasons == {}
    assert "3 images cannot be read any more" in detail(run.post("swap"), 409)
    lost.write_bytes(kept)  # it is there again, and is tried again
    run.post("pause")
    run.post("resume")
    run.until(lambda it: it["unreadable"] == 2 and not it["jobs"], "the file to be read")
    assert run.post("swap", force=True).json()["state"] == "swapped"
    assert len(run.labels("other")) == IMAGES


def test_what_is_deleted_is_deleted_in_both(run: Run) -> None:
    run.start()
    run.ready()
    thumbnails = [
        thumbnail_key(run.generation(model), row.pk)
        for model in EMBEDDERS
        for row in run.service.parts.store.scan(run.generation(model), limit=100)
        if row.id == run.id(1)
    ]
    for key in thumbnails:
        assert run.service.parts.blobs.get(key, 1_000_000)
    run.http.delete("/v1/collections/photos/images", params={"id": run.id(1)}).raise_for_status()
    for key in thumbnails:
        assert not (run.service.folder / "blobs" / key).exists()
    gone = run.http.post(
        "/v1/collections/photos/delete", json={"filter": {"id": {"$in": [run.id(2), run.id(3)]}}}
    )
    assert gone.json() == {"deleted": 2, "more": False}
    for model in EMBEDDERS:
        assert run.labels(model).keys() == {run.id(n) for n in range(IMAGES) if n not in (1, 2, 3)}


def test_what_is_written_reaches_both(run: Run) -> None:
    run.start()
    run.ready()

    def index(n: int, namespace: str) -> None:
        path = run.photos / f"new-{n}.png"
        Image.new("RGB", (9, 9), (n, n, n)).save(path)
        run.client.index("photos", str(path), namespace=namespace, wait=True)

    index(1, "a")
    run.until(lambda it: it["new"]["images"] == IMAGES + 1, "the first image")
    assert run.post("swap").json()["state"] == "swapped"
    index(2, "b")
    run.until(lambda it: it["old"]["images"] == IMAGES + 2, "the second image")
    both = [
        {(row.namespace, row.id, row.job_id, row.indexed_at) for row in rows}
        for model in EMBEDDERS
        if (rows := run.service.parts.store.scan(run.generation(model), limit=1_000))
    ]
    assert both[0] == both[1]
    assert run.post("rollback").json()["state"] == "ready"
    matches = run.http.get("/v1/collections/photos").json()
    assert (matches["count"], matches["model"]) == (IMAGES + 2, "hash:64")


def test_it_is_paused_resumed_and_cancelled(photos: Path) -> None:
    gated = GatedImages()
    with served(photos, gated) as run:
        run.start()
        assert gated.reached.wait(60)
        (job,) = run.shown()["jobs"]
        paused = run.post("pause").json()
        assert (paused["state"], paused["jobs"]) == ("paused", [])
        assert run.post("pause").status_code == 200
        gated.gate.set()
        assert run.client.job(job).state == "cancelled"
        assert run.post("resume").json()["state"] == "building"
        assert run.ready()["missing"] == 0
        new = run.generation("other")
        cancelled = run.http.delete(MIGRATIONS)
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        assert run.http.delete(MIGRATIONS).status_code == 200
        for step in ("pause", "resume", "swap", "rollback", "finish"):
            assert "is cancelled" in detail(run.post(step), 409)
        assert run.service.parts.store.missing([new]) == [new]
        assert run.http.get("/v1/collections/photos").json()["count"] == IMAGES
        run.start()  # another one


def test_a_job_that_is_cancelled_pauses_it(photos: Path) -> None:
    gated = GatedImages()
    with served(photos, gated) as run:
        run.start()
        assert gated.reached.wait(60)
        (job,) = run.shown()["jobs"]
        run.client.cancel(job)
        gated.gate.set()
        shown = run.until(lambda it: it["state"] == "paused", "the migration to be paused")
        assert job in shown["error"]


def test_the_end_of_the_collection_is_that_of_its_migration(run: Run) -> None:
    run.start()
    run.ready()
    generations = [run.generation(model) for model in EMBEDDERS]
    run.post("swap")
    run.http.delete("/v1/collections/photos").raise_for_status()
    assert run.service.parts.store.missing(generations) == generations
    assert run.http.get(MIGRATIONS).status_code == 404
    assert run.service.parts.catalogue.migration("photos") is None
    assert run.service.parts.catalogue.to_drop() == []


def test_jobs_from_before_the_swap_lose_nothing(photos: Path) -> None:
    own = GatedImages()
    own.gate.set()
    with served(photos, own=own) as run:
        late = photos / "late.png"
        Image.new("RGB", (9, 9), (1, 2, 3)).save(late)
        run.start()
        run.ready()
        own.gate.clear()
        own.reached.clear()
        job = run.client.index("photos", str(late))
        assert own.reached.wait(60)
        assert run.post("swap").json()["state"] == "swapped"
        try:
            assert job.id in detail(run.post("finish"), 409)
        finally:
            own.gate.set()
        assert run.client.wait(job).state == "succeeded"
        finished = services.eventually(
            lambda: run.post("finish").json().get("state") == "finished", 60, "the end"
        )
        assert finished
        assert str(late) in run.labels("other")


def test_a_job_of_a_migration_is_not_retried(run: Run) -> None:
    (run.photos / "3.png").unlink()
    run.start()
    run.ready()
    jobs = run.http.get("/v1/jobs").json()["jobs"]
    copying = next(job for job in jobs if job["source"].startswith("images of the collection"))
    refused = run.http.post(f"/v1/jobs/{copying['id']}/retry")
    assert "pause and resume the migration" in detail(refused, 409)


def test_a_job_from_before_the_migrations_is_retried_with_the_present_model(run: Run) -> None:
    broken = run.photos / "broken.png"
    broken.write_bytes(b"no image")
    job = run.client.index("photos", str(broken))
    services.eventually(lambda: run.client.job(job.id).state == "failed", 60, "the first job")
    run.start()
    run.ready()
    run.post("swap")
    run.post("finish")
    run.start("hash:64")
    run.ready()
    run.post("swap", force=True)
    run.post("finish")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(broken)
    retried = run.http.post(f"/v1/jobs/{job.id}/retry")
    assert retried.status_code == 202, retried.text
    services.eventually(
        lambda: run.client.job(retried.json()["id"]).state == "succeeded", 60, "the retry"
    )
    assert str(broken) in {
        row.id for row in run.service.parts.store.scan(run.generation("hash:64"), limit=1_000)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_archives_are_read_again(photos: Path, kind: str) -> None:
    members = {f"in/{n}.png": encoded(Image.new("RGB", (9, 9), (n, n, n)), "PNG") for n in (1, 2)}
    (photos.parent / kind).write_bytes(packed(kind, members))
    with served(photos) as run:
        place = str(photos.parent / kind)
        run.client.index("photos", place, wait=True)
        run.start()
        assert run.ready()["unreadable"] == 0
        copies = run.labels("other")
        assert {f"{place}#{member}" for member in members} <= copies.keys()


def test_answers_are_compared(run: Run) -> None:
    run.start()
    shown = run.until(lambda it: it["comparison"] is not None, "the comparison")
    compared = shown["comparison"]
    assert (compared["queries"], compared["labelled"]) == (IMAGES, IMAGES)
    assert 0 < compared["overlap_at_10"] < 1
    assert compared["precision_at_10_old"] == compared["precision_at_10_new"] == 1.0


def test_images_that_are_alone_in_their_namespaces_are_compared(run: Run) -> None:
    run.http.post("/v1/collections/photos/delete", json={"all": True}).raise_for_status()
    for n in range(3):
        run.client.index("photos", run.id(n), namespace=f"tenant-{n}", wait=True)
    run.start()
    shown = run.until(lambda it: it["comparison"] is not None, "the comparison")
    assert (shown["comparison"]["queries"], shown["comparison"]["labelled"]) == (0, 0)


def test_a_deletion_by_filter_spares_what_was_changed_and_not_copied(run: Run) -> None:
    run.start()
    run.ready()
    run.post("pause").raise_for_status()
    changes = [{"id": run.id(1), "label": "other"}]
    run.client.update_images("photos", changes)
    gone = run.http.post("/v1/collections/photos/delete", json={"filter": {"label": "photos"}})
    assert gone.json() == {"deleted": IMAGES - 1, "more": False}
    assert run.labels("hash:64") == {run.id(1): "other"}
    assert run.labels("other").keys() == {run.id(1)}
    run.post("resume").raise_for_status()
    run.until(lambda _: run.labels("other") == {run.id(1): "other"}, "the change")


def test_no_image_of_the_old_generation_is_lost_at_the_end(photos: Path) -> None:
    for n in range(IMAGES, 100):
        Image.new("RGB", (9, 9), (n, n, n)).save(photos / f"{n}.png")
    own, other = GatedImages(), GatedImages()
    own.gate.set()
    other.gate.set()
    with served(photos, other, own, call_timeout_s=1) as run:
        late = photos / "late.png"
        Image.new("RGB", (9, 9), (1, 2, 3)).save(late)
        run.start()
        run.ready()
        own.gate.clear()
        own.reached.clear()
        job = run.client.index("photos", str(late))
        assert own.reached.wait(60)
        run.post("swap").raise_for_status()
        other.gate.clear()
        own.gate.set()
        try:
            assert run.client.wait(job).state == "succeeded"
            assert "1 of 101 images are not copied" in detail(run.post("finish"), 409)
        finally:
            other.gate.set()
        services.eventually(lambda: str(late) in run.labels("other"), 60, "the copy")
        assert run.post("finish").json()["state"] == "finished"


def test_new_images_do_not_stand_for_those_that_are_not_copied(photos: Path) -> None:
    gated = GatedImages()
    with served(photos, gated, call_timeout_s=1) as run:
        run.start()
        assert gated.reached.wait(60)
        try:
            run.post("swap", force=True).raise_for_status()
            numbers = [1.0] * gated.dim
            vectors = [{"id": f"own-{n}", "values": numbers} for n in range(IMAGES)]
            added = run.http.post("/v1/collections/photos/vectors", json={"vectors": vectors})
            added.raise_for_status()
            refused = run.post("finish")
            assert f"{IMAGES} of {IMAGES} images are not copied" in detail(refused, 409)
        finally:
            gated.gate.set()


def test_what_changed_and_cannot_be_read_leaves_no_copy(run: Run) -> None:
    run.start()
    run.ready()
    vector = {"id": run.id(0), "values": [1.0] * DIM}
    run.http.post("/v1/collections/photos/vectors", json={"vectors": [vector]}).raise_for_status()
    shown = run.until(lambda it: it["unreadable"] == 1 and not it["jobs"], "the vector")
    assert shown["missing"] == 0
    assert run.labels("other").keys() == {run.id(n) for n in range(1, IMAGES)}
    assert "1 images cannot be read any more" in detail(run.post("swap"), 409)


@pytest.mark.parametrize("exif", [False, True])
def test_the_source_is_unchanged_after_a_migration(run: Run, *, exif: bool) -> None:
    def index() -> tuple[int, int]:
        options: Any = {"label_from_folder": True, "exif": exif, "wait": True}
        job = run.client.index("photos", str(run.photos), **options)
        return job.done, job.skipped

    index()
    run.client.update_images("photos", [{"id": run.id(1), "label": "by hand"}])
    run.start()
    run.ready()
    run.post("swap").raise_for_status()
    assert index() == (0, IMAGES)
    assert run.labels("other")[run.id(1)] == "by hand"
    run.client.update_images("photos", [{"id": run.id(2), "label": "by hand"}])
    changed = run.labels("other")
    run.until(lambda _: run.labels("hash:64") == changed, "the change to be copied back")
    run.post("rollback").raise_for_status()
    assert index() == (0, IMAGES)


@pytest.mark.parametrize("steps", [("swap",), ("swap", "finish")])
def test_an_upload_goes_on_after_the_swap(run: Run, steps: tuple[str, ...]) -> None:
    run.client.upload("photos", [Path(run.id(0))], ids=["known"], wait=True)
    run.start()
    run.ready()
    uploads = "/v1/collections/photos/uploads"
    upload = run.http.post(uploads, json={}).json()["id"]
    known = run.http.post(f"{uploads}/{upload}/known", json={"ids": ["known"]}).json()
    items = [{"id": "known", "content_hash": known["stored"][0], "label": "new"}]
    run.http.post(f"{uploads}/{upload}/images", files={"items": (None, json.dumps(items))})
    for step in steps:
        run.post(step).raise_for_status()
    png = encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG")
    added = run.http.post(f"{uploads}/{upload}/images", files={"files": ("sent", png)})
    assert added.status_code == 200, added.text
    for _ in range(2):
        begun = run.http.post(f"{uploads}/{upload}/job")
        assert begun.status_code == 202, begun.text
    state = run.client.wait(begun.json()["id"]).state
    assert state == ("partial" if "finish" in steps else "succeeded")
    run.until(lambda _: "sent" in run.labels("other"), "the image")


def test_a_job_that_names_an_alias_right_after_the_end_is_done(run: Run) -> None:
    run.http.put("/v1/aliases/live", json={"collection": "photos"}).raise_for_status()
    run.start()
    run.ready()
    run.http.get("/v1/collections/live").raise_for_status()  # the gateway remembers it
    run.post("swap").raise_for_status()
    assert run.post("finish").json()["state"] == "finished"
    late = run.photos / "late.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(late)
    assert run.client.index("live", str(late), wait=True).state == "succeeded"
    assert str(late) in run.labels("other")


class OtherFolder(MemoryService):
    """The worker of the model `other` has weights."""

    def _card(self, name: str, model: str, embedder: "Any") -> "Any":
        card = super()._card(name, model, embedder)
        return card.model_copy(update={"weights_id": "now"}) if model == "other" else card


def test_a_model_that_has_other_weights_by_now_does_not_get_the_name(photos: Path) -> None:
    more = {"other": EMBEDDERS["other"]}
    with (
        OtherFolder(dim=DIM, more=more, source_roots=[photos.parent]) as service,
        service.client() as client,
        httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http,
    ):
        client.index("photos", str(photos), wait=True)
        run = Run(service, client, http, photos)
        run.start()
        run.ready()
        catalogue = service.parts.catalogue
        while True:
            before = catalogue.migration("photos")
            assert before is not None
            new = before.new.model_copy(update={"weights_id": "then"})
            if catalogue.change_migration(before, before.model_copy(update={"new": new})):
                break
        assert "the weights of the model 'other' are not those" in detail(run.post("swap"), 409)
