"""Which lines of a manifest fail alone, and what fails the job."""

from pathlib import Path

import pytest

from clipfleet.common.ledger import Item
from support.source_helpers import items, manifest, resumes_everywhere, why_not


def problems(found: list[Item]) -> dict[str, str]:
    return {item.id: item.problem for item in found if item.problem}


BAD_LINES = {
    "nonsense": "not JSON",
    "[1, 2]": "no JSON object",
    '"text"': "no JSON object",
    "{}": "there is no uri",
    '{"url": "a.jpg"}': "there is no uri (but 'url')",
    '{"uri": null}': "there is no uri",
    '{"uri": 1.5}': "uri must be text, not float",
    '{"uri": ["a"]}': "uri must be text, not list",
    '{"uri": "a", "label": {}}': "label must be text",
    '{"uri": "a", "id": true}': "id must be text",
    '{"uri": "a", "id": "x\\u0000"}': "NUL",
    '{"uri": "a", "x": "\\ud800"}': "not valid UTF-8",
    '{"uri": "a", "x": 1e999}': "not finite",
    '{"uri": "a", "x": ' + "9" * 5_000 + "}": "not JSON",
    '{"uri": "a", "x": ' + "[" * 40 + "]" * 40 + "}": "nested",
    "[" * 100_000: "not JSON",
    '{"uri": "a", "x": "' + "x" * 40_000 + '"}': "metadata has",
    '{"uri": "' + "x" * 1_100_000 + '"}': "more than 1000000 bytes",
    '{"uri": "a\0b"}': "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_fails_alone_and_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    found = manifest(tmp_path, f'{{"uri": "a.jpg"}}\n{line}\n{{"uri": "b.jpg"}}\n')
    first, bad, last = items(found)
    assert (first.problem, last.problem) == (None, None)
    assert bad.id == "line 2"
    assert (bad.problem or "").startswith("line 2: ")
    assert BAD_LINES[line] in (bad.problem or "")
    assert bad.model_dump_json()
    resumes_everywhere(found)


def test_a_line_that_is_no_utf8_fails_alone(tmp_path: Path) -> None:
    for name, text in {
        "m.jsonl": b'{"uri": "a.jpg"}\n{"uri": "\xff"}\n{"uri": "b.jpg"}',
        "m.csv": b"uri\n\xff\nb.jpg\n",
        "m.txt": b"a.jpg\n\xff\nb.jpg",
    }.items():
        found = items(manifest(tmp_path, text, name))
        assert list(problems(found)) == ["line 2"], name
        assert "UTF-8" in problems(found)["line 2"]


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("uri,n\na.jpg\nb.jpg,1\n", {"line 2": "1 cells"}),
        ("uri,n\na.jpg,1,2\nb.jpg,1\n", {"line 2": "3 cells"}),
        ("uri,n\n,1\nb.jpg,1\n", {"line 2": "no uri"}),
        ('uri,n\n"a.jpg"x,1\nb.jpg,1\n', {"line 2": "no CSV"}),
        ('uri,n\n"a.jpg,1\nb.jpg,1\n', {"line 2": "no CSV"}),
        (f"uri,n\n{'x' * 200_000},1\nb.jpg,1\n", {"line 2": "no CSV"}),
        (f"uri,n\n{'x' * 1_200_000},1\nb.jpg,1\n", {"line 2": "more than"}),
        ('uri,n\n"a.jpg",1\n"open,2\nb.jpg,1\n', {"line 3": "no CSV"}),
    ],
)
def test_a_bad_record_fails_alone_and_an_open_quote_swallows_nothing(
    tmp_path: Path, text: str, bad: dict[str, str]
) -> None:
    source = manifest(tmp_path, text, "m.csv")
    found = items(source)
    assert problems(found).keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in problems(found)[name]
    assert found[-1].uri == str(tmp_path / "b.jpg")
    resumes_everywhere(source)


@pytest.mark.parametrize(
    ("name", "text", "said"),
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
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    assert said in why_not(manifest(tmp_path, text, name))
