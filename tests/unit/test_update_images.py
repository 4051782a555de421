"""Labels and metadata of images are changed without the model, by ids and by a filter."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipfleet.api.collections import turns, update
from clipfleet.cli import app
from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.ledger.catalogue import require
from clipfleet.common.store import Record
from clipfleet.common.store.memory import MemoryStore
from clipfleet.errors import InvalidRequest, ProblemError
from clipfleet.testing import MemoryService
from support.clients import client_class

__all__ = ["client_class"]

DIM = 8


@pytest.fixture
def service() -> Iterator[MemoryService]:
    with MemoryService(dim=DIM) as running, running.client() as client:
        client.create_collection("photos", fields={"year": "int", "price": "float"})
        rows = [
            {"id": f"{n}", "values": [1.0 + n] * DIM, "label": "old", "metadata": {"year": n}}
            for n in range(10)
        ]
        client.upsert("photos", rows)
        client.upsert("photos", rows[:1], namespace="other")
        yield running


def patched(service: MemoryService, body: Any) -> httpx.Response:
    return httpx.patch(f"{service.url}/v1/collections/photos/images", json=body)


def test_changes_by_id_are_merged_key_by_key(service: MemoryService, client_class: Any) -> None:
    with client_class(service.url) as client:
        client.update_images("photos", [{"id": "1", "metadata": {"a": {"b": 1}, "c": [1]}}])
        before = client.image("photos", "1", include_values=True)
        result = client.update_images(
            "photos",
            [
                {"id": "1", "label": "new", "metadata": {"a": 2, "year": None, "nan": math.nan}},
                {"id": "2", "label": None},
                {"id": "nobody", "label": "x"},
                {"id": "3", "label": "old"},
            ],
        )
        assert (result.matched, result.updated, result.missing) == (3, 2, ["nobody"])
        first = client.image("photos", "1", include_values=True)
        assert (first.label, first.metadata) == ("new", {"a": 2, "c": [1]})
        assert (first.values, first.uri, first.bytes) == (before.values, before.uri, before.bytes)
        assert first.indexed_at >= before.indexed_at
        assert client.image("photos", "2").label is None
        assert client.image("photos", "2").metadata == {"year": 2}
        assert client.count("photos", filter={"label": "new"}) == 1


def test_changes_by_filter_are_of_all_that_pass(service: MemoryService, client_class: Any) -> None:
    with client_class(service.url) as client:
        where = {"year": {"$lt": 4}}
        change = {"label": "early", "metadata": {"price": 3}}
        dry = client.update_images("photos", filter=where, **change, dry_run=True)
        assert (dry.matched, dry.updated) == (4, 0)
        assert client.count("photos", filter={"label": "early"}) == 0
        seen = list[int]()
        done = client.update_images("photos", filter=where, **change, progress=seen.append)
        assert (done.matched, done.updated, seen) == (4, 4, [4])
        assert client.image("photos", "3").metadata == {"year": 3, "price": 3.0}
        again = client.update_images("photos", filter=where, **change)
        assert (again.matched, again.updated) == (4, 0)  # they are so already
        assert client.update_images("photos", all=True, label="").updated == 10
        assert client.image("photos", "0", namespace="other").label == "old"
        assert client.update_images("photos", all=True, label="x", namespace="other").updated == 1


def test_a_change_that_takes_long_goes_on_where_it_stopped(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "BUDGET_S", -1.0)
    monkeypatch.setattr(update, "PAGE", 4)
    monkeypatch.setattr(update, "BATCH", 3)
    body: dict[str, Any] = {"all": True, "label": "new"}
    counts = []
    while True:
        answer = patched(service, body).json()
        counts.append((answer["matched"], answer["updated"]))
        if answer["next"] is None:
            break
        body["after"] = answer["next"]
    assert counts == [(4, 4), (4, 4), (2, 2)]
    with service.client() as client:
        assert client.update_images("photos", filter={"label": "new"}, label="newer").matched == 10


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"label": "x"}, "exactly one of images, filter and all"),
        ({"filter": {}, "label": "x"}, "exactly one of images, filter and all"),
        ({"filter": {"a": 1}, "all": True, "label": "x"}, "filter and all"),
        ({"all": True}, "changes nothing"),
        ({"images": [{"id": "1", "label": "x"}], "label": "y"}, "into each of the images"),
        ({"images": [{"id": "1"}]}, "image '1': give label, metadata or both"),
        ({"images": []}, "at least 1"),
        ({"images": [{"id": "1", "label": "x"}, {"id": "1", "label": "y"}]}, "two of the images"),
        ({"images": [{"id": "2", "label": "x"}, {"id": "1", "metadata": {"year": "x"}}]},
         "image '1': field year must be int, not str"),
        ({"all": True, "metadata": {"year": 2.5}}, "field year must be int, not float"),
        ({"all": True, "metadata": {"width": 3}}, "'width'"),
        ({"all": True, "metadata": {"a": 2**64}}, "over 64 bits"),
        ({"all": True, "metadata": {"a": "x" * 40_000}}, "bytes as JSON, the limit is"),
        ({"all": True, "label": "x" * 600}, "label has 600 bytes"),
        ({"all": True, "label": "x", "after": "zz"}, "after"),
        ({"all": True, "lable": "x"}, "did you mean 'label'"),
        ({"filter": {"a": {"$x": 1}}, "label": "x"}, "unknown operator"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    service: MemoryService, body: Any, reason: str
) -> None:
    answer = patched(service, body)
    assert answer.status_code == 422
    assert reason in answer.text
    with service.client() as client:
        assert client.count("photos", filter={"label": "old"}) == 10


def test_metadata_that_grows_too_large_is_refused_by_the_name_of_the_image(
    service: MemoryService,
) -> None:
    with service.client() as client:
        client.update_images("photos", [{"id": "7", "metadata": {"a": "x" * 31_000}}])
        rows = [{"id": f"{n}", "metadata": {"b": "x" * 2_000}} for n in range(10)]
        with pytest.raises(InvalidRequest, match="image '7': metadata has 330"):
            client.update_images("photos", rows)
        assert client.count("photos", filter={"b": {"$exists": True}}) == 0
        with pytest.raises(InvalidRequest, match="image '7': metadata has 330"):
            client.update_images("photos", all=True, metadata={"b": "x" * 2_000})


def test_a_key_that_may_only_read_changes_nothing() -> None:
    keys = {
        "reader-" + "r" * 32: {"name": "reader", "scopes": ["read"]},
        "writer-" + "w" * 32: {"name": "writer", "scopes": ["read", "write"]},
    }
    with MemoryService(dim=DIM, api_keys=keys) as service:
        with service.client("writer-" + "w" * 32) as client:
            client.create_collection("photos")
            client.upsert("photos", [{"id": "a", "values": [1.0] * DIM}])
            assert client.update_images("photos", all=True, label="x").updated == 1
        with service.client("reader-" + "r" * 32) as client:
            with pytest.raises(ProblemError) as refused:
                client.update_images("photos", all=True, label="y")
            assert refused.value.status == 403
            assert client.image("photos", "a").label == "x"


def test_a_change_waits_for_a_worker_that_has_the_image_in_hand(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the row after the worker has written, so it does not undo what that wrote."""
    catalogue, store = service.parts.catalogue, service.parts.store
    collection, key = require(catalogue, "photos"), primary_key("default", "1")
    assert catalogue.hold(collection, [key], "a worker", 60) == set()
    hold, seen = catalogue.hold, list[set[str]]()
    embedding = np.full(DIM, 9, np.float32)

    def holding(of: Collection, keys: Sequence[str], holder: str, seconds: float) -> set[str]:
        if seen:
            row = store.fetch(of, [key])[key]
            store.upsert(of, [Record(**{**vars(row), "embedding": embedding})])
            catalogue.release(of, [key], "a worker")
        seen.append(hold(of, keys, holder, seconds))
        return seen[-1]

    monkeypatch.setattr(catalogue, "hold", holding)
    with service.client() as client:
        assert client.update_images("photos", all=True, label="new").updated == 10
        image = client.image("photos", "1", include_values=True)
    assert seen == [{key}, set()]
    assert (image.label, image.values) == ("new", embedding.tolist())


