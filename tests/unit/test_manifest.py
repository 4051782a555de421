"""Manifests of lines: what a row becomes, which lines fail alone, where reading resumes."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.common.ledger import Item
from clipfleet.workers.sources import Source
from support.source_helpers import (
    Web,
    items,
    listed,
    manifest,
    memory_peak,
    resumes_everywhere,
    source,
    storage_at,
    until_broken,
    why_not,
)


def rows(folder: Path, *values: Any) -> list[Item]:
    return items(manifest(folder, "\n".join(json.dumps(row) for row in values)))


def test_id_uri_and_label_are_ours_and_all_else_is_metadata(tmp_path: Path) -> None:
    row = {"id": "a", "uri": "https://example.org/a.jpg", "label": "cat", "year": 1999}
    (item,) = rows(tmp_path, row | {"score": 0.5, "tags": ["x"], "none": None, "sold": True})
    assert (item.id, item.label, item.problem) == ("a", "cat", None)
    assert item.uri == "https://example.org/a.jpg"
    assert item.read == "url:https://example.org/a.jpg"
    assert item.metadata == {"year": 1999, "score": 0.5, "tags": ["x"], "sold": True}


def test_the_id_is_the_uri_where_none_is_given_and_a_number_may_be_one(tmp_path: Path) -> None:
    first, second = rows(tmp_path, {"uri": "s3://b/a.jpg"}, {"uri": "a.jpg", "id": 7})
    assert (first.id, first.read) == ("s3://b/a.jpg", "fs:s3://b/a.jpg")
    assert second.id == "7"


@pytest.mark.parametrize(
    ("base", "uri", "read"),
    [
        ("{top}/m.jsonl", "sub/ä b.jpg", "file:{top}/sub/ä b.jpg"),
        ("{top}/m.jsonl", "{top}/x.jpg", "file:{top}/x.jpg"),
        ("{top}/m.jsonl", "file://{top}/a%20b.jpg", "file:{top}/a b.jpg"),
        ("https://h.org/d/m.jsonl?v=1", "a.jpg", "url:https://h.org/d/a.jpg"),
        ("https://h.org/d/m.jsonl", "/a.jpg", "url:https://h.org/a.jpg"),
        ("memory://b/d/m.jsonl", "../a.jpg", "fs:memory://b/a.jpg"),
        ("memory://b/d/m.jsonl", "s3://other/a.jpg", "fs:s3://other/a.jpg"),
        ("memory://b/d/m.jsonl", "{top}/a.jpg", "file:{top}/a.jpg"),
    ],
)
def test_a_relative_uri_is_relative_to_the_manifest(
    tmp_path: Path, base: str, uri: str, read: str
) -> None:
    where = storage_at(tmp_path)
    location = where.find(uri.format(top=tmp_path), where.find(base.format(top=tmp_path)))
    assert location == read.format(top=tmp_path)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/etc/passwd", "outside the folders"),
        ("../../etc/passwd", "outside the folders"),
        ("file:///etc/passwd", "outside the folders"),
        ("file://server/share.jpg", "another machine"),
        ("ftp://h/a.jpg", "a scheme that cannot be read"),
        ("ssh://h/a.jpg", "a scheme that cannot be read"),
        ("github://o:r@/a.jpg", "a scheme that cannot be read"),
        ("local:///etc/passwd", "a scheme that cannot be read"),
        ("simplecache::s3://b/a.jpg", "chains"),
        ("simplecache::file:///etc/passwd", "chains"),
        ("zip://a.jpg::/etc/x.zip", "a scheme that cannot be read"),
        ("http:///a.jpg", "no host"),
        ("s3:///a.jpg", "no bucket"),
        ("http://[::1/a.jpg", "not a URL"),
        ("a\0b.jpg", "NUL"),
        ("x" * 5_000, "bytes, the limit"),
    ],
)
def test_an_image_that_may_not_be_read_fails_alone(tmp_path: Path, uri: str, reason: str) -> None:
    good, bad = rows(tmp_path, {"uri": "a.jpg"}, {"uri": uri})
    assert good.problem is None
    assert bad.id == "line 2"
    assert reason in (bad.problem or "")
    assert bad.read == ""


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_no_trouble(
    tmp_path: Path,
) -> None:
    for name, text in {
        "m.jsonl": '{"uri": "a.jpg"}\r\n\r\n{"uri": "b.jpg"}\r\n',
        "m.csv": "uri\r\na.jpg\r\n\r\nb.jpg\r\n",
        "m.txt": "a.jpg\r\n\r\n# no image\r\nb.jpg",
    }.items():
        image_source = manifest(tmp_path, b"\xef\xbb\xbf" + text.encode(), name)
        assert [item.uri for item in items(image_source)] == [
            str(tmp_path / "a.jpg"),
            str(tmp_path / "b.jpg"),
        ]
        resumes_everywhere(image_source)


def test_csv_cells_that_read_as_numbers_are_numbers(tmp_path: Path) -> None:
    text = "uri,id,label,year,zip,score,sold,empty,name\na.jpg,7,3,1999,01234,0.5,true,,x\n"
    (item,) = items(manifest(tmp_path, text, "m.csv"))
    assert (item.id, item.label) == ("7", "3")
    assert item.metadata == {
        "year": 1999, "zip": "01234", "score": 0.5, "sold": True, "name": "x",
    }  # fmt: skip


def test_a_csv_cell_is_text_where_the_collection_says_so(tmp_path: Path) -> None:
    fields = {"code": "string"}
    (item,) = items(manifest(tmp_path, "uri,code\na.jpg,12\n", "m.csv", fields=fields))
    assert item.metadata == {"code": "12"}


def test_what_the_service_measures_itself_is_left_out_of_the_metadata(tmp_path: Path) -> None:
    (item,) = rows(tmp_path, {"uri": "a.jpg", "width": 3, "bytes": 4, "job_id": "x", "year": 5})
    assert item.metadata == {"year": 5}


def test_a_csv_cell_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    text = 'uri,caption\n"a,b.jpg","one ""two""\r\nthree"\nc.jpg,plain\n'
    image_source = manifest(tmp_path, text, "m.csv")
    first, second = items(image_source)
    assert first.uri == str(tmp_path / "a,b.jpg")
    assert first.metadata == {"caption": 'one "two"\r\nthree'}
    assert second.metadata == {"caption": "plain"}
    resumes_everywhere(image_source)


def test_an_empty_manifest_has_no_rows(tmp_path: Path) -> None:
    for name, text in (("m.jsonl", ""), ("m.csv", ""), ("m.csv", "uri\n"), ("m.txt", "\n\n")):
        image_source = manifest(tmp_path, text, name)
        assert items(image_source) == []
        assert "has no rows" in image_source.nothing_found()


def test_a_manifest_that_is_not_there_or_no_file_or_outside_says_so(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    for name, reason in {
        "none.csv": "No such file",
        "d.csv": "not a regular file",
        "link.csv": "outside the folders",
        "/etc/x.csv": "outside the folders",
    }.items():
        uri = str(tmp_path / name)
        assert reason in why_not(source(tmp_path, {"type": "manifest", "uri": uri}))


def test_a_packed_manifest_reads_as_the_plain_one_does(tmp_path: Path) -> None:
    for name, text in (("m.jsonl", '{"uri": "a.jpg"}\n' * 30), ("m.csv", "uri\n" + "a.jpg\n" * 30)):
        plain = listed(manifest(tmp_path, text, name))
        packed = manifest(tmp_path, gzip.compress(text.encode()), f"{name}.gz")
        assert [entry.item.id for entry in listed(packed)] == [entry.item.id for entry in plain]
        resumes_everywhere(packed)


def test_of_a_damaged_packed_manifest_what_came_before_is_listed(tmp_path: Path) -> None:
    text = "".join(f'{{"uri": "{n}.jpg", "x": "{n * 7919 % 1000}"}}\n' for n in range(5_000))
    image_source = manifest(tmp_path, gzip.compress(text.encode())[:-2_000], "m.jsonl.gz")
    seen, reason = until_broken(image_source)
    assert "is damaged" in reason
    assert len(seen) > 1_000


def test_a_manifest_from_the_web_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    text = "".join(f"{n}.jpg\n" for n in range(20_000))
    web = Web({"https://h.org/m.txt": text.encode()}, cuts=2)
    images = items(source(tmp_path, {"type": "manifest", "uri": "https://h.org/m.txt"}, web))
    assert [item.uri for item in images] == [f"https://h.org/{n}.jpg" for n in range(20_000)]
    assert web.opened == 3


def test_a_web_page_that_never_comes_whole_fails_the_job_in_the_end(tmp_path: Path) -> None:
    web = Web({"https://h.org/m.txt": b"a.jpg\n" * 100}, cuts=10**6)
    raw = {"type": "manifest", "uri": "https://h.org/m.txt"}
    with pytest.raises(Exception, match="the connection broke"):
        items(source(tmp_path, raw, web))
    assert "404" in why_not(source(tmp_path, {**raw, "uri": "https://h.org/none.txt"}, web))


CELL = st.text(st.sampled_from('ab,"\n\r é😀'), max_size=6)
TABLE = st.lists(st.tuples(CELL, CELL), max_size=8)


@effort(max_examples=150, deadline=None)
@given(TABLE, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_csv_that_python_writes_is_read_back_and_resumed(
    table: list[tuple[str, str]], end: str, packed: bool
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["uri", "caption"])
    writer.writerows((f"{n}.jpg", caption + other) for n, (caption, other) in enumerate(table))
    raw = out.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder:
        image_source = manifest(Path(folder), gzip.compress(raw) if packed else raw, "m.csv")
        captions = [item.metadata.get("caption", "") for item in items(image_source)]
        assert captions == [caption + other for caption, other in table]
        resumes_everywhere(image_source)


LINE = st.sampled_from(['{"uri": "a.jpg"}', "", "bad", '{"uri": "é", "n": 1}', "  ", "[]", '"'])


@effort(max_examples=100, deadline=None)
@given(st.lists(LINE, max_size=12), st.booleans(), st.sampled_from(["m.jsonl", "m.txt"]))
def test_from_every_cursor_comes_exactly_the_rest(lines: list[str], ends: bool, name: str) -> None:
    text = "\n".join(['{"uri": "first"}', *lines]) + ("\n" if ends else "")
    with tempfile.TemporaryDirectory() as folder:
        resumes_everywhere(manifest(Path(folder), text, name))


def long_manifest(folder: Path, lines: int) -> Source:
    path = folder / f"{lines}.jsonl"
    with path.open("w") as out:
        out.writelines(f'{{"uri": "{n}.jpg", "year": {n % 100}}}\n' for n in range(lines))
    return source(folder, {"type": "manifest", "uri": str(path)})


def test_ten_times_the_lines_cost_no_more_memory(tmp_path: Path) -> None:
    (count, few), (ten_times, many) = (
        memory_peak(long_manifest(tmp_path, lines)) for lines in (1_000, 10_000)
    )
    assert (count, ten_times) == (1_000, 10_000)
    assert many < few + 20_000, "more than two bytes a line"


def test_the_lines_of_a_long_manifest_are_estimated_by_the_first_of_them(tmp_path: Path) -> None:
    image_source = long_manifest(tmp_path, 200_000)
    assert image_source.count() == pytest.approx(200_000, rel=0.1)
