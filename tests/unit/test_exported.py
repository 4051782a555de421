"""Export files: a file is complete or absent, and a bad file is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet import InvalidRequest
from clipfleet.api.collections.export import ParquetFile
from clipfleet.client.export_file import ExportFile, new_file
from clipfleet.common.collection import Collection
from clipfleet.common.http.exchange import KEY
from clipfleet.common.identity import primary_key
from clipfleet.common.store import Record

DIM = 4


def written(path: Path, count: int = 6, **more: Any) -> Path:
    """Write a file as the gateway does, in groups of four rows."""
    fields = {
        "year": "int",
        "price": "float",
        "sold": "bool",
        "genre": "string",
        "tags": "string[]",
        "codes": "int[]",
    }
    options: Any = {"metric": "cosine", "model": "m", "dim": DIM, "fields": fields}
    collection = Collection.new("shelf", **options)
    file = ParquetFile(collection)
    rows = [a_row(f"{n}", n, **more) for n in range(count)]
    groups = [file.group(rows[start : start + 4]) for start in range(0, count, 4)]
    path.write_bytes(b"".join([*groups, file.end()]))
    return path


def a_row(name: str, n: int, **more: Any) -> Record:
    space = "even" if n % 2 == 0 else "odd"
    lists: dict[str, Any] = {"tags": ["é", ""], "codes": []}
    plain = {"year": n, "price": 1.5, "sold": False, "genre": "é", "free": [n]}
    metadata = {**plain, **lists} if n else {}
    fields: dict[str, Any] = {
        "embedding": np.arange(DIM, dtype=np.float32) + n,
        "content_hash": "0" * 32,
        "label": "a" if n else "",
        "width": 7,
        "indexed_at": 1_700_000_000_000,
        "metadata": metadata,
    }
    return Record(
        pk=primary_key(space, name), id=name, namespace=space, uri="u", **{**fields, **more}
    )


def changed(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    pq.write_table(change(pq.read_table(path)), path)
    return path


def vectors(path: Path) -> dict[str, list[dict[str, Any]]]:
    by_namespace: dict[str, list[dict[str, Any]]] = {}
    for namespace, some in ExportFile(path).pieces():
        by_namespace.setdefault(namespace, []).extend(some)
    return by_namespace


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRequest) as caught:
        vectors(path)
    reason = str(caught.value)
    assert "\n" not in reason
    assert reason.startswith(f"{path} cannot be imported: ")
    return reason


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet")
    exported = ExportFile(path)
    about = exported.description
    assert (about.name, about.metric, about.model, about.dim) == ("shelf", "cosine", "m", DIM)
    assert exported.rows == 6
    by_namespace = vectors(path)
    assert {space: [vector["id"] for vector in some] for space, some in by_namespace.items()} == {
        "even": ["0", "2", "4"],
        "odd": ["1", "3", "5"],
    }
    assert by_namespace["even"][0]["metadata"] == {}
    assert by_namespace["even"][0]["label"] is None
    assert by_namespace["odd"][0] == {
        "id": "1",
        "uri": "u",
        "label": "a",
        "content_hash": "0" * 32,
        "bytes": 0,
        "width": 7,
        "height": 0,
        "metadata": {
            "year": 1,
            "price": 1.5,
            "sold": False,
            "genre": "é",
            "free": [1],
            "tags": ["é", ""],
            "codes": [],
        },
        "values": [1.0, 2.0, 3.0, 4.0],
    }


def test_an_empty_collection_is_a_file_too(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", count=0)
    assert ExportFile(path).rows == 0
    assert vectors(path) == {}


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_said_to_be(tmp_path: Path, kept: float) -> None:
    path = written(tmp_path / "x.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    assert "incomplete" in refusal(path)


def test_damage_inside_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet")
    whole = bytearray(path.read_bytes())
    whole[4:400] = b"\xff" * 396
    path.write_bytes(whole)
    assert "damaged" in refusal(path)


def test_other_peoples_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": ["a"], "embedding": [[1.0]]}), path)
    assert "not an export of clipfleet" in refusal(path)
    path.write_text("a photo, a caption\n")
    assert "not a Parquet file" in refusal(path)
    with pytest.raises(FileNotFoundError):
        ExportFile(tmp_path / "none.parquet")


def test_a_later_version_and_a_broken_description_are_refused(tmp_path: Path) -> None:
    def describing(text: str) -> Callable[[pa.Table], pa.Table]:
        return lambda table: table.replace_schema_metadata({KEY: text.encode()})

    path = changed(written(tmp_path / "x.parquet"), describing(json.dumps({"version": 3})))
    assert "another version" in refusal(path)
    for text in ("{", "[]", '{"name": 3}'):
        assert "cannot be understood" in refusal(changed(path, describing(text)))


def test_missing_and_strange_columns_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet")
    assert "'uri' is missing" in refusal(changed(path, lambda table: table.drop(["uri"])))
    path = written(tmp_path / "y.parquet")
    place = pq.read_table(path).schema.get_field_index("year")
    reason = refusal(
        changed(path, lambda t: t.set_column(place, "year", pa.array(["x"] * t.num_rows)))
    )
    assert "'year' is string, not int64" in reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_named_by_its_row(tmp_path: Path, bad: float) -> None:
    path = written(tmp_path / "x.parquet")

    def spoil(table: pa.Table) -> pa.Table:
        rows = table["embedding"].to_pylist()
        rows[4] = [1.0, bad, 1.0, 1.0]
        place = table.schema.get_field_index("embedding")
        return table.set_column(place, "embedding", pa.array(rows, pa.list_(pa.float32())))

    assert "row 5 has no vector, or one that is not finite" in refusal(changed(path, spoil))


def test_a_vector_of_another_length_is_named_by_its_row(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", embedding=np.ones(DIM, np.float32))

    def spoil(table: pa.Table) -> pa.Table:
        rows = [*table["embedding"].to_pylist()[:-1], [1.0]]
        place = table.schema.get_field_index("embedding")
        return table.set_column(place, "embedding", pa.array(rows, pa.list_(pa.float32())))

    assert "the vector in row 6 has 1 numbers, not 4" in refusal(changed(path, spoil))


def interrupted(path: Path) -> None:
    with new_file(path, overwrite=True) as out:
        out.write(b"half")
        raise KeyboardInterrupt


def test_what_breaks_leaves_no_file_and_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("old")
    with pytest.raises(FileExistsError), new_file(path, overwrite=False):
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with new_file(path, overwrite=True) as out:
        out.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
