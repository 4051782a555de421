"""The CSV files that `clipfleet evaluate` reads."""

from pathlib import Path

import pytest

from clipfleet.cli.evaluation import captioned_images, table_rows
from clipfleet.common.errors import InvalidRequest

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
