"""How the clients delete, list, export and import many images, against a real HTTP server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet import InvalidRequest, ProblemError, Unreachable
from clipfleet.api.collections.export import ParquetFile
from clipfleet.common.collection import Collection
from clipfleet.common.store import Record
from support.clients import HANG_UP, Answer, Seen, client_class, in_turn, service

__all__ = ["client_class"]

SHELF: dict[str, Any] = {"metric": "cosine", "model": "m", "dim": 4, "fields": {}}
SHOWN = {**SHELF, "name": "shelf", "count": 3, "created_at": 0.0}
AWAY = Answer({"detail": "the store is away"}, 503, {"Retry-After": "0"})


def a_file(path: Path) -> bytes:
    """Write three rows in two namespaces, in the format of the gateway's export."""
    file = ParquetFile(Collection.new("shelf", **SHELF))
    embedding = np.ones(4, np.float32)
    rows = [Record(f"{n:032x}", f"{n}", "ab"[n % 2], "", embedding) for n in range(3)]
    path.write_bytes(file.group(rows) + file.end())
    return path.read_bytes()


def test_a_delete_is_said_again_until_there_are_no_more(client_class: Any) -> None:
    respond = in_turn(
        Answer({"deleted": 40, "more": True}),
        Answer({"deleted": 0, "more": True}),
        Answer({"deleted": 2, "more": False}),
    )
    with service(respond) as there, client_class(there.url) as client:
        assert client.delete("shelf", filter={"year": 1}, namespace="n") == 42
    assert {seen.path for seen in there.seen} == {"/v1/collections/shelf/delete"}
    body = {"filter": {"year": 1}, "namespace": "n", "all": False}
    assert [seen.json for seen in there.seen] == [body] * 3


def test_ids_are_asked_for_page_by_page(client_class: Any) -> None:
    respond = in_turn(
        Answer({"ids": ["a", "b"], "next": "0" * 32}), Answer({"ids": ["c"], "next": None})
    )
    with service(respond) as there, client_class(there.url) as client:
        assert list(client.iter_ids("shelf", namespace="n")) == ["a", "b", "c"]
    assert [seen.query.get("cursor", "") for seen in there.seen] == ["", "0" * 32]
    assert {seen.query["namespace"] for seen in there.seen} == {"n"}


def test_an_export_is_written_as_it_comes(client_class: Any, tmp_path: Path) -> None:
    body = a_file(tmp_path / "original")
    heard: list[int] = []
    with service(lambda _: Answer(body)) as there, client_class(there.url) as client:
        file = client.export_collection("shelf", tmp_path / "x.parquet", progress=heard.append)
        assert file.read_bytes() == body
        assert heard[-1] == len(body)
        with pytest.raises(FileExistsError):
            client.export_collection("shelf", file)
        client.export_collection("shelf", file, overwrite=True)
    assert len(there.seen) == 2


@pytest.mark.parametrize(
    "broken",
    [
        Answer(b"PAR1 and no end"),
        Answer(b""),
        HANG_UP,
    ],
)
def test_an_export_that_breaks_off_leaves_no_file(
    client_class: Any, tmp_path: Path, broken: Answer | None
) -> None:
    with (
        service(lambda _: broken) as there,
        client_class(there.url, retries=0) as client,
        pytest.raises(Unreachable, match="broke off"),
    ):
        client.export_collection("shelf", tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_an_import_makes_the_collection_and_fills_it_by_namespace(
    client_class: Any, tmp_path: Path
) -> None:
    a_file(tmp_path / "x.parquet")

    def respond(seen: Seen) -> Answer:
        return Answer({"upserted": len(seen.json["vectors"])} if "vectors" in seen.path else SHOWN)

    with service(respond) as there, client_class(there.url) as client:
        assert client.import_collection("copy", tmp_path / "x.parquet").count == 3
    created, *written, shown = there.seen
    assert (created.method, created.path, created.json) == ("PUT", "/v1/collections/copy", SHELF)
    sent = [
        (request.json["namespace"], [v["id"] for v in request.json["vectors"]])
        for request in written
    ]
    assert sent == [("a", ["0", "2"]), ("b", ["1"])]
    assert (shown.method, shown.path) == ("GET", "/v1/collections/copy")


def test_an_import_waits_for_a_service_that_is_away_for_a_moment(
    client_class: Any, tmp_path: Path
) -> None:
    a_file(tmp_path / "x.parquet")
    respond = in_turn(
        Answer(SHOWN), AWAY, Answer({"upserted": 2}), Answer({"upserted": 1}), Answer(SHOWN)
    )
    with service(respond) as there, client_class(there.url, retries=0) as client:
        assert client.import_collection(None, tmp_path / "x.parquet").count == 3
    assert [seen.method for seen in there.seen] == ["PUT", "POST", "POST", "POST", "GET"]


def test_an_import_that_is_refused_is_not_said_again(client_class: Any, tmp_path: Path) -> None:
    a_file(tmp_path / "x.parquet")
    respond = in_turn(Answer(SHOWN), Answer({"detail": "no such field"}, 422))
    with (
        service(respond) as there,
        client_class(there.url) as client,
        pytest.raises(ProblemError, match="no such field"),
    ):
        client.import_collection(None, tmp_path / "x.parquet")
    assert len(there.seen) == 2


def test_a_file_that_is_no_export_sends_nothing(client_class: Any, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with (
        service(lambda _: Answer(SHOWN)) as there,
        client_class(there.url) as client,
        pytest.raises(InvalidRequest, match="cannot be imported"),
    ):
        client.import_collection(None, tmp_path / "x.parquet")
    assert there.seen == []