def test_a_change_does_not_bring_back_what_is_deleted_meanwhile(service: MemoryService) -> None:
    """Both take the image in hand: the deletion comes before or after, never in between."""
    catalogue, store = service.parts.catalogue, service.parts.store
    key = primary_key("default", "1")
    held = list[set[str]]()

    class Watched(MemoryStore):
        def delete(self, collection: Collection, keys: Sequence[str]) -> None:
            held.append(catalogue.hold(collection, keys, "another", 60))
            super().delete(collection, keys)

        def update(self, collection: Collection, records: Sequence[Record]) -> None:
            held.append(catalogue.hold(collection, [row.pk for row in records], "another", 60))
            super().update(collection, records)

        def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
            held.append(catalogue.hold(collection, [row.pk for row in records], "another", 60))
            super().upsert(collection, records)

    store.__class__ = Watched
    with service.client() as client:
        client.update_images("photos", [{"id": "1", "label": "new"}])
        client.delete_image("photos", "1")
        client.upsert("photos", [{"id": "1", "values": [1.0] * DIM}])
        client.delete("photos", filter={"id": "1"})
        assert client.update_images("photos", [{"id": "1", "label": "x"}]).missing == ["1"]
    assert held == [{key}] * 5  # an update is an upsert in memory
    assert catalogue.hold(require(catalogue, "photos"), [key], "another", 60) == set()


