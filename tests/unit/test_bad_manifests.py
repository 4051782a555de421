"""Which lines of a manifest fail alone, and which faults fail the whole job."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.common.ledger import Item
from support.archives import packed
from support.source_helpers import (
    items,
    manifest,
    resumes_everywhere,
    source,
    until_broken,
    why_not,
)


def problems(images: list[Item]) -> dict[str, str]:
    return {item.id: item.problem for item in images if item.problem}


BAD_LINES = {
    "nonsense": "not JSON",
    "[1, 2]": "not a JSON object",
    '"text"': "not a JSON object",
    "{}": "there is no uri",
    '{"url": "a.jpg"}': "there is no uri",
    '{"uri": null}': "there is no uri",
    '{"uri": 1.5}': "uri must be text, not float",
    '{"uri": ["a"]}': "uri must be text, not list",
    '{"uri": "a", "label": {}}': "label must be text",
    '{"uri": "a", "id": true}': "id must be text",
    '{"uri": "a", "id": "x\\u0000"}': "NUL",
    '{"uri": "a", "x": "\\ud800"}': "not valid UTF-8",
    '{"uri": "a", "x": ' + "9" * 5_000 + "}": "not JSON",
    '{"uri": "a", "x": ' + "[" * 40 + "]" * 40 + "}": "nested",
    "[" * 100_000: "not JSON",
    '{"uri": "a", "x": "' + "x" * 40_000 + '"}': "metadata has",
    '{"uri": "' + "x" * 1_100_000 + '"}': "more than 1000000 bytes",
    '{"uri": "a\0b"}': "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_fails_alone_and_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    image_source = manifest(tmp_path, f'{{"uri": "a.jpg"}}\n{line}\n{{"uri": "b.jpg"}}\n')
    first, bad, last = items(image_source)
    assert (first.problem, last.problem) == (None, None)
    assert bad.id == "line 2"
    assert BAD_LINES[line] in (bad.problem or "")
    assert "line 2" not in (bad.problem or "")  # the id has said so
    assert bad.model_dump_json()
    resumes_everywhere(image_source)


def test_a_line_that_is_no_utf8_fails_alone(tmp_path: Path) -> None:
    for name, text in {
        "m.jsonl": b'{"uri": "a.jpg"}\n{"uri": "\xff"}\n{"uri": "b.jpg"}',
        "m.csv": b"uri\n\xff\nb.jpg\n",
        "m.txt": b"a.jpg\n\xff\nb.jpg",
    }.items():
        images = items(manifest(tmp_path, text, name))
        assert list(problems(images)) == ["line 2"], name
        assert "UTF-8" in problems(images)["line 2"]


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("uri,n\na.jpg\nb.jpg,1\n", {"line 2": "1 cells"}),
        ("uri,n\na.jpg,1,2\nb.jpg,1\n", {"line 2": "3 cells"}),
        ("uri,n\n,1\nb.jpg,1\n", {"line 2": "no uri"}),
        ('uri,n\n"a.jpg"x,1\nb.jpg,1\n', {"line 2": "not CSV"}),
        ('uri,n\n"a.jpg,1\nb.jpg,1\n', {"line 2": "not CSV"}),
        (f"uri,n\n{'x' * 200_000},1\nb.jpg,1\n", {"line 2": "not CSV"}),
        (f"uri,n\n{'x' * 1_200_000},1\nb.jpg,1\n", {"line 2": "more than"}),
        ('uri,n\n"a.jpg",1\n"open,2\nb.jpg,1\n', {"line 3": "not CSV"}),
    ],
)
def test_a_bad_record_fails_alone_and_an_open_quote_swallows_nothing(
    tmp_path: Path, text: str, bad: dict[str, str]
) -> None:
    source = manifest(tmp_path, text, "m.csv")
    images = items(source)
    assert problems(images).keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in problems(images)[name]
    assert images[-1].uri == str(tmp_path / "b.jpg")
    resumes_everywhere(source)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("m.csv", "a.jpg,1\nb.jpg,2\n", "no column 'uri'"),
        ("m.csv", "uri,uri\na,b\n", "two columns"),
        ("m.csv", '"uri\n', "first line must name the columns"),
        ("m.jsonl", '[{"uri": "a.jpg"}]', "one JSON array"),
        ("m.jsonl", b"\xff\xfe{\0", "UTF-16"),
        ("m.jsonl", b"\x1f\x8bnot really", "damaged"),
        ("m.parquet", "PAR1 not at all", "cannot be read"),
        ("m.parquet", "", "cannot be read"),
    ],
)
def test_a_manifest_that_is_unreadable_as_a_whole_says_what_to_do(
    tmp_path: Path, name: str, text: str | bytes, reason: str
) -> None:
    assert reason in why_not(manifest(tmp_path, text, name))


SECRET = "QZXJVK"  # no two letters of it come in our own words
SECRETS = {
    "m.txt": [
        f"requirepass {SECRET}",
        f"{SECRET}:x:0:0:root:/root:/bin/bash",
        f"/{SECRET}",
        f"ftp://{SECRET}",
        f"{SECRET}://x",
        f"x::{SECRET}://",
        f"file://{SECRET}/x",
        f"http://[{SECRET}",
        f"https://[{SECRET}/x",
        f"s3://{SECRET}:x/y",
        f"s3:///{SECRET}",
        f"s3://b/../{SECRET}",
    ],
    "m.jsonl": [
        SECRET,
        f'"{SECRET}"',
        f'{{"{SECRET}": 1}}',
        f'{{"uri": ["{SECRET}"]}}',
        f'{{"uri": "{SECRET}://x"}}',
        f'{{"uri": "../../{SECRET}"}}',
        f'{{"uri": "a", "{SECRET}": "\\ud800"}}',
        f'{{"uri": "a", "{SECRET}": 1e999}}',
        f'{{"uri": "a", "id": "{SECRET}\\u0000"}}',
        f'{{"uri": "a", "x": "\\{SECRET}"}}',
    ],
    "m.csv": [f'"{SECRET}"x', f"{SECRET},{SECRET}", f"/{SECRET}", f"{SECRET}://x"],
}


@pytest.mark.parametrize("name", SECRETS)
def test_what_a_bad_line_says_is_not_repeated(tmp_path: Path, name: str) -> None:
    """The file may not belong to the caller, because a caller can name any text file as a
    manifest."""
    head = ["uri"] if name.endswith("csv") else []
    images = items(manifest(tmp_path, "\n".join([*head, *SECRETS[name]]), name))
    assert len(images) == len(SECRETS[name])
    for number, item in enumerate(images, 1 + len(head)):
        if item.problem is None:  # it may be a path
            assert item.row == f"line {number}"
        else:
            assert SECRET not in f"{item.id} {item.uri} {item.problem}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", f"{SECRET}\na\n"),
        ("m.csv", f"uri,{SECRET},{SECRET}\na,b,c\n"),
        ("m.csv", f'"{SECRET}\n'),
        ("m.jsonl", b"\x1f\x8b" + SECRET.encode() * 9),
        ("m.parquet", f"PAR1{SECRET}PAR1"),
        ("m.txt", gzip.compress(b"a.jpg\n", mtime=0) + SECRET.encode()),
    ],
)
def test_a_manifest_that_is_none_is_refused_without_what_it_says(
    tmp_path: Path, name: str, text: str | bytes
) -> None:
    _, reason = until_broken(manifest(tmp_path, text, name))
    assert not [at for at in range(len(SECRET) - 1) if SECRET[at : at + 2] in reason]


def test_a_parquet_column_is_not_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({SECRET: ["a"]}), tmp_path / "m.parquet")
    image_source = source(tmp_path, {"type": "manifest", "uri": str(tmp_path / "m.parquet")})
    assert why_not(image_source) == "the manifest has no column 'uri'"


def test_an_archive_that_is_damaged_gzip_is_refused_without_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(
        gzip.compress(packed("a.tar", {"1.jpg": b"x"})[:512], mtime=0) + SECRET.encode()
    )
    _, reason = until_broken(source(tmp_path, {"type": "archive", "uri": str(path)}))
    assert "damaged" in reason
    assert "QZ" not in reason


@pytest.mark.parametrize(
    ("name", "unsure", "sure"),
    [
        ("m.txt", ["ab/cdef01", "https://h/T0/B1", "https://h/a.jpg?key=1"], ["a.JPG", "https://h/a.png"]),
        ("m.csv", ["ab/cdef01"], ["a.jpg", "https://h/image?id=3", "s3://b/cdef01"]),
    ],
)  # fmt: skip
def test_a_row_that_need_not_be_a_uri_is_called_by_its_number(
    tmp_path: Path, name: str, unsure: list[str], sure: list[str]
) -> None:
    head = ["uri"] if name.endswith("csv") else []
    images = items(manifest(tmp_path, "\n".join([*head, *unsure, *sure]), name))
    assert [item.problem for item in images] == [None] * len(images)
    names = [f"line {number}" for number in range(1 + len(head), 1 + len(head) + len(unsure))]
    assert [item.row for item in images] == [*names, *[""] * len(sure)]
