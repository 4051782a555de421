"""Exports of subsets: what each format holds, how a stopped export goes on, what is refused."""

import csv
import gzip
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipfleet
from clipfleet import Client, Error, NotFound, ProblemError
from clipfleet.api.collections import rows as rows_route
from clipfleet.client.exports import originals, shards
from clipfleet.client.exports.npy import npy_file, numbers_of
from clipfleet.client.exports.plan import ExportPlan
from clipfleet.client.exports.spool import Spool
from clipfleet.common.http.exchange import NotOurs
from clipfleet.testing import MemoryService
from support.webserver import body, site, status, to

DIM = 8
PAGE = 3  # rows of a page
SAMPLES = Path(str(files(clipfleet))) / "samples"
MUSIC = sorted((SAMPLES / "music").glob("*.png"))
FORMATS = {"parquet": "out.parquet", "webdataset": "out"}
STRANGE_IDS = [
    "a.b.c.jpg",
    "folder/sub/x.png",
    "../../etc/passwd",
    "/abs/é ü.jpg",
    "日本語/写真.tar#1.jpg",
    " blanks ",
    "new\nline",
    "tab\tquote\",'",
    "x" * 2_000,
    ".hidden",
    "con",
]
METADATA: list[dict[str, Any]] = [
    {"year": 1, "free": 3, "price": 1, "caption": " a b "},
    {"year": 2, "free": "three", "price": 2.5, "flag": True},
    {"free": [1, None, {"deep": [True, 1.5, "x"]}], "price": 2**53 + 1},
    {"free": {"a": {"b": None}}, "empty": "", "_score": 4},
    {},
    {"free": None, "0": "zero", "dotted.key": 1, "ünï": "ö"},
]


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService() as running:
        yield running


