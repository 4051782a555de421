"""Which captions, labels and metadata an image of an archive has."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.workers.sources import tar as tars
from clipfleet.workers.sources.samples import SEVERAL
from support.archives import KINDS, archive, names
from support.source_helpers import items, listed, resumes_everywhere, source


def captions(images: list[Any]) -> dict[str, str]:
    return {item.id.partition("#")[2]: item.metadata.get("caption", "") for item in images}


@pytest.mark.parametrize("name", KINDS)
def test_names_with_dots_have_their_own_sidecars(tmp_path: Path, name: str) -> None:
    shots = [f"Screenshot 2024-01-01 at 10.{n:02d}.45" for n in range(30)]
    members: list[tuple[str, bytes]] = []
    for number, shot in enumerate(shots):
        members.append((f"{shot}.jpg", b"1"))
        if number % 3:
            members.append((f"{shot}.txt", f"caption {number}".encode()))
    members += [("v1.0/x.jpg", b"1"), ("v1.0/x.txt", b"old"), ("v1.5/x.jpg", b"1")]
    members += [("IMG.1.jpg", b"1"), ("IMG.1.json", b"{"), ("IMG.2.jpg", b"1")]
    members += [("IMG.2.json", b'{"label": "two"}'), ("IMG.2.cls", b"2")]
    image_source = archive(tmp_path, members, name)
    images = items(image_source)
    expected = {f"{shot}.jpg": f"caption {n}" if n % 3 else "" for n, shot in enumerate(shots)}
    expected |= {"v1.0/x.jpg": "old", "v1.5/x.jpg": "", "IMG.1.jpg": "", "IMG.2.jpg": ""}
    assert captions(images) == expected
    assert [item.label for item in images[-2:]] == ["", "2"]
    assert ["not JSON" in (item.problem or "") for item in images[-2:]] == [True, False]
    assert not any(item.problem for item in images[:-2])
    resumes_everywhere(image_source)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_has_the_sidecar_that_is_the_most_like_its_name(tmp_path: Path, name: str) -> None:
    members = {
        "a.jpg": b"1",
        "a.left.jpg": b"1",
        "a.left.txt": b"left",
        "a.right.jpg": b"1",
        "a.txt": b"both",
        "b.caption.txt": b"words",
        "b.jpg": b"1",
        "c.jpg": b"1",
        "c.jpg.txt": b"whole name",
        "c.txt": b"name",
        "d.10.20.txt": b"of another time",
        "d.10.jpg": b"1",
        "e.depth.png": b"1",
        "e.txt": b"depth",
    }
    image_source = archive(tmp_path, members, name)
    assert captions(items(image_source)) == {
        "a.jpg": "both",
        "a.left.jpg": "left",
        "a.right.jpg": "both",
        "b.jpg": "words",
        "c.jpg": "whole name",
        "d.10.jpg": "",
        "e.depth.png": "depth",
    }
    assert image_source.notes.take() == {".txt": 1}


@pytest.mark.parametrize("name", KINDS)
def test_a_clash_and_files_that_are_left_out_are_counted_once(tmp_path: Path, name: str) -> None:
    members = [
        ("movie.MOV", b"1"),
        ("a.de.txt", b"ein Hund"),
        ("a.en.txt", b"a dog"),
        ("a.jpg", b"1"),
        ("a.mp4", b"1"),
        ("b.jpg", b"1"),
        ("b.png", b"1"),
        ("b.txt", b"both"),
        ("lonely.json", b"{}"),
        ("notes", b"1"),
        ("._a.jpg", b"1"),
        ("z.psd", b"1"),
    ]
    image_source = archive(tmp_path, members, name)
    assert captions(items(image_source)) == {"a.jpg": "ein Hund", "b.jpg": "both", "b.png": "both"}
    expected = {SEVERAL: 1, ".mov": 1, ".mp4": 1, ".json": 1, ".": 1, ".psd": 1}
    assert image_source.notes.take() == expected
    entries = listed(image_source)
    for number, entry in enumerate(entries):
        image_source.notes.take()
        stream = image_source.stream("")
        for _ in range(number + 1):
            next(stream)
        before = image_source.notes.take()
        rest = source(tmp_path, {"type": "archive", "uri": str(tmp_path / name)})
        listed(rest, entry.cursor)
        after = rest.notes.take()
        both = {key: before.get(key, 0) + after.get(key, 0) for key in {*before, *after}}
        assert both == expected, entry.cursor


def test_a_large_group_is_never_split_between_an_image_and_its_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_GROUP_MEMBERS", 5)
    members = []
    for n in range(20):
        members += [(f"IMG.{n:02d}.jpg", b"1"), (f"IMG.{n:02d}.txt", f"{n}".encode())]
    image_source = archive(tmp_path, members)
    assert list(captions(items(image_source)).values()) == [f"{n}" for n in range(20)]
    resumes_everywhere(image_source)


LABELS: dict[str, tuple[str, str]] = {
    "null": ("", ""),
    "NaN": ("", ""),
    '""': ("", ""),
    "3": ("3", ""),
    "3.0": ("3", ""),
    "2.5": ("", "label must be text, not float"),
    "true": ("", "label must be text, not bool"),
    '["cat", "dog"]': ("", "label must be text, not list"),
    '{"name": "cat"}': ("", "label must be text, not dict"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_label_in_a_sidecar_is_what_it_is_in_a_manifest(tmp_path: Path, name: str) -> None:
    members: list[tuple[str, bytes]] = []
    for number, label in enumerate(LABELS):
        members += [(f"{number}.jpg", b"1"), (f"{number}.json", f'{{"label": {label}}}'.encode())]
    images = items(archive(tmp_path, members, name))
    assert [(item.label, item.problem or "") for item in images] == list(LABELS.values())
    rows = "".join(f'{{"uri": "{n}.jpg", "label": {label}}}\n' for n, label in enumerate(LABELS))
    (tmp_path / "m.jsonl").write_text(rows)
    listed_rows = items(source(tmp_path, {"type": "manifest", "uri": str(tmp_path / "m.jsonl")}))
    reasons = [item.problem or "" for item in listed_rows]
    assert list(zip([item.label for item in listed_rows], reasons, strict=True)) == list(
        LABELS.values()
    )


@pytest.mark.parametrize("name", KINDS)
def test_what_img2dataset_writes_is_read(tmp_path: Path, name: str) -> None:
    """Each sample has a NaN, a null and a number over 64 bits; its caption file may be empty."""
    sample = {
        "caption": None,
        "width": 320,
        "punsafe": float("nan"),
        "similarity": 0.33,
        "hash": -5632130123,
        "uid": 2**64 - 1,
        "deep": {"uid": [2**63, float("inf")]},
    }
    members = [("00.jpg", b"1"), ("00.json", json.dumps(sample).encode()), ("00.txt", b"")]
    members += [("01.jpg", b"1"), ("01.json", json.dumps({**sample, "uid": 5}).encode())]
    image_source = archive(tmp_path, members, name)
    first, second = items(image_source)
    assert (first.problem, second.problem) == (None, None)
    assert first.metadata == {
        "similarity": 0.33,
        "hash": -5632130123,
        "uid": "18446744073709551615",
        "deep": {"uid": ["9223372036854775808", None]},
    }
    assert second.metadata["uid"] == 5
    assert image_source.notes.take() == {"numbers over 64 bits were kept as text": 3}
    assert names([first, second]) == ["00.jpg", "01.jpg"]


@pytest.mark.parametrize("name", KINDS)
def test_the_folder_in_an_archive_may_be_the_label(tmp_path: Path, name: str) -> None:
    members = {
        "./cat/1.jpg": b"1",
        "a/dog/1.jpg": b"1",
        "a/dog/2.cls": b"wolf",
        "a/dog/2.jpg": b"1",
        "top.jpg": b"1",
    }
    archive(tmp_path, members, name)
    raw = {"type": "archive", "uri": str(tmp_path / name), "label_from_folder": True}
    assert [item.label for item in items(source(tmp_path, raw))] == ["cat", "dog", "wolf", ""]
    assert [item.label for item in items(archive(tmp_path, members, name))] == ["", "", "wolf", ""]
