"""Arguments of the clients: what is clear is converted, and the rest is one kind of error."""

import io
import pickle
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from PIL import Image

import clipfleet
from clipfleet import Client, InvalidRequest
from clipfleet.client import _requests, payloads
from clipfleet.testing import MemoryService
from support.clients import Answer, client_class, service

__all__ = ["client_class"]

NAN = float("nan")
VECTOR = [1.0] + [0.0] * 63


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service with one image of its own vector, in the collection `images`."""
    with MemoryService(dim=64) as service, service.client() as client:
        client.create_collection("images", fields={"year": "int"})
        client.upsert("images", [{"id": "a", "values": VECTOR}])
        yield service.url


WRONG: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    # field, method, arguments, options
    ("text", "search", (), {"text": ""}),
    ("text", "search", (), {"text": 5}),
    ("text", "search", (), {"text": b"dog"}),
    ("text", "search", (), {"text": "\ud800"}),
    ("top_k", "search", (), {"text": "x", "top_k": 0}),
    ("top_k", "search", (), {"text": "x", "top_k": "5"}),
    ("top_k", "search", (), {"text": "x", "top_k": 2.5}),
    ("top_k", "search", (), {"text": "x", "top_k": None}),
    ("top_k", "search", (), {"text": "x", "top_k": 100_000}),
    ("offset", "search", (), {"text": "x", "offset": 100_000}),
    ("group_by", "search", (), {"text": "x", "group_by": "embedding"}),
    ("", "search", (), {}),
    ("offset", "search", (), {"text": "x", "offset": -1}),
    ("min_score", "search", (), {"text": "x", "min_score": NAN}),
    ("min_score", "search", (), {"text": "x", "min_score": "high"}),
    ("exact", "search", (), {"text": "x", "exact": "yes"}),
    ("collapse", "search", (), {"text": "x", "collapse": 2}),
    ("namespace", "search", (), {"text": "x", "namespace": ""}),
    ("id", "search", (), {"id": 7}),
    ("collection", "search", (None,), {"text": "x"}),
    ("collection", "search", ("",), {"text": "x"}),
    ("collection", "search", ("..",), {"text": "x"}),
    ("vector.1", "search", (), {"vector": [1, NAN]}),
    ("vector.0", "search", (), {"vector": np.array([np.inf, 1], np.float32)}),
    ("vector.0", "search", (), {"vector": ["1"]}),
    ("vector", "search", (), {"vector": "abc"}),
    ("vector", "search", (), {"vector": 5}),
    ("vector", "search", (), {"vector": []}),
    ("vector", "search", (), {"vector": np.ones((1, 64))}),
    ("vector", "search", (), {"vector": np.float32(1)}),
    ("image", "search", (), {"image": 5}),
    ("image", "search", (), {"image": ""}),
    ("image", "search", (), {"image": np.zeros((4, 4, 3), np.uint8)}),
    ("image", "search", (), {"image": io.StringIO("x")}),
    ("filter", "search", (), {"text": "x", "filter": "year > 3"}),
    ("filter", "search", (), {"text": "x", "filter": {"year", 3}}),
    ("filter.year", "search", (), {"text": "x", "filter": {"year": NAN}}),
    ("filter.year.$in.1", "search", (), {"text": "x", "filter": {"year": {"$in": [1, b"2"]}}}),
    ("filter.a", "search", (), {"text": "x", "filter": {"a": object()}}),
    ("filter", "search", (), {"text": "x", "filter": {5: 1}}),
    ("terms", "search", (), {"terms": {"text": "x"}}),
    ("terms.0", "search", (), {"terms": ["x"]}),
    ("terms.1.weight", "search", (), {"terms": [{"text": "x"}, {"text": "y", "weight": "2"}]}),
    ("terms.0.weigth", "search", (), {"terms": [{"text": "x", "weigth": 2}]}),
    ("terms.0.image", "search", (), {"terms": [{"image": 5}]}),
    ("queries", "search_many", ("images", {"text": "x"}), {}),
    ("queries.1", "search_many", ("images", [{"text": "x"}, "y"]), {}),
    ("queries.1.top_k", "search_many", ("images", [{"text": "x"}, {"text": "y", "top_k": 0}]), {}),
    ("queries.0.filter.a", "search_many", ("images", [{"text": "x", "filter": {"a": NAN}}]), {}),
    ("queries.0.vector.0", "search_many", ("images", [{"vector": [NAN]}]), {}),
    ("", "embed", (), {}),
    ("texts", "embed", ("a dog",), {}),
    ("texts.1", "embed", (["a", ""],), {}),
    ("texts.1", "embed", (["a", 5],), {}),
    ("images", "embed", (), {"images": "a.jpg"}),
    ("images", "embed", (), {"images": b"a"}),
    ("images.0", "embed", (), {"images": [5]}),
    ("metric", "create_collection", ("x",), {"metric": "cosin"}),
    ("dim", "create_collection", ("x",), {"dim": 0}),
    ("fields", "create_collection", ("x",), {"fields": ["year"]}),
    ("fields.year", "create_collection", ("x",), {"fields": {"year": "date"}}),
    ("source", "index", ("images", 5), {}),
    ("source", "index", ("images", ""), {}),
    ("source", "index", ("images", b"/photos"), {}),
    ("source", "index", ("images", [3]), {}),
    ("source", "index", ("images", {"type": "folders"}), {}),
    ("on_existing", "index", ("images", "/photos"), {"on_existing": "keep"}),
    ("idempotency_key", "index", ("images", "/photos"), {"idempotency_key": "é"}),
    ("progress", "index", ("images", "/photos"), {"progress": True}),
    ("files", "upload", ("images", []), {}),
    ("files", "upload", ("images", 5), {}),
    ("files", "upload", ("images", b"a.jpg"), {}),
    ("files.0", "upload", ("images", [5]), {}),
    ("label", "upload", ("images", [__file__]), {"label": 5}),
    ("ids.0", "upload", ("images", [__file__]), {"ids": [5]}),
    ("ids", "upload", ("images", [__file__]), {"ids": "a.jpg"}),
    ("limit", "jobs", ("ten",), {}),
    ("limit", "jobs", (0,), {}),
    ("state", "jobs", (), {"state": 5}),
    ("job", "job", (None,), {}),
    ("job", "cancel", ("",), {}),
    ("every_s", "wait", ("j",), {"every_s": 0}),
    ("every_s", "wait", ("j",), {"every_s": "1"}),
    ("offset", "failures", ("j", 10, "x"), {}),
    ("id", "image", ("images", 5), {}),
    ("id", "thumbnail", ("images", b"a"), {}),
    ("namespace", "delete_image", ("images", "a"), {"namespace": None}),
    ("vectors", "upsert", ("images", {"id": "a", "values": VECTOR}), {}),
    ("vectors.0", "upsert", ("images", ["a"]), {}),
    ("vectors.0.values", "upsert", ("images", [{"id": "a"}]), {}),
    ("vectors.0.values.1", "upsert", ("images", [{"id": "a", "values": [1, NAN]}]), {}),
    ("vectors.1.id", "upsert", ("images", [{"id": "a", "values": VECTOR}, {"values": [1]}]), {}),
    ("vectors.0.id", "upsert", ("images", [{"id": 5, "values": VECTOR}]), {}),
    ("vectors.0.lable", "upsert", ("images", [{"id": "a", "values": VECTOR, "lable": "x"}]), {}),
    (
        "vectors.0.metadata",
        "upsert",
        ("images", [{"id": "a", "values": VECTOR, "metadata": 5}]),
        {},
    ),
    ("filter", "count", ("images",), {"filter": [1]}),
    ("filter", "delete", ("images",), {"filter": "all"}),
    ("all", "delete", ("images",), {"all": "yes"}),
    ("", "delete", ("images",), {}),
    ("k", "recall", ("images",), {"k": 0}),
    ("sample", "recall", ("images",), {"sample": "all"}),
    ("file", "export_collection", ("images", 5), {}),
    ("file", "import_collection", ("images", 5), {}),
    ("file", "import_collection", ("images", __file__), {}),
    ("target", "export_images", ("images", 5), {}),
    ("target", "export_images", ("images", "out"), {}),
    ("target", "export_images", ("images", "out.tar"), {"format": "webdataset"}),
    ("format", "export_images", ("images", "out"), {"format": "zip"}),
    ("top_k", "export_images", ("images", "out.csv"), {"top_k": 0}),
    ("shard_size", "export_images", ("images", "out.csv"), {"shard_size": "many"}),
    ("filter", "export_images", ("images", "out.csv"), {"filter": [1]}),
    ("query", "export_images", ("images", "out.csv"), {"query": {"words": "x"}}),
    ("collection", "set_alias", ("snaps", 5), {}),
]

SENTENCES = (
    "file",
    "files",
    "ids",
    "progress",
    "group_by",
    "target",
)  # arguments whose errors need no name before them


@pytest.mark.parametrize(("field", "method", "args", "options"), WRONG)
def test_a_wrong_argument_is_one_kind_of_error_with_its_name(
    url: str, field: str, method: str, args: Any, options: Any
) -> None:
    with Client(url) as client, pytest.raises(InvalidRequest) as caught:
        getattr(client, method)(*args, **options)
    error = caught.value
    assert error.field == field
    assert str(error).startswith(field) or field in SENTENCES
    assert (error.status, error.slug) == (422, "invalid-request")
    for foreign in ("pydantic", "numpy", "errors.", "http", "Value error"):
        assert foreign not in str(error)
    assert "\n" not in str(error)
    assert isinstance(error, clipfleet.Error | ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.field, str(again)) == (error.field, str(error))


WHAT_NO_METADATA_HAS = [
    (b"x", ""), (bytearray(b"x"), ""), (object(), ""), (1j, ""), ({5: 1}, ""), (lambda: 1, ""),
    ([1, {"b": b"x"}], ".1.b"), ("\ud800", ""), (np.array([b"x"]), ".0"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "place"), WHAT_NO_METADATA_HAS)
def test_metadata_that_is_no_json_is_named_with_its_place(value: Any, place: str) -> None:
    vectors = [{"id": "a", "values": [1.0], "metadata": {"ok": 1, "made": value}}]
    with pytest.raises(InvalidRequest) as caught:
        list(_requests.upsert("images", vectors, "default"))
    assert caught.value.field == f"vectors.0.metadata.made{place}"


def test_metadata_that_contains_itself_is_an_error() -> None:
    deep: dict[str, Any] = {}
    deep["deep"] = deep
    with pytest.raises(InvalidRequest, match="levels deep"):
        list(_requests.upsert("images", [{"id": "a", "values": [1], "metadata": deep}], "default"))


MOMENT = datetime(2024, 5, 17, 12, 30, tzinfo=UTC)
CONVERTED = [
    (np.int64(3), 3), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.str_("é"), "é"),
    (np.array([1, 2]), [1, 2]), (np.array([[0.5]]), [[0.5]]), (torch.tensor([1.5]), [1.5]),
    (torch.tensor(2), 2), (Decimal("3"), 3), (Decimal("2.5"), 2.5),
    (MOMENT, "2024-05-17T12:30:00+00:00"), (date(2024, 5, 17), "2024-05-17"),
    (time(12, 30), "12:30:00"), (np.datetime64("2024-05-17"), "2024-05-17"),
    (np.datetime64("2024-05-17T12:30", "ns"), "2024-05-17T12:30:00"),
    (np.array(["2024-05-17T12:30"], "datetime64[ns]"), ["2024-05-17T12:30:00"]),
    (Path("/photos/a.jpg"), "/photos/a.jpg"), (UUID(int=1), str(UUID(int=1))),
    ((1, "a"), [1, "a"]), ({"b", "a"}, ["a", "b"]), ({"n": np.int8(1)}, {"n": 1}),
    ([NAN, 1], [None, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "plain"), CONVERTED)
def test_metadata_that_is_clear_is_converted(value: Any, plain: Any) -> None:
    vectors = [{"id": "a", "values": [1.0], "metadata": {"made": value}}]
    (request,) = _requests.upsert("images", vectors, "default")
    (sent,) = request.json["vectors"]
    assert sent["metadata"] == {"made": plain}
    assert type(sent["metadata"]["made"]) is type(plain)


@pytest.mark.parametrize("nothing", [None, NAN, np.nan, Decimal("NaN"), np.datetime64("NaT")])
def test_metadata_without_a_value_is_left_out(nothing: Any) -> None:
    vectors = [{"id": "a", "values": [1.0], "metadata": {"made": nothing, "year": 1}}]
    (request,) = _requests.upsert("images", vectors, "default")
    assert request.json["vectors"][0]["metadata"] == {"year": 1}


def test_what_is_clear_is_taken_by_every_method(url: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    with Client(url) as typed:
        client: Any = typed
        row = {"id": Path("/photos/b.jpg"), "values": np.array(VECTOR, np.float16)}
        assert client.upsert("images", [{**row, "metadata": {"year": np.int32(7)}}]) == 1
        assert client.image("images", Path("/photos/b.jpg")).metadata == {"year": 7}
        result = client.search(
            vector=torch.tensor(VECTOR, requires_grad=True),
            top_k=np.int64(5),
            min_score=np.float32(0.5),
            filter={"year": {"$in": {np.int64(7)}}},
            exact=np.bool_(False),
        )
        assert [match.id for match in result.matches] == ["/photos/b.jpg"]
        assert client.search(vector=[np.float32(value) for value in VECTOR]).matches
        assert client.count("images", filter={"year": np.uint8(7)}) == 1
        assert len(client.embed(np.array(["a", "b"]))) == 2
        picture = (tmp_path / "red.png").read_bytes()
        assert len(client.embed(images=[tmp_path / "red.png", bytearray(picture)])) == 2
        source = {"type": "folder", "path": tmp_path}
        assert client.index("made", source, wait=True).done == 1
        assert client.jobs(np.int64(5))[0].done == 1


def test_an_image_may_be_a_data_uri(url: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    uri = payloads.image(file.getvalue())["base64"]
    with Client(url) as client:
        assert client.search(image=f"data:image/png;base64,{uri}").matches
        with pytest.raises(InvalidRequest, match="base64"):
            client.search(image="data:image/png;base64,!")


def test_the_service_and_the_client_name_a_mistake_in_the_same_way(url: str) -> None:
    with Client(url) as client:
        errors = []
        for wrong in ({"year": {"$gt": "x", "$foo": 1}}, {"year": object()}):
            with pytest.raises(InvalidRequest) as caught:
                client.search(text="x", filter=wrong)
            errors.append(caught.value)
        with pytest.raises(InvalidRequest) as caught:
            client.jobs(limit=0)  # only the service knows the limits of it
    assert caught.value.field == "limit"
    assert str(caught.value).startswith("limit: ")
    assert {error.status for error in errors} == {422}


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("url", {"url": "ftp://host"}),
        ("url", {"url": "http://"}),
        ("url", {"url": 5}),
        ("url", {"url": "http://host:port"}),
        ("api_key", {"api_key": "schlüssel"}),
        ("api_key", {"api_key": "a\nb"}),
        ("api_key", {"api_key": 5}),
        ("timeout_s", {"timeout_s": "5"}),
        ("timeout_s", {"timeout_s": 0}),
        ("retries", {"retries": "3"}),
    ],
)
def test_a_client_names_its_own_wrong_argument(
    client_class: Any, field: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client_class(**options)
    assert caught.value.field == field
    assert "schlüssel" not in str(caught.value)


def test_an_address_needs_no_scheme_and_a_key_loses_its_line_break(client_class: Any) -> None:
    with service(lambda _: Answer({"jobs": []})) as there:
        address = there.url.removeprefix("http://")
        with client_class(address, api_key="secret\n") as client:
            assert client.jobs() == []
    assert there.seen[0].headers["authorization"] == "Bearer secret"