@pytest.fixture
def client(service: MemoryService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(rows_route, "GROUP_BYTES", PAGE * 4 * DIM)
    monkeypatch.setattr(ExportPlan, "ids_per_page", PAGE)
    with service.client() as client:
        yield client
        for collection in client.collections():
            client.delete_collection(collection.name)


def vector(n: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(n).standard_normal(DIM).astype(np.float32)]


@pytest.fixture
def shelf(client: Client) -> str:
    """A collection of two namespaces with strange ids and metadata of every kind."""
    client.create_collection("shelf", model="m", dim=DIM, fields={"year": "int"})
    for namespace in ("default", "é/x"):
        vectors = [
            {
                "id": name,
                "values": vector(n),
                "uri": f"/nowhere/{n}.jpg",
                "label": str(n) if n % 2 else "",
                "metadata": METADATA[n % len(METADATA)],
                "content_hash": f"{n:032x}",
                "bytes": n,
                "width": 2 * n,
            }
            for n, name in enumerate(STRANGE_IDS)
        ]
        client.upsert("shelf", vectors, namespace=namespace)
    return "shelf"


def contents(client: Client, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """All rows as the service has them, without the time at which they were written."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    body: dict[str, Any] = {"cursor": ""}
    while body["cursor"] is not None:
        page = client._http.post(f"/v1/collections/{name}/rows", json=body).json()
        for row in page["rows"]:
            assert (row["namespace"], row["id"]) not in rows
            del row["indexed_at"]
            rows[row["namespace"], row["id"]] = row
        body = {"cursor": page["next"]}
    return rows


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_comes_back_exactly(
    client: Client, shelf: str, tmp_path: Path, form: Any
) -> None:
    target = tmp_path / FORMATS[form]
    done = client.export_images(shelf, target, format=form, originals=False)
    assert (done.images, done.left_out, done.path) == (2 * len(STRANGE_IDS), 0, str(target))
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    heard: list[tuple[int, int]] = []
    copy = client.import_collection("copy", target, progress=lambda *now: heard.append(now))
    assert (copy.count, heard[-1]) == (done.images, (done.images, done.images))
    assert (copy.model, copy.dim, copy.fields) == ("m", DIM, {"year": "int"})
    assert contents(client, "copy") == contents(client, shelf)


def test_an_export_is_imported_by_an_alias(client: Client, shelf: str, tmp_path: Path) -> None:
    client.create_collection("copy", model="m", dim=DIM, fields={"year": "int"})
    client.set_alias("of-copy", "copy")
    for form, name in FORMATS.items():
        form_name: Any = form
        client.export_images(shelf, tmp_path / name, format=form_name, originals=False)
        assert client.import_collection("of-copy", tmp_path / name).name == "copy"
        assert contents(client, "copy") == contents(client, shelf)
        client.delete("copy", all=True)
    client.delete_alias("of-copy")


def test_rows_left_out_of_shards_come_back_too(client: Client, shelf: str, tmp_path: Path) -> None:
    done = client.export_images(shelf, tmp_path / "out", format="webdataset")
    assert (done.images, done.left_out, done.shards) == (0, 2 * len(STRANGE_IDS), 0)
    assert done.reasons == {"not there any more": done.left_out}
    client.import_collection("copy", tmp_path / "out")
    assert contents(client, "copy") == contents(client, shelf)


def test_a_parquet_file_has_columns_by_one_rule(client: Client, shelf: str, tmp_path: Path) -> None:
    client.export_images(shelf, tmp_path / "x.parquet", namespace="default")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.num_rows == len(STRANGE_IDS)
    types = {field.name: field.type for field in table.schema}
    assert types["embedding"] == pa.list_(pa.float32(), DIM)
    assert (types["year"], types["price"]) == (pa.int64(), pa.float64())
    assert (types["flag"], types["empty"]) == (pa.bool_(), pa.string())
    assert (types["dotted.key"], types["_score"]) == (pa.int64(), pa.int64())
    assert "free" not in types
    first = next(row for row in table.to_pylist() if row["id"] == STRANGE_IDS[0])
    assert json.loads(first["metadata"]) == {"free": 3, "price": 1}
    assert (first["price"], first["caption"], first["flag"]) == (1.0, " a b ", None)
    assert first["embedding"] == pytest.approx(vector(0))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "x.ndjson.gz"])
def test_a_manifest_is_what_index_reads(client: Client, tmp_path: Path, name: str) -> None:
    lines = [
        {"uri": str(path), "id": f"id.{n}", "label": "l", "year": n, "caption": f' a, "{n}"\n b'}
        for n, path in enumerate(MUSIC)
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    assert client.index("first", source, wait=True).done == len(MUSIC)
    done = client.export_images("first", tmp_path / name, filter={"year": {"$lt": 3}})
    assert (done.images, done.not_indexable, done.format) == (3, 0, "manifest")
    again = client.index("second", tmp_path / name, wait=True)
    assert (again.done, again.failed) == (3, 0)
    before, after = contents(client, "first"), contents(client, "second")
    assert after.keys() == {("default", f"id.{n}") for n in range(3)}
    assert all(after[key] == before[key] for key in after)


def test_a_parquet_export_is_a_manifest_too(client: Client, tmp_path: Path) -> None:
    """Its embeddings are of another model, so its images are embedded anew."""
    lines = [
        {"uri": str(path), "id": str(n), "label": "l", **METADATA[n % len(METADATA)]}
        for n, path in enumerate(MUSIC)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    client.index("first", tmp_path / "in.jsonl", wait=True)
    query = {"id": "1"}
    client.export_images("first", tmp_path / "x.parquet", query=query)
    assert client.index("second", tmp_path / "x.parquet", wait=True).done == len(MUSIC)
    assert contents(client, "second") == contents(client, "first")


def test_a_csv_has_nested_values_as_json(client: Client, shelf: str, tmp_path: Path) -> None:
    done = client.export_images(shelf, tmp_path / "x.csv", namespace="default")
    assert done.not_indexable == 0
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(STRANGE_IDS)
    assert rows[STRANGE_IDS[2]]["free"] == '[1, null, {"deep": [true, 1.5, "x"]}]'
    assert rows[STRANGE_IDS[1]]["flag"] == "true"
    assert rows[STRANGE_IDS[0]]["caption"] == " a b "


def test_a_manifest_counts_what_index_cannot_read(client: Client, tmp_path: Path) -> None:
    client.create_collection("own", model="m", dim=DIM)
    addresses = [
        "",
        "upload:1/2",
        "/a/b.tar#c.jpg",
        "/a/b.jpg",
        "https://h/x.zip#y.png",
        "/a#b.jpg",
    ]
    client.upsert(
        "own", [{"id": str(n), "values": vector(n), "uri": u} for n, u in enumerate(addresses)]
    )
    assert client.export_images("own", tmp_path / "x.jsonl").not_indexable == 4
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == len(addresses)


def test_a_filter_and_a_query_choose_what_is_exported(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    query: dict[str, Any] = {"vector": vector(4)}
    best = client.search(shelf, **query, top_k=7).matches
    done = client.export_images(shelf, tmp_path / "q.parquet", query=query, top_k=7)
    table = pq.read_table(tmp_path / "q.parquet").to_pylist()
    assert done.images == 7
    assert [row["id"] for row in table] == [match.id for match in best]
    assert [row["__score"] for row in table] == pytest.approx([match.score for match in best])
    assert {row["namespace"] for row in table} == {"default"}
    where = {"label": {"$exists": True}}
    every = client.export_images(shelf, tmp_path / "f.parquet", filter=where)
    other = client.export_images(shelf, tmp_path / "n.parquet", filter=where, namespace="é/x")
    both = client.export_images(
        shelf, tmp_path / "b.jsonl", filter=where, query=query, top_k=10_000, namespace="é/x"
    )
    odd = len(STRANGE_IDS) // 2
    assert (every.images, other.images, both.images) == (2 * odd, odd, odd)


def test_nothing_is_an_export_too(client: Client, shelf: str, tmp_path: Path) -> None:
    for name in ("x.parquet", "x.jsonl", "x.csv"):
        assert client.export_images(shelf, tmp_path / name, filter={"label": "none"}).images == 0
    empty = client.export_images(
        shelf, tmp_path / "out", format="webdataset", filter={"label": "none"}
    )
    assert (empty.images, empty.shards) == (0, 0)
    for name in ("x.parquet", "out"):
        assert client.import_collection(f"c-{name[0]}", tmp_path / name).count == 0


class Stopped(Exception):
    """Stands for the end of the process."""


def stop_at(number: int) -> Callable[[str, int], None]:
    """A `progress` that ends the export at its call of this number."""
    calls = iter(range(number))

    def progress(*_: Any) -> None:
        if next(calls, None) is None:
            raise Stopped

    return progress


@pytest.mark.parametrize("options", [{}, {"query": {"vector": vector(1)}, "top_k": 10}])
@pytest.mark.parametrize("form", [*FORMATS, "manifest"])
def test_an_export_that_is_stopped_anywhere_goes_on_there(
    client: Client, shelf: str, tmp_path: Path, form: Any, options: Any
) -> None:
    name = {**FORMATS, "manifest": "out.jsonl"}[form]
    (tmp_path / "whole").mkdir()
    export = {"format": form, "shard_size": 4, "originals": False, **options}
    client.export_images(shelf, tmp_path / "whole" / name, **export)
    target, stops = tmp_path / name, 0
    while not target.exists():
        try:
            client.export_images(shelf, target, **export, progress=stop_at(1 + stops % 7))
        except Stopped:
            stops += 1
            assert not target.exists()
            rows = tmp_path / f"{name}.part" / "rows.jsonl"
            rows.write_bytes(rows.read_bytes() + b'{"torn": ')  # not in the state yet
        assert stops < 200
    assert stops > 0
    assert not (tmp_path / f"{name}.part").exists()
    assert same_files(tmp_path / "whole" / name, target)


def same_files(first: Path, second: Path) -> bool:
    if first.is_file():
        return first.read_bytes() == second.read_bytes()
    names = sorted(path.name for path in first.iterdir())
    return names == sorted(path.name for path in second.iterdir()) and all(
        same_files(first / name, second / name) for name in names
    )


def test_an_export_that_goes_on_does_not_read_again(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    heard: list[tuple[str, int]] = []
    with pytest.raises(Stopped):
        client.export_images(shelf, tmp_path / "x.parquet", progress=stop_at(4))
    client.export_images(shelf, tmp_path / "x.parquet", progress=lambda *now: heard.append(now))
    assert heard[0] == ("reading", 6 * PAGE)


def test_images_that_come_and_go_meanwhile(client: Client, shelf: str, tmp_path: Path) -> None:
    """What is there from beginning to end is exported once."""
    before = contents(client, shelf)
    with pytest.raises(Stopped):
        client.export_images(shelf, tmp_path / "x.parquet", progress=stop_at(2))
    gone = STRANGE_IDS[5]
    client.delete_image(shelf, gone)
    client.upsert(shelf, [{"id": f"new{n}", "values": vector(n)} for n in range(10)])
    client.export_images(shelf, tmp_path / "x.parquet")
    exported = [
        (row["namespace"], row["id"]) for row in pq.read_table(tmp_path / "x.parquet").to_pylist()
    ]
    assert len(exported) == len(set(exported))
    assert before.keys() - {("default", gone)} <= set(exported)


def test_matches_that_were_deleted_meanwhile_are_counted(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"query": {"vector": vector(1)}, "top_k": 10_000}
    with pytest.raises(Stopped):
        client.export_images(shelf, tmp_path / "x.parquet", **options, progress=stop_at(0))
    client.delete(shelf, all=True)
    done = client.export_images(shelf, tmp_path / "x.parquet", **options)
    assert done.images + done.gone == len(STRANGE_IDS)
    assert done.gone == len(STRANGE_IDS) - PAGE


def test_a_collection_that_was_created_again_is_not_mixed_in(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    target = tmp_path / "x.parquet"

    def recreate(*_: Any) -> None:
        client.delete_collection(shelf)
        client.create_collection(shelf, model="m", dim=DIM)
        client.upsert(shelf, [{"id": str(n), "values": vector(n)} for n in range(9)])

    with pytest.raises(Error, match="deleted and created again"):
        client.export_images(shelf, target, progress=recreate)
    with pytest.raises(ValueError, match="another created_at; finish it"):
        client.export_images(shelf, target)
    assert client.export_images(shelf, target, restart=True).images == 9


def test_what_is_there_is_not_overwritten_by_accident(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    file, folder = tmp_path / "x.parquet", tmp_path / "photos"
    file.write_text("old")
    folder.mkdir()
    (folder / "mine.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        client.export_images(shelf, file)
    with pytest.raises(ValueError, match="no export of clipfleet, so it is not replaced"):
        client.export_images(shelf, folder, format="webdataset", overwrite=True)
    assert (file.read_text(), (folder / "mine.jpg").read_text()) == ("old", "mine")
    with pytest.raises(Stopped):
        client.export_images(shelf, file, overwrite=True, progress=stop_at(2))
    assert file.read_text() == "old"
    client.export_images(shelf, file, overwrite=True)
    assert pq.read_table(file).num_rows == 2 * len(STRANGE_IDS)
    for _ in range(2):
        client.export_images(shelf, tmp_path / "out", format="webdataset", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"x.parquet", "photos", "out"}


def test_an_unfinished_export_with_other_options_is_not_thrown_away(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.parquet"
    with pytest.raises(Stopped):
        client.export_images(shelf, file, progress=stop_at(2))
    with pytest.raises(ValueError, match="an unfinished export with another filter"):
        client.export_images(shelf, file, filter={"label": "1"})
    done = client.export_images(shelf, file, filter={"label": "1"}, restart=True)
    assert done.images == 2


def test_one_process_exports_to_a_target_at_a_time(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    refused: list[str] = []

    def second(*_: Any) -> None:
        with pytest.raises(ValueError, match="another process exports") as caught:
            client.export_images(shelf, tmp_path / "x.parquet")
        refused.append(str(caught.value))

    client.export_images(shelf, tmp_path / "x.parquet", progress=second)
    assert refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target": "x"}, "does not tell the format"),
        ({"target": "x.csv", "format": "parquet"}, "ends in .parquet"),
        ({"target": "x.txt"}, "ends in .jsonl or .csv"),
        ({"target": "x.parquet.gz"}, "compressed inside"),
        ({"target": "x.tar", "format": "webdataset"}, "name a folder"),
        ({"target": "x.jsonl", "top_k": 0}, "top_k: 0 is not"),
        ({"target": "x.jsonl", "top_k": 10_001}, "top_k: 10001 is not"),
        ({"target": "x", "format": "webdataset", "shard_size": 0}, "shard_size: 0 is not"),
        ({"target": "x.jsonl", "query": {"words": "a"}}, "query: it has 'words'"),
        ({"target": "x.jsonl", "query": {}}, "give exactly one of"),
        ({"target": "x.jsonl", "filter": {"$no": 1}}, "no"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    client: Client, shelf: str, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    target = tmp_path / options.pop("target")
    with pytest.raises((ValueError, ProblemError), match=reason):
        client.export_images(shelf, target, **options)
    assert list(tmp_path.iterdir()) == []


# Shards


@pytest.fixture
def music(client: Client, tmp_path: Path) -> list[Path]:
    """The sample images as files of their own, indexed."""
    folder = tmp_path / "music"
    folder.mkdir()
    paths = []
    for n, path in enumerate(MUSIC):
        paths.append(folder / f"{n}.{path.name}")
        paths[-1].write_bytes(path.read_bytes())
    lines = [
        {"uri": str(path), "label": str(n), "caption": f"a {n}"} for n, path in enumerate(paths)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert client.index("music", tmp_path / "in.jsonl", wait=True).done == len(paths)
    return paths


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """The samples of all shards, as webdataset groups them: by the name up to the first dot."""
    rows: dict[str, dict[str, bytes]] = {}
    last = ""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                assert key == last or key not in rows
                last, file = key, tar.extractfile(member)
                assert file is not None
                rows.setdefault(key, {})[ending] = file.read()
    return rows


def test_shards_have_the_originals(client: Client, music: list[Path], tmp_path: Path) -> None:
    done = client.export_images("music", tmp_path / "out", format="webdataset", shard_size=5)
    assert (done.images, done.left_out) == (len(music), 0)
    assert done.shards == -(-len(music) // 5)
    by_id = {
        json.loads(sample["json"])["id"]: sample for sample in samples(tmp_path / "out").values()
    }
    assert by_id.keys() == {str(path) for path in music}
    for n, path in enumerate(music):
        sample = by_id[str(path)]
        assert sample.keys() == {"png", "json", "txt", "cls", "npy"}
        assert sample["png"] == path.read_bytes()
        assert (sample["txt"], sample["cls"]) == (f"a {n}".encode(), str(n).encode())
        values = client.image("music", str(path), include_values=True).values
        assert numbers_of(sample["npy"]) == values
    client.import_collection("copy", tmp_path / "out")
    assert contents(client, "copy") == contents(client, "music")
    again = client.index("copy", tmp_path / "in.jsonl", wait=True)
    assert (again.done, again.skipped) == (0, len(music))


def test_shards_are_indexed_as_archives(client: Client, music: list[Path], tmp_path: Path) -> None:
    client.export_images("music", tmp_path / "out", format="webdataset")
    shard = tmp_path / "out" / "music-000000.tar"
    job = client.index("again", shard, wait=True)
    assert (job.done, job.failed) == (len(music), 0)
    rows = contents(client, "again").values()
    assert {row["label"] for row in rows} == {str(n) for n in range(len(music))}
    assert all(row["metadata"] == {"caption": f"a {row['label']}"} for row in rows)


def test_images_that_cannot_be_read_are_named_with_their_reason(
    client: Client, music: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("SECRET")
    music[0].unlink()
    music[1].write_bytes(music[1].read_bytes() + b"more")
    addresses = [str(secret), str(tmp_path), "upload:x/1", "", "file://other/x.jpg", "ftp://h/x.jpg",
                 "http://127.0.0.1:9/x.jpg", "/a/b.zip#c.jpg", "/dev/zero"]  # fmt: skip
    client.create_collection("music")
    dim = client.collection("music").dim
    client.upsert(
        "music",
        [{"id": f"own{n}", "values": [1.0] * dim, "uri": uri} for n, uri in enumerate(addresses)],
    )
    done = client.export_images("music", tmp_path / "out", format="webdataset")
    assert (done.images, done.left_out) == (len(music) - 2, 2 + len(addresses))
    lines = map(json.loads, (tmp_path / "out" / "left-out.jsonl").read_text().splitlines())
    reasons = {line["id"]: line["reason"] for line in lines}
    no_file = "the record of this image names no file that the service has: "
    assert reasons == {
        str(music[0]): f"the file {str(music[0])!r} is not there any more",
        str(music[1]): "the file has another size than when it was indexed",
        "own0": f"the file {str(secret)!r} is no image any more",
        "own1": f"the file {str(tmp_path)!r} is not a regular file any more",
        "own2": "the uploaded file is not there any more: it is kept as long as its job",
        "own3": f"{no_file}'own3'",
        "own4": f"{no_file}'file://other/x.jpg'",
        "own5": f"{no_file}'ftp://h/x.jpg'",
        "own6": "its server does not answer (ConnectError)",
        "own7": "the archive '/a/b.zip' is not there any more",
        "own8": "the file '/dev/zero' is not a regular file any more",
    }
    assert done.reasons["not there any more"] == 6
    assert sum(done.reasons.values()) == done.left_out
    assert not any(b"SECRET" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    client.import_collection("copy", tmp_path / "out")
    assert contents(client, "copy") == contents(client, "music")


def test_shards_have_uploads_and_members_of_archives(client: Client, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in MUSIC[:3]]
    with zipfile.ZipFile(tmp_path / "music.zip", "w") as archive:
        archive.write(MUSIC[0], "a/b.png")
    client.index("mixed", tmp_path / "music.zip", wait=True)
    client.upload("mixed", MUSIC[1:3], wait=True)
    done = client.export_images("mixed", tmp_path / "out", format="webdataset")
    assert (done.images, done.left_out) == (3, 0)
    images = [sample["png"] for sample in samples(tmp_path / "out").values()]
    assert sorted(images) == sorted(pictures)


def test_an_export_of_a_deleted_collection_names_it(client: Client, tmp_path: Path) -> None:
    client.index("short-lived", MUSIC[0].parent, wait=True)

    def delete(step: str, _: int) -> None:
        if step == "reading":
            client.delete_collection("short-lived")

    with pytest.raises(NotFound, match="'short-lived'"):
        client.export_images("short-lived", tmp_path / "out", format="webdataset", progress=delete)


def test_originals_are_fetched_from_the_web(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(originals, "MAX_BYTES", 50_000)
    client.create_collection("web", model="m", dim=DIM)
    picture = MUSIC[0].read_bytes()
    pages = {
        "/a.png": body(picture),
        "/moved": to("/a.png"),
        "/gone.png": status(404),
        "/page.png": body(b"<html>"),
        "/large.png": body(b"\x89PNG\r\n\x1a\n" + bytes(50_000)),
    }
    with site(pages) as web:
        addresses = [f"{web.url}{path}" for path in pages]
        client.upsert("web", [{"id": u, "uri": u, "values": vector(1)} for u in addresses])
        done = client.export_images("web", tmp_path / "out", format="webdataset")
    assert [sample["png"] for sample in samples(tmp_path / "out").values()] == [picture] * 2
    assert done.reasons == {
        "its server answers 404": 1,
        "the file is no image of a known format": 1,
        "it has more than 0 MB": 1,
    }


def test_a_shard_ends_at_its_size(
    client: Client, music: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    done = client.export_images("music", tmp_path / "out", format="webdataset")
    assert done.shards == len(music)


def refusal(client: Client, folder: Path) -> str:
    with pytest.raises(NotOurs) as caught:
        client.import_collection("copy", folder)
    assert str(caught.value).startswith(f"{folder} cannot be imported: ")
    return str(caught.value)


def test_damaged_shards_are_refused_in_one_line(client: Client, shelf: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    client.export_images(shelf, folder, format="webdataset", originals=False)
    (shard,) = folder.glob("*.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2_000])
    assert "shelf-000000.tar is missing or incomplete" in refusal(client, folder)
    shard.write_bytes(b"\xff" * len(whole))
    assert "is damaged" in refusal(client, folder)
    shard.write_bytes(
        whole.replace(npy_file(np.array(vector(0), np.float32).tobytes()), b"x" * 160)
    )
    assert "is damaged" in refusal(client, folder)
    shard.write_bytes(
        whole.replace(
            np.array(vector(0), np.float32).tobytes(), np.full(DIM, np.nan, "<f4").tobytes()
        )
    )
    assert "is not finite" in refusal(client, folder)
    (folder / "export.json").write_text("{}")
    assert "its export.json cannot be understood" in refusal(client, folder)
    (folder / "export.json").unlink()
    assert "it has no export.json" in refusal(client, folder)


def test_embeddings_of_another_model_are_refused(
    client: Client, shelf: str, tmp_path: Path
) -> None:
    client.create_collection("other", model="n", dim=DIM, fields={"year": "int"})
    for form, name in FORMATS.items():
        form_name: Any = form
        client.export_images(shelf, tmp_path / name, format=form_name, originals=False)
        with pytest.raises(ProblemError, match="has model 'n', not 'm'"):
            client.import_collection("other", tmp_path / name)
    assert client.count("other") == 0


def test_npy_files_are_those_of_numpy(tmp_path: Path) -> None:
    values = np.arange(512, dtype="<f4")
    (tmp_path / "ours.npy").write_bytes(npy_file(values.tobytes()))
    assert np.array_equal(np.load(tmp_path / "ours.npy"), values)
    np.save(tmp_path / "theirs.npy", values)
    assert numbers_of((tmp_path / "theirs.npy").read_bytes()) == values.tolist()
    for wrong in (values.astype("<f8"), values.reshape(2, 256)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match="embedding"):
            numbers_of((tmp_path / "wrong.npy").read_bytes())


def test_a_target_that_was_published_before_the_end_is_complete(
    client: Client, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ended between the renaming and the removal of its work folder."""

    def die(spool: Spool, *_: Any) -> None:
        spool._file.close()
        spool._lock.close()

    monkeypatch.setattr(Spool, "__exit__", die)
    client.export_images(shelf, tmp_path / "x.jsonl")
    monkeypatch.undo()
    assert (tmp_path / "x.jsonl.part").exists()
    with pytest.raises(FileExistsError):
        client.export_images(shelf, tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_compressed_manifest_is_reproducible(client: Client, shelf: str, tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        client.export_images(shelf, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 22
