"""The CSV files that `clipfleet evaluate` reads, and its hints."""

import json
from pathlib import Path

import pytest
from PIL import Image

from clipfleet.cli.evaluation import captioned_images, table_rows, unnamed_codes
from clipfleet.common.errors import InvalidRequest
from support.in_process import run_cli

TABLES = {
    "plain": 'image,caption\na.jpg,"a cat, sitting"\nb.jpg,b\n',
    "byte order mark": '\ufeffimage,caption\na.jpg,"a cat, sitting"\nb.jpg,b\n',
    "blanks": 'image, caption\na.jpg, "a cat, sitting"\n\nb.jpg , b\n',
    "semicolons": "\ufeffimage;caption\na.jpg;a cat, sitting\nb.jpg;b\n",
    "tabs": "image\tcaption\na.jpg\ta cat, sitting\nb.jpg\tb\n",
    "Windows": 'image,caption\r\na.jpg,"a cat, sitting"\r\nb.jpg,b\r\n',
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_captions_are_read_as_programs_write_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(text.encode())
    paths, captions = captioned_images(path)
    assert [image.name for image in paths] == ["a.jpg", "b.jpg"]
    assert captions == [(0, "a cat, sitting"), (1, "b")]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"image,caption\na.jpg\n", "has 1 cells"),
        (b"image,caption\na.jpg,caf\xe9\n", "UTF-8"),
        (b"a,b\n1,2\n", "needs the columns"),
        (b"", "needs the columns"),
    ],
)
def test_a_table_that_is_not_valid_is_refused_in_words(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(raw)
    with pytest.raises(InvalidRequest, match=reason):
        captioned_images(path)


def test_rows_are_named_by_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_bytes("\ufefflabel,name\nn01,tench\n".encode())
    assert table_rows(tmp_path / "names.csv") == [{"label": "n01", "name": "tench"}]


@pytest.mark.parametrize(
    "labels",
    [
        ["n01440764", "n02102040"],
        ["001", "002"],
        ["0", "1", "10"],
        ["C12", "a_3", "C-007"],
        ["class_1", "Class 2", "cls03", "label-4", "id5"],
        ["3f2a9c1e", "123e4567-e89b-12d3-a456-426614174000"],
        ["n01440764", "n02102040", "dog"],
    ],
)
def test_codes_are_recognised(labels: list[str]) -> None:
    codes = unnamed_codes(labels, {})
    assert codes == sorted({*labels} - {"dog"})
    assert unnamed_codes(labels, dict.fromkeys(labels, "a word")) == []


@pytest.mark.parametrize(
    "labels",
    [
        ["dog", "cat"],
        ["English_springer", "french-horn"],
        ["001.Black_footed_Albatross", "257.clutter"],
        ["Boeing 747", "1957 Chevy", "route66"],
        ["n01440764", "dog", "cat"],
        ["facade", "decade", "beefed"],
        ["犬", "猫"],
        ["2024-06 Rome", "holiday 3"],
    ],
)
def test_words_are_no_codes(labels: list[str]) -> None:
    assert unnamed_codes(labels, {}) == []


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    for number, label in enumerate(("n01", "n02")):
        (tmp_path / label).mkdir()
        for copy in range(3):
            image = Image.new("RGB", (8, 8), (90 * number, 60 * copy, 0))
            image.save(tmp_path / label / f"{copy}.png")
    return tmp_path


def test_evaluate_says_that_labels_are_codes_and_what_the_numbers_mean(coded: Path) -> None:
    options = ("evaluate", str(coded), "--model", "hash:8")
    plain = run_cli("", *options)
    assert plain.returncode == 0
    assert "the labels look like codes: give --names" in plain.stderr
    for name in ("top1", "top5", "any_of_5", "precision@5"):
        assert f"{name}: " in plain.stderr
        assert name in plain.stdout
    report = run_cli("", *options, "--json")
    assert json.loads(report.stdout)["images"] == 6
    assert "--names" in report.stderr
    (coded / "names.csv").write_text("label,name\nn01,tench\nn02,dog\n")
    assert "codes" not in run_cli("", *options, "--names", str(coded / "names.csv")).stderr
    (coded / "names.csv").write_text("label,name\nn1,tench\n")
    wrong = run_cli("", *options, "--names", str(coded / "names.csv"))
    assert "--names has no words for them (n01, n02)" in wrong.stderr
