"""How the source type is detected from a name, on the command line and in `client.index`."""

from pathlib import Path

import pytest

from clipfleet.client.source_detection import kind_of, source_of
from clipfleet.common.http.sources import BucketSource, FolderSource, UrlsSource


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("photos", "folder"),
        ("/data/photos.d/", "folder"),
        ("photos.CSV", "manifest"),
        ("photos.jsonl.gz", "manifest"),
        ("https://h.org/list.txt?token=1", "manifest"),
        ("s3://b/photos.parquet", "manifest"),
        ("photos.tar.gz", "archive"),
        ("photos.tgz", "archive"),
        ("photos.tar.xz", "archive"),
        ("photos.tar.bz2", "archive"),
        ("m.tsv", "manifest"),
        ("m.json", "manifest"),
        ("https://h.org/a.zip", "archive"),
        ("gs://b/a.tar", "archive"),
        ("s3://b/photos", "bucket"),
        ("az://b", "bucket"),
        ("https://h.org/cat.jpg", "urls"),
        ("https://h.org/image?id=3", "urls"),
    ],
)
def test_a_name_is_known_by_its_looks(name: str, kind: str) -> None:
    assert kind_of(name) == kind
    assert source_of(name).type == kind


def test_paths_become_absolute_and_urls_stay() -> None:
    assert source_of("x/m.csv").model_dump()["uri"] == str(Path("x/m.csv").absolute())
    assert source_of(Path("x")) == FolderSource(path=str(Path("x").absolute()))
    assert source_of("~/x").model_dump()["path"] == str(Path("~/x").expanduser())


def test_a_type_overrides_the_looks_and_a_mapping_says_it_itself() -> None:
    assert source_of("https://h.org/export", kind="archive").type == "archive"
    bucket = source_of({"type": "bucket", "uri": "s3://b", "label_from_folder": True})
    assert bucket == BucketSource(uri="s3://b", label_from_folder=True)
    assert source_of(bucket) == bucket
    urls = ["https://h.org/1.jpg", "https://h.org/2.jpg"]
    assert source_of(urls) == UrlsSource(urls=urls)
    assert source_of(["x"]) == source_of("x")
    several = source_of(["x", Path("y/*.tar"), "s3://b"]).model_dump()["sources"]
    assert [source["type"] for source in several] == ["folder", "archive", "bucket"]


@pytest.mark.parametrize(
    ("value", "label", "reason"),
    [
        ("ftp://h/x", False, "a scheme that cannot be read"),
        ("a.csv", True, "label_from_folder: a source of type manifest has no such option"),
        ({"type": "manifest", "uri": "a.xls"}, False, "set format"),
        ({"uri": "a.csv"}, False, "type"),
        (["a", "ftp://h/x"], False, "a scheme that cannot be read"),
        (["a", "b.csv"], True, "label_from_folder: a source of type manifest has no such option"),
        ("shards/{0..9999999}.tar", False, "the limit is 100000"),
    ],
)
def test_what_cannot_be_a_source_is_said_in_one_line(
    value: object, label: bool, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        source_of(value, label_from_folder=label)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
