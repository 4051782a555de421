"""One rule for null, NaN, numbers, truth values and dates, whatever the format of the source."""

import csv
import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.common.ledger import Item
from clipfleet.common.ledger.notes import GAPS
from clipfleet.workers.sources import Source
from clipfleet.workers.sources.parquet import COLUMNS_OF_BYTES
from clipfleet.workers.sources.values import BIG_NUMBERS, BYTES
from support.archives import packed
from support.source_helpers import items, resumes_everywhere, source

FIELDS = {
    "year": "int",
    "score": "float",
    "ok": "bool",
    "zip": "string",
    "tags": "string[]",
    "codes": "int[]",
}
Row = dict[str, Any]
Write = Callable[[Path, list[Row]], Source]


def opened(folder: Path, name: str, data: bytes, kind: str = "manifest") -> Source:
    (folder / name).write_bytes(data)
    return source(folder, {"type": kind, "uri": str(folder / name), "fields": FIELDS})


def as_csv(folder: Path, rows: list[Row]) -> Source:
    """As Python's csv module writes it: None is empty, True is `True`, a float is `3.0`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["uri", *dict.fromkeys(key for row in rows for key in row)])
    writer.writeheader()
    writer.writerows({"uri": f"{n}.jpg", **row} for n, row in enumerate(rows))
    return opened(folder, "m.csv", out.getvalue().encode())


def as_json(folder: Path, rows: list[Row]) -> Source:
    text = "".join(json.dumps({"uri": f"{n}.jpg", **row}) + "\n" for n, row in enumerate(rows))
    return opened(folder, "m.jsonl", text.encode())


def as_parquet(folder: Path, rows: list[Row]) -> Source:
    """Each row as a table of its own types, with one row group."""
    out = io.BytesIO()
    tables = [pa.Table.from_pylist([{"uri": f"{n}.jpg", **row}]) for n, row in enumerate(rows)]
    assert len(tables) == 1
    pq.write_table(tables[0], out)
    return opened(folder, "m.parquet", out.getvalue())


def as_sidecars(folder: Path, rows: list[Row]) -> Source:
    members: list[tuple[str, bytes]] = []
    for number, row in enumerate(rows):
        members += [(f"{number}.jpg", b"1"), (f"{number}.json", json.dumps(row).encode())]
    return opened(folder, "m.tar", packed("m.tar", members), "archive")


FORMATS = [as_csv, as_json, as_parquet, as_sidecars]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("year", 2001, 2001),
        ("year", 2001.0, 2001),
        ("year", "2001", 2001),
        ("year", " 2001.0 ", 2001),
        ("year", NAN, None),
        ("year", None, None),
        ("year", "nan", None),
        ("year", 2001.5, 2001.5),
        ("year", "then", "then"),
        ("score", 1, 1),
        ("score", "1e3", 1000.0),
        ("score", "NaN", None),
        ("score", NAN, None),
        ("score", INF, None),
        ("ok", True, True),
        ("ok", "True", True),
        ("ok", "TRUE", True),
        ("ok", "false", False),
        ("ok", "1", True),
        ("ok", 0, False),
        ("ok", 1.0, True),
        ("ok", None, None),
        ("ok", "yes", "yes"),
        ("zip", "00123", "00123"),
        ("zip", 123, "123"),
        ("zip", 123.0, "123"),
        ("zip", 1.5, "1.5"),
        ("zip", None, None),
        ("other", 2.5, 2.5),
        ("other", "text", "text"),
        ("other", None, None),
        ("other", True, True),
    ],
)
def test_a_value_is_the_same_in_every_format(
    tmp_path: Path, write: Write, name: str, value: Any, expected: Any
) -> None:
    if write is as_csv and value == INF:
        value = "NaN"  # a table of text has no infinite numbers
    if write is as_csv and name == "zip" and value is not None:
        expected = str(value)  # text stays as it is written
    image_source = write(tmp_path, [{name: value}])
    (item,) = items(image_source)
    assert item.problem is None
    assert item.metadata == ({} if expected is None else {name: expected})
    assert type(item.metadata.get(name)) is type(expected)


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tags", '["a", "b, c"]', ["a", "b, c"]),
        ("tags", " [1, true, null] ", ["1", True]),
        ("tags", "[]", []),
        ("tags", "red", ["red"]),
        ("tags", "[red", ["[red"]),
        ("tags", "nan", ["nan"]),
        ("tags", 3, ["3"]),
        ("tags", "", None),
        ("tags", None, None),
        ("tags", NAN, None),
        ("codes", '[1, 2.0, "3"]', [1, 2, 3]),
        ("codes", "[1.5]", [1.5]),
        ("codes", "7", [7]),
        ("codes", 7.0, [7]),
        ("codes", "na", None),
        ("codes", "x", ["x"]),
    ],
)
def test_a_list_is_the_same_in_every_format(
    tmp_path: Path, write: Write, name: str, value: Any, expected: Any
) -> None:
    if write is as_csv and isinstance(value, float) and name == "tags":
        value = ""  # a cell is text, and `nan` is one
    (item,) = items(write(tmp_path, [{name: value}]))
    assert item.problem is None
    assert item.metadata == ({} if expected is None else {name: expected})


@pytest.mark.parametrize("write", [as_json, as_parquet, as_sidecars])
def test_lists_of_a_format_are_lists(tmp_path: Path, write: Write) -> None:
    (item,) = items(write(tmp_path, [{"tags": ["a", None, "1"], "codes": [1, 2], "zip": "1"}]))
    assert item.metadata == {"tags": ["a", "1"], "codes": [1, 2], "zip": "1"}


@pytest.mark.parametrize("write", [as_json, as_parquet, as_sidecars])
def test_numbers_that_no_store_holds_are_text_or_nothing(tmp_path: Path, write: Write) -> None:
    uid = pa.scalar(2**64 - 1, pa.uint64()) if write is as_parquet else 2**64 - 1
    image_source = write(tmp_path, [{"uid": uid, "deep": {"n": NAN, "m": [1.0, INF]}}])
    (item,) = items(image_source)
    assert item.metadata == {"uid": f"{2**64 - 1}", "deep": {"n": None, "m": [1.0, None]}}
    assert image_source.notes.take() == {BIG_NUMBERS: 1}


def test_a_large_number_and_a_truth_value_of_a_csv(tmp_path: Path) -> None:
    rows = "uri,uid,sold,n\n0.jpg,9223372036854775808,True, 7\n1.jpg,1e999,FALSE,x\n"
    first, second = items(opened(tmp_path, "m.csv", rows.encode()))
    assert first.metadata == {"uid": "9223372036854775808", "sold": True, "n": 7}
    assert second.metadata == {"uid": "1e999", "sold": False, "n": "x"}


def test_whole_numbers_with_a_gap_are_ids_and_labels(tmp_path: Path) -> None:
    """Pandas writes a column of whole numbers with a missing one as floats."""
    table = pa.table(
        {
            "uri": ["0.jpg", "1.jpg", "2.jpg"],
            "id": pa.array([10.0, None, 2.0**60]),
            "label": pa.array([3.0, NAN, 5.0]),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out)
    first, second, third = items(opened(tmp_path, "m.parquet", out.getvalue()))
    assert (first.id, first.label) == ("10", "3")
    assert (second.id.rpartition("/")[2], second.label) == ("1.jpg", "")
    assert "float over 2^53" in (third.problem or "")


def test_text_as_plain_bytes_is_read_and_pictures_are_not(tmp_path: Path) -> None:
    photo = pa.array([b"\xff\xd8" * 4_000, b"\xff\xd8\0" * 4_000], pa.binary())
    table = pa.table(
        {
            "uri": pa.array([b"0.jpg", b"1.jpg"], pa.binary()),
            "id": pa.array([b"a", b"\xff"], pa.large_binary()),
            "label": pa.array([b"cat", b"dog"], pa.binary(3)),
            "caption": pa.array(["ein Hündchen".encode(), b"b"], pa.binary()),
            "hash": pa.array([b"\xff\xfe", b"\xfe\xff"], pa.binary()),
            "photo": photo,
            "image": pa.StructArray.from_arrays([photo], ["bytes"]),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out)
    image_source = opened(tmp_path, "m.parquet", out.getvalue())
    first, second = items(image_source)
    assert (first.id, first.label, first.metadata) == ("a", "cat", {"caption": "ein Hündchen"})
    assert second.problem == "id is not valid UTF-8"
    assert image_source.notes.take() == {COLUMNS_OF_BYTES: 2, BYTES: 2, GAPS: 1}


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("us")])
def test_a_date_out_of_range_fails_its_row_alone(tmp_path: Path, kind: Any) -> None:
    days = pa.array([19_000, -800_000, 19_001, None], pa.int32()).cast(pa.date32())
    column = days.cast(kind) if kind != pa.date32() else days
    table = pa.table({"uri": [f"{n}.jpg" for n in range(4)], "taken": column})
    out = io.BytesIO()
    pq.write_table(table, out)
    image_source = opened(tmp_path, "m.parquet", out.getvalue())
    images = items(image_source)
    assert [item.problem for item in images] == [
        None,
        "a date or a time of it is not in the years 1 to 9999",
        None,
        None,
    ]
    assert str(images[0].metadata["taken"]).startswith("2022-01-08")
    assert images[3].metadata == {}
    resumes_everywhere(image_source)


def test_blanks_after_the_commas_belong_to_nothing(tmp_path: Path) -> None:
    rows = 'uri, id, label, caption\n0.jpg, sp0, cat, "a, b"\n 1.jpg ,sp1 , dog ,  c\n'
    first, second = items(opened(tmp_path, "m.csv", rows.encode()))
    assert (first.id, first.label, first.metadata) == ("sp0", "cat", {"caption": "a, b"})
    assert (second.id, second.label, second.metadata) == ("sp1", "dog", {"caption": "c"})
    assert second.uri.endswith("/1.jpg")


@pytest.mark.parametrize(("mark", "name"), [(";", "m.csv"), ("\t", "m.csv"), ("\t", "m.tsv")])
def test_a_table_may_be_separated_otherwise(tmp_path: Path, mark: str, name: str) -> None:
    rows = ["uri,id,label,n", "0.jpg,a,cat,7", "1.jpg,b,dog,8", '2.jpg,c,"x,y",9']
    text = "\n".join(row.replace(",", mark) for row in rows)
    image_source = opened(tmp_path, name, text.encode())
    assert [(item.id, item.metadata) for item in items(image_source)] == [
        ("a", {"n": 7}),
        ("b", {"n": 8}),
        ("c", {"n": 9}),
    ]
    resumes_everywhere(image_source)


def as_items(folder: Path, table: pa.Table) -> list[Item]:
    out = io.BytesIO()
    pq.write_table(table, out)
    return items(opened(folder, "m.parquet", out.getvalue()))


def test_maps_and_times_of_parquet_are_json(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": ["0.jpg"],
            "map": pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int32())),
            "at": pa.array([datetime(2024, 1, 2, 3, 4, 5)], pa.timestamp("us")),
        }
    )
    (item,) = as_items(tmp_path, table)
    assert item.metadata == {"map": {"a": 1, "b": None}, "at": "2024-01-02T03:04:05"}
