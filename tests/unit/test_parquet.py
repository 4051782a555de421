"""Parquet manifests."""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.workers.sources import Source
from support.source_helpers import Web, items, listed, resumes_everywhere, source, why_not


def manifest(folder: Path, table: Any, rows: int = 1_000) -> Source:
    pq.write_table(table, folder / "m.parquet", row_group_size=rows)
    return source(folder, {"type": "manifest", "uri": str(folder / "m.parquet")})


def test_columns_keep_their_types_and_missing_values_are_left_out(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": ["a.jpg", "b.jpg"],
            "id": [1, 2],
            "year": [1999, None],
            "score": [0.5, float("nan")],
            "day": [datetime(2024, 5, 17), None],
            "price": [Decimal("1.50"), None],
            "tags": [["x", "y"], None],
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "image": [b"\xff\xd8", None],
        }
    )
    first, second = items(manifest(tmp_path, table))
    assert (first.id, first.uri) == ("1", str(tmp_path / "a.jpg"))
    assert first.metadata == {
        "year": 1999, "score": 0.5, "day": "2024-05-17T00:00:00", "price": 1.5,
        "tags": ["x", "y"], "kind": "p",
    }  # fmt: skip
    assert second.metadata == {"kind": "q"}


def test_it_goes_on_within_and_between_row_groups(tmp_path: Path) -> None:
    image_source = manifest(tmp_path, pa.table({"uri": [f"{n}.jpg" for n in range(25)]}), rows=10)
    assert [item.uri for item in items(image_source)] == [
        str(tmp_path / f"{n}.jpg") for n in range(25)
    ]
    assert image_source.count() == 25
    resumes_everywhere(image_source)


def test_going_on_does_not_read_the_row_groups_before(tmp_path: Path) -> None:
    """The first group's pages are overwritten, so reading them would fail."""
    image_source = manifest(
        tmp_path, pa.table({"uri": [f"{n:09}.jpg" for n in range(30)]}), rows=10
    )
    whole = listed(image_source)
    path = tmp_path / "m.parquet"
    at = pq.ParquetFile(path).metadata.row_group(0).column(0)
    raw = bytearray(path.read_bytes())
    begin = at.dictionary_page_offset or at.data_page_offset
    raw[begin : begin + at.total_compressed_size] = b"\xff" * at.total_compressed_size
    path.write_bytes(raw)
    assert "cannot be read" in why_not(image_source)
    assert listed(image_source, whole[9].cursor) == whole[10:]


def test_a_row_without_uri_or_with_broken_text_fails_alone(tmp_path: Path) -> None:
    broken = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"uri": ["a.jpg", "b.jpg", None], "caption": broken})
    a, b, c = items(manifest(tmp_path, table))
    assert a.problem is None
    assert (b.id, b.problem) == ("row 2", "it is not valid UTF-8")
    assert c.id == "row 3"
    assert "no uri" in (c.problem or "")


def test_a_table_without_the_column_says_so(tmp_path: Path) -> None:
    assert "no column 'uri'" in why_not(manifest(tmp_path, pa.table({"url": ["a"]})))
    image_source = manifest(tmp_path, pa.table({"uri": pa.array([], pa.string())}))
    assert items(image_source) == []
    assert "no rows" in image_source.nothing_found()


def test_one_from_the_web_is_copied_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg", "b.jpg"]}), tmp_path / "m")
    web = Web({"https://h.org/m.parquet": (tmp_path / "m").read_bytes()})
    image_source = source(tmp_path, {"type": "manifest", "uri": "https://h.org/m.parquet"}, web)
    assert [item.uri for item in items(image_source)] == [
        "https://h.org/a.jpg",
        "https://h.org/b.jpg",
    ]
    resumes_everywhere(image_source)
    assert web.opened == 1


def test_one_that_is_larger_than_copies_may_be_fails_the_job(tmp_path: Path) -> None:
    web = Web({"https://h.org/m.parquet": b"x" * 2_000})
    raw = {"type": "manifest", "uri": "https://h.org/m.parquet"}
    assert "the limit for copies" in why_not(source(tmp_path, raw, web, copied_bytes=1_000))
