"""A whole collection: counting, listing, deleting, recall, export and import."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from clipfleet import Client, NotFound, ProblemError, Unreachable
from support.in_process import InProcess
from support.stack import Up, document, finished, photos

SIZE = 300


def some_vectors(count: int, dim: int, seed: int = 0) -> list[dict[str, Any]]:
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return [
        {
            "id": f"/photos/{n} é.jpg",
            "values": row,
            "label": "even" if n % 2 == 0 else "",
            "metadata": {"year": n % 10, "tags": ["a", n]} if n % 3 else {},
            "width": n,
        }
        for n, row in enumerate(rows)
    ]


@pytest.fixture
def client(memory_service: InProcess, client_class: Any) -> Iterator[Any]:
    """Each of the Python clients in turn, on the service in this process."""
    with client_class(memory_service.url) as client:
        yield client


@pytest.fixture(scope="module")
def shelf(memory_service: InProcess) -> str:
    """A collection that no test changes."""
    with memory_service.client() as client:
        fill_shelf(client)
    return "shelf"


def fill_shelf(client: Client) -> None:
    collection = client.create_collection("shelf", fields={"year": "int"})
    client.upsert("shelf", some_vectors(SIZE, collection.dim))
    client.upsert("shelf", some_vectors(20, collection.dim, seed=1), namespace="other")


@pytest.fixture
def emptied(memory_service: InProcess) -> Iterator[str]:
    with memory_service.client() as client:
        client.create_collection("emptied", fields={"year": "int"})
        yield "emptied"
        client.delete_collection("emptied")


def test_the_real_stack_counts_lists_searches_measures_exports_and_empties(
    service: Up, flickr: list[Path], tmp_path: Path
) -> None:
    """One call of each kind; the tests below check the answers in detail."""
    with service.client() as client, service.http() as http:
        fill_shelf(client)
        assert client.count("shelf", filter={"year": {"$exists": False}}) == SIZE / 3
        require_pages(http, "shelf")
        for by in ({"text": "a dog"}, {"id": "/photos/3 é.jpg"}):
            require_exact_as_index(client, "shelf", by)
        measured = client.recall("shelf", k=5, sample=40)
        assert (measured.recall, measured.queries, measured.worst) == (1.0, 40, [])
        file = client.export_collection("shelf", tmp_path / "shelf.parquet")
        copy = client.import_collection("copied", file)
        assert copy.count == SIZE + 20
        require_same_answers(client, "copied", "shelf")
        part = client.export_images("shelf", tmp_path / "even.parquet", filter={"label": "even"})
        assert part.images == SIZE / 2 + 10
        assert client.import_collection("part", part.path).count == SIZE / 2 + 10
        client.delete_collection("part")
        assert client.delete("copied", filter={"label": "even"}) == SIZE / 2
        assert client.count("copied") == SIZE / 2
        assert client.count("copied", namespace="other") == 20
        assert client.delete("copied", all=True) == SIZE / 2
        for name in ("shelf", "copied"):
            client.delete_collection(name)
        require_known_images(client, flickr, tmp_path)


def test_images_are_counted_by_filter_and_namespace(client: Any, shelf: str) -> None:
    assert client.count(shelf) == SIZE
    assert client.count(shelf, namespace="other") == 20
    assert client.count(shelf, filter={"label": "even"}) == SIZE / 2
    assert client.count(shelf, filter={"year": {"$exists": False}}) == SIZE / 3
    with pytest.raises(ProblemError, match="unknown operator"):
        client.count(shelf, filter={"$up": 1})


def test_ids_come_in_pages_each_once(memory_service: InProcess, client: Any, shelf: str) -> None:
    expected = {vector["id"] for vector in some_vectors(SIZE, 1)}
    assert sorted(client.iter_ids(shelf)) == sorted(expected)
    with memory_service.http() as http:
        require_pages(http, shelf)
        assert http.get(f"/v1/collections/{shelf}/ids?cursor=x").status_code == 422


def require_pages(http: httpx.Client, collection: str) -> None:
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        options: dict[str, str | int] = {"cursor": cursor, "limit": 70}
        page = http.get(f"/v1/collections/{collection}/ids", params=options)
        seen, cursor = seen + page.json()["ids"], page.json()["next"]
        assert len(page.json()["ids"]) <= 70
    assert sorted(seen) == sorted({vector["id"] for vector in some_vectors(SIZE, 1)})


@pytest.mark.parametrize("by", ["text", "id", "vector"])
def test_an_exact_search_gives_what_the_index_gives(client: Any, shelf: str, by: str) -> None:
    vector = some_vectors(7, client.collection(shelf).dim, seed=5)[6]["values"]
    value: Any = {"text": "a dog", "id": "/photos/3 é.jpg", "vector": vector}[by]
    require_exact_as_index(client, shelf, {by: value})


def require_exact_as_index(client: Any, collection: str, query: dict[str, Any]) -> None:
    options = {"top_k": 10, "filter": {"year": {"$gte": 5}}, "include_values": True, **query}
    exact = client.search(collection, exact=True, **options)
    indexed = client.search(collection, **options)
    assert [match.id for match in exact.matches] == [match.id for match in indexed.matches]
    for mine, other in zip(exact.matches, indexed.matches, strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-5)
        assert mine.model_copy(update={"score": other.score}) == other


def test_the_index_finds_all_of_a_small_collection(client: Any, shelf: str) -> None:
    measured = client.recall(shelf, k=5, sample=40)
    assert (measured.recall, measured.k, measured.queries, measured.worst) == (1.0, 5, 40, [])
    few = client.recall(shelf, k=500, sample=40, namespace="other", filter={"label": "even"})
    assert (few.recall, few.queries) == (1.0, 10)
    with pytest.raises(ProblemError, match="at least two images; 0 match"):
        client.recall(shelf, filter={"label": "none such"})
    with pytest.raises(ProblemError, match="sample is 100000"):
        client.recall(shelf, sample=100_000)


def test_a_delete_by_filter_takes_these_images_and_no_others(client: Any, emptied: str) -> None:
    dim = client.collection(emptied).dim
    client.upsert(emptied, some_vectors(60, dim))
    client.upsert(emptied, some_vectors(60, dim), namespace="other")
    assert client.delete(emptied, filter={"label": "even"}) == 30
    assert client.count(emptied) == 30
    assert client.count(emptied, filter={"label": "even"}) == 0
    assert client.count(emptied, namespace="other") == 60
    wrong: list[Any] = [{}, {"filter": {}}, {"filter": {"label": "even"}, "all": True}]
    for selection in wrong:
        with pytest.raises(ProblemError, match="give exactly one of them"):
            client.delete(emptied, **selection)
    assert client.delete(emptied, all=True) == 30
    assert (client.count(emptied), client.count(emptied, namespace="other")) == (0, 60)


def test_deleted_images_take_their_thumbnails_along(
    memory_service: InProcess, flickr: list[Path], tmp_path: Path, emptied: str
) -> None:
    some = photos(tmp_path / "photos", flickr, 4)
    with memory_service.client() as client:
        job = client.index(emptied, tmp_path / "photos")
        assert finished(client, job.id).done == 4
        (first, *others) = [str(path) for path in some]
        assert client.delete(emptied, filter={"id": {"$in": others}}) == 3
        assert client.thumbnail(emptied, first)
        for image_id in others:
            with pytest.raises(NotFound):
                client.thumbnail(emptied, image_id)


def answers(client: Any, collection: str) -> list[Any]:
    return [
        client.search(collection, **query, top_k=30).matches
        for query in (
            {"text": "a dog"},
            {"id": "/photos/8 é.jpg", "filter": {"year": {"$lt": 5}}},
            {"text": "a cat", "namespace": "other"},
            {"text": "a cat", "filter": {"tags": {"$exists": True}}, "exact": True},
        )
    ]


def require_same_answers(client: Any, copy: str, original: str) -> None:
    for mine, other in zip(answers(client, copy), answers(client, original), strict=True):
        assert [match.id for match in mine] == [match.id for match in other]
        assert [m.metadata for m in mine] == [m.metadata for m in other]
        assert [m.label for m in mine] == [m.label for m in other]
        assert [m.score for m in mine] == pytest.approx([m.score for m in other], abs=1e-6)


def test_a_collection_comes_out_of_its_export_as_it_was(
    client: Any, shelf: str, tmp_path: Path
) -> None:
    file = tmp_path / "shelf.parquet"
    assert client.export_collection(shelf, file) == file
    reports: list[tuple[int, int]] = []
    copy = client.import_collection("copy", file, progress=lambda *now: reports.append(now))
    try:
        assert reports[-1] == (SIZE + 20, SIZE + 20)
        before = client.collection(shelf)
        assert copy == before.model_copy(update={"name": "copy", "created_at": copy.created_at})
        require_same_answers(client, "copy", shelf)
        assert client.image("copy", "/photos/8 é.jpg").width == 8
    finally:
        client.delete_collection("copy")
    table = pq.read_table(file)
    assert table.num_rows == SIZE + 20
    row = next(row for row in table.to_pylist() if row["id"] == "/photos/8 é.jpg")
    assert (row["year"], json.loads(row["metadata"])) == (8, {"tags": ["a", 8]})
    assert len(row["embedding"]) == before.dim


def test_an_import_into_a_collection_of_another_kind_is_refused(
    client: Any, shelf: str, tmp_path: Path
) -> None:
    file = client.export_collection(shelf, tmp_path / "shelf.parquet")
    client.create_collection("another", metric="dot", fields={"year": "int"})
    try:
        with pytest.raises(ProblemError, match="has metric 'dot', not 'cosine'"):
            client.import_collection("another", file)
        assert client.count("another") == 0
    finally:
        client.delete_collection("another")


def test_images_that_were_imported_are_not_indexed_again(
    memory_service: InProcess, flickr: list[Path], tmp_path: Path
) -> None:
    with memory_service.client() as client:
        require_known_images(client, flickr, tmp_path)


def require_known_images(client: Client, flickr: list[Path], folder: Path) -> None:
    photos(folder / "photos", flickr, 5)
    assert client.index("first", folder / "photos", wait=True).done == 5
    file = client.export_collection("first", folder / "first.parquet")
    client.import_collection("second", file)
    again = client.index("second", folder / "photos", wait=True)
    assert (again.done, again.skipped) == (0, 5)
    for name in ("first", "second"):
        client.delete_collection(name)


def test_the_command_line_exports_imports_and_measures(
    memory_service: InProcess, shelf: str, tmp_path: Path
) -> None:
    collections = partial(memory_service.cli, "collections")
    file = tmp_path / "shelf.parquet"
    done = collections("export", shelf, str(file), "--json")
    printed = document(done)
    assert (printed["file"], printed["bytes"]) == (str(file), file.stat().st_size)
    assert (printed["images"], printed["left_out"]) == (SIZE + 20, 0)
    refused = collections("export", shelf, str(file))
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    assert collections("export", shelf, str(file), "--force").returncode == 0
    copied = collections("import", str(file), "--name", "from-file", "--json")
    assert document(copied)["count"] == SIZE + 20
    assert document(collections("recall", "from-file", "--json"))["recall"] == 1
    even = ["from-file", "--filter", '{"label": "even"}', "--json"]
    assert document(collections("count", *even)) == {"count": SIZE / 2}
    assert document(collections("delete-images", *even)) == {"deleted": SIZE / 2}
    listed = collections("ids", "from-file").stdout.splitlines()
    assert len(listed) == SIZE / 2
    assert [path.name for path in tmp_path.iterdir()] == ["shelf.parquet"]


def test_the_command_line_exports_parts_in_every_format(
    memory_service: InProcess, flickr: list[Path], tmp_path: Path
) -> None:
    collections = partial(memory_service.cli, "collections")
    some = photos(tmp_path / "photos", flickr, 6)
    with memory_service.client() as client:
        client.index("parts", tmp_path / "photos", wait=True)
    some[0].unlink()
    where = ["--filter", json.dumps({"id": {"$in": [str(path) for path in some[:4]]}})]
    shards = ["--format", "webdataset", "--shard-size", "2", *where]
    done = collections("export", "parts", str(tmp_path / "shards"), *shards, "--json")
    assert done.returncode == 3
    printed = json.loads(done.stdout)
    assert (printed["images"], printed["left_out"], printed["shards"]) == (3, 1, 2)
    assert "not there any more" in done.stderr
    imported = collections("import", str(tmp_path / "shards"), "--name", "again", "--json")
    assert document(imported)["count"] == 4
    near = ["--id", str(some[1]), "--top-k", "2"]
    listed = collections("export", "parts", str(tmp_path / "near.jsonl"), *near)
    assert listed.stdout.startswith(f"wrote {tmp_path / 'near.jsonl'}: 2 images (")
    indexed = collections("import", str(tmp_path / "near.jsonl"), "--name", "near", "--json")
    assert document(indexed)["done"] == 2
    nameless = collections("import", str(tmp_path / "near.jsonl"))
    assert (nameless.returncode, "give --name" in nameless.stderr) == (2, True)
    both = collections("export", "parts", str(tmp_path / "x.csv"), "--query", "a", "--id", "b")
    assert (both.returncode, "give one of" in both.stderr) == (2, True)
    with memory_service.client() as client:
        client.create_collection("dotted", metric="dot")
        for name in ("parts", "again", "near"):
            client.delete_collection(name)
    refused = collections("import", str(tmp_path / "shards"), "--name", "dotted")
    assert refused.returncode == 1
    assert "has metric 'dot', not 'cosine'" in refused.stderr
    assert f"clipfleet index {tmp_path / 'shards'}/SHARD.tar" in refused.stderr
    with memory_service.client() as client:
        client.delete_collection("dotted")


def test_an_export_of_nothing_leaves_no_file(client: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        client.export_collection("none-such", tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_client_without_a_service_leaves_no_file(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(Unreachable):
        client.export_collection("x", tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []
