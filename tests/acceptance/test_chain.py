"""Photos in, photos back: the real chain against a computation in this process."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModel, AutoProcessor

from clipfleet import SearchResult
from support.models import data
from support.stack import Up, finished, photos, up

TOP_K = 10


@dataclass
class Yardstick:
    """transformers' own model, processor and numpy: nothing of clipfleet."""

    model: Any
    processor: Any
    ids: list[str]
    rows: NDArray[np.float32]

    @classmethod
    def of(cls, model: Path, paths: list[Path]) -> "Yardstick":
        made = cls(AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model), [], None)  # type: ignore[arg-type]
        made.ids = [str(path) for path in paths]
        made.rows = np.concatenate([made.image(path) for path in paths])
        return made

    def image(self, path: Path) -> NDArray[np.float32]:
        pixels = self.processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            return unit(self.model.get_image_features(pixel_values=pixels["pixel_values"]))

    def text(self, text: str) -> NDArray[np.float32]:
        tokens = self.processor(text=[text], return_tensors="pt")
        with torch.no_grad():
            return unit(self.model.get_text_features(**tokens))

    def nearest(self, query: NDArray[np.float32]) -> list[tuple[str, float]]:
        scores = self.rows @ query[0]
        order = np.argsort(-scores, kind="stable")[:TOP_K]
        return [(self.ids[n], float(scores[n])) for n in order]


def unit(features: Any) -> NDArray[np.float32]:
    rows = getattr(features, "pooler_output", features).numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def same(found: Any, expected: list[tuple[str, float]]) -> None:
    """Same ids in the same order, scores within 1e-3."""
    assert [match.id for match in found.matches] == [image_id for image_id, _ in expected]
    scores = [match.score for match in found.matches]
    assert np.allclose(scores, [score for _, score in expected], atol=1e-3)


def every_mode_agrees(
    service: Up, collection: str, yardstick: Yardstick, paths: list[Path]
) -> None:
    with service.client() as client, service.http() as http:
        for text in ("two dogs in the snow", "une église la nuit", "🚗"):
            found = client.search(collection, text=text, top_k=TOP_K)
            same(found, yardstick.nearest(yardstick.text(text)))
        for path in paths[::67]:
            expected = yardstick.nearest(yardstick.image(path))
            same(client.search(collection, image=path, top_k=TOP_K), expected)
            encoded = {"base64": base64.b64encode(path.read_bytes()).decode()}
            body = {"image": encoded, "top_k": TOP_K}
            answer = http.post(f"/v1/collections/{collection}/search", json=body)
            same(SearchResult.model_validate_json(answer.content), expected)
            same(client.search(collection, id=str(path), top_k=TOP_K), expected)
            vector = yardstick.image(path)[0].tolist()
            same(client.search(collection, vector=vector, top_k=TOP_K), expected)


def test_two_hundred_photos_are_found_by_every_mode_and_again_after_a_restart(
    tiny: Path, tmp_path: Path, flickr: list[Path]
) -> None:
    paths = photos(tmp_path / "photos", flickr, 200)
    yardstick = Yardstick.of(tiny, paths)
    with up(tmp_path / "data", tiny) as service, service.client() as client:
        client.create_collection("photos")
        job = finished(client, client.index(tmp_path / "photos", "photos").id)
        assert (job.state, job.done, job.total) == ("succeeded", 200, 200)
        every_mode_agrees(service, "photos", yardstick, paths)
    with up(tmp_path / "data", tiny) as service, service.client() as client:
        assert client.collection("photos").count == 200
        assert client.job(job.id) == job
        every_mode_agrees(service, "photos", yardstick, paths)


def test_labels_namespaces_and_filters(service: Up) -> None:
    imagenette = data("imagenette2-224") / "train"
    with service.client() as client:
        client.create_collection("labelled")
        for wnid in ("n03028079", "n01440764"):
            folder = imagenette / wnid
            few = photos(service.folder / "imagenette" / wnid, sorted(folder.iterdir()), 20)
            assert len(few) == 20
        job = client.index(
            service.folder / "imagenette", "labelled", label_from_folder=True, namespace="train"
        )
        assert finished(client, job.id).done == 40
        query: Any = {"text": "a church", "top_k": 40, "namespace": "train"}
        churches = client.search("labelled", **query, filter={"label": "n03028079"})
        assert len(churches.matches) == 20
        assert {match.label for match in churches.matches} == {"n03028079"}
        assert client.search("labelled", text="a church").matches == []
        everything = client.search("labelled", **query).matches
        middle = everything[20].score
        above = client.search("labelled", **query, min_score=middle).matches
        assert all(match.score >= middle for match in above)
        assert [m.id for m in above] == [m.id for m in everything[: len(above)]]
        page = client.search("labelled", text="a church", top_k=5, offset=5, namespace="train")
        assert [m.id for m in page.matches] == [m.id for m in everything[5:10]]


def test_an_unchanged_image_is_skipped_a_changed_one_replaced_a_deleted_one_gone(
    service: Up, flickr: list[Path]
) -> None:
    folder = service.folder / "changing"
    first, second, third = photos(folder, flickr, 3)
    with service.client() as client, service.http() as http:
        client.create_collection("changing")
        finished(client, client.index(folder, "changing").id)
        again = finished(client, client.index(folder, "changing").id)
        assert (again.done, again.skipped) == (0, 3)
        second.write_bytes(flickr[9].read_bytes())
        changed = finished(client, client.index(folder, "changing").id)
        assert (changed.done, changed.skipped) == (1, 2)
        forced = finished(client, client.index(folder, "changing", on_existing="replace").id)
        assert (forced.done, forced.skipped) == (3, 0)
        address = "/v1/collections/changing/images"
        assert http.delete(address, params={"id": str(third)}).json() == {"deleted": 1}
        assert http.get(address, params={"id": str(third)}).status_code == 404
        left = {match.id for match in client.search("changing", text="x").matches}
        assert left == {str(first), str(second)}


def test_an_upload_is_searchable_once_its_job_has_ended(service: Up, flickr: list[Path]) -> None:
    with service.client() as client:
        client.create_collection("uploads")
        job = finished(client, client.upload(flickr[:5], "uploads").id)
        assert (job.state, job.done) == ("succeeded", 5)
        (best, *_) = client.search("uploads", image=flickr[2]).matches
        assert best.id == flickr[2].name
        assert best.score == pytest.approx(1, abs=1e-3)


def test_own_vectors_go_in_and_come_back_as_in_the_tutorial(service: Up) -> None:
    with service.client() as client, service.http() as http:
        client.create_collection("own", model="none", dim=3, metric="euclidean")
        vectors = [{"id": "/path/to/img1", "values": [0, 0, 0]}, {"id": "b", "values": [3, 4, 0]}]
        answer = http.post("/v1/collections/own/vectors", json={"vectors": vectors})
        assert answer.json() == {"upserted": 2}
        shown = http.get(
            "/v1/collections/own/images", params={"id": "b", "include_values": True}
        ).json()
        assert shown["values"] == [3, 4, 0]
        found = client.search("own", vector=[0, 0, 0], include_values=True).matches
        assert [(match.id, match.score) for match in found] == [("/path/to/img1", 0), ("b", 5)]
        assert found[0].values == [0, 0, 0]