def test_a_holder_that_does_not_let_go_is_named_as_the_reason(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.0)
    catalogue = service.parts.catalogue
    catalogue.hold(require(catalogue, "photos"), [primary_key("default", "1")], "another", 60)
    answer = patched(service, {"all": True, "label": "x"})
    assert answer.status_code == 503
    assert "1 of the images are being written by others" in answer.json()["detail"]
    with service.client() as client:
        assert client.count("photos", filter={"label": "x"}) == 9


def test_a_job_that_says_the_same_as_before_leaves_a_change_alone(
    service: MemoryService, tmp_path: Any
) -> None:
    data = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    with service.client() as client:
        client.index("photos", tmp_path, wait=True)
        image_id = f"{tmp_path}/a.png"
        client.update_images("photos", [{"id": image_id, "label": "mine"}])
        assert client.index("photos", tmp_path, wait=True).skipped == 1
        assert client.image("photos", image_id).label == "mine"
        job = client.index("photos", tmp_path, label_from_folder=True, wait=True)
        assert (job.done, job.updated) == (1, 1)
        assert client.image("photos", image_id).label == tmp_path.name


def test_the_command_line_reads_values_as_json_or_as_text(service: MemoryService) -> None:
    fields: Any = {"name": "string", "tags": "string[]", "codes": "int[]"}
    with service.client() as client:
        client.create_collection("typed", fields=fields)
        old = {"x": 1, "y": 1, "gone": 1}
        client.upsert("typed", [{"id": "a=b", "values": [1.0] * DIM, "metadata": old}])

    def run(*options: str) -> str:
        command = ["images", "update", "typed", "--id", "a=b", "--url", service.url, *options]
        done = CliRunner().invoke(app, command)
        return done.output if done.exit_code == 0 else f"{done.exit_code}: {done.exception}"

    values = ["name=7", "tags=red", "codes=[1, 2]", "x=1e400", "y=NaN", "z=a=b", 'o={"p": [true]}']
    assert "images changed: 1" in run(
        *(part for value in values for part in ("--set", value)), "--unset", "gone", "--label", "l"
    )
    with service.client() as client:
        image = client.image("typed", "a=b")
    assert (image.label, image.metadata) == (
        "l",
        {"name": "7", "tags": ["red"], "codes": [1, 2], "x": "1e400", "y": "NaN", "z": "a=b",
         "o": {"p": [True]}},
    )  # fmt: skip
    assert "had these values already" in run("--set", "name=7")
    assert run("--set", "=7").startswith("2: ")
    assert "codes[0] must be int" in run("--set", "codes=[1.5]")
