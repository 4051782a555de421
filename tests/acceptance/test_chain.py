"""Indexing and searching through the whole service.

test_parts.py compares the results with the model's own.
"""

from pathlib import Path
from typing import Any

import pytest

from support.models import data
from support.stack import Up, finished, photos


def test_labels_namespaces_and_filters(service: Up) -> None:
    imagenette = data("imagenette2-224") / "train"
    with service.client() as client:
        client.create_collection("labelled")
        for wnid in ("n03028079", "n01440764"):
            folder = imagenette / wnid
            few = photos(service.beside("imagenette") / wnid, sorted(folder.iterdir()), 20)
            assert len(few) == 20
        job = client.index(
            "labelled", service.beside("imagenette"), label_from_folder=True, namespace="train"
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
    folder = service.beside("changing")
    first, second, third = photos(folder, flickr, 3)
    with service.client() as client, service.http() as http:
        client.create_collection("changing")
        finished(client, client.index("changing", folder).id)
        again = finished(client, client.index("changing", folder).id)
        assert (again.done, again.skipped) == (0, 3)
        second.write_bytes(flickr[9].read_bytes())
        changed = finished(client, client.index("changing", folder).id)
        assert (changed.done, changed.skipped) == (1, 2)
        forced = finished(client, client.index("changing", folder, on_existing="replace").id)
        assert (forced.done, forced.skipped) == (3, 0)
        address = "/v1/collections/changing/images"
        assert http.delete(address, params={"id": str(third)}).json() == {"deleted": 1}
        assert http.get(address, params={"id": str(third)}).status_code == 404
        remaining = {match.id for match in client.search("changing", text="x").matches}
        assert remaining == {str(first), str(second)}


def test_an_upload_is_searchable_once_its_job_has_ended(service: Up, flickr: list[Path]) -> None:
    with service.client() as client:
        client.create_collection("uploads")
        job = finished(client, client.upload("uploads", flickr[:5]).id)
        assert (job.state, job.done) == ("succeeded", 5)
        (best, *_) = client.search("uploads", image=flickr[2]).matches
        assert best.id == flickr[2].name
        assert best.score == pytest.approx(1, abs=1e-3)


def test_own_vectors_go_in_and_come_back_as_in_the_tutorial(service: Up) -> None:
    with service.tidied(), service.client() as client, service.http() as http:
        client.create_collection("own", model="none", dim=3, metric="euclidean")
        vectors = [{"id": "/path/to/img1", "values": [0, 0, 0]}, {"id": "b", "values": [3, 4, 0]}]
        answer = http.post("/v1/collections/own/vectors", json={"vectors": vectors})
        assert answer.json() == {"upserted": 2}
        shown = http.get(
            "/v1/collections/own/images", params={"id": "b", "include_values": True}
        ).json()
        assert shown["values"] == [3, 4, 0]
        matches = client.search("own", vector=[0, 0, 0], include_values=True).matches
        assert [(match.id, match.score) for match in matches] == [("/path/to/img1", 0), ("b", 5)]
        assert matches[0].values == [0, 0, 0]
