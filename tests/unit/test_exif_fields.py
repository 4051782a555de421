"""With `exif`, a job adds to the metadata when, with what and where a photo was taken."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2
from typer.testing import CliRunner

from clipfleet.cli import app
from clipfleet.common.imaging.exif import exif_fields
from clipfleet.testing import MemoryService
from support.images import decoded, encoded, halves
from support.worker_harness import Workplace

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
FIELDS = {
    "taken_at": "2024-05-17T18:03:59+02:00",
    "camera": "Canon EOS R6",
    "latitude": -33.856784,
    "longitude": 151.215297,
    "altitude": 12.5,
}


def exif(
    main: dict[int, Any] | None = None,
    photo: dict[int, Any] | None = None,
    gps: dict[int, Any] | None = None,
) -> Image.Exif:
    """EXIF with FIELDS, but for other values of single tags."""
    tags = Image.Exif()
    tags.update({0x010F: "Canon", 0x0110: "Canon EOS R6"} | (main or {}))
    taken = {0x9003: "2024:05:17 18:03:59", 0x9011: "+02:00"}
    tags.get_ifd(EXIF_IFD).update(taken | (photo or {}))
    place = {1: "S", 2: (33.0, 51.0, 24.4224), 3: "E", 4: (151.0, 12.0, 55.0692), 5: b"\0", 6: 12.5}
    tags.get_ifd(GPS_IFD).update(place | (gps or {}))
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_each_format_gives_the_fields_of_its_exif(kind: str) -> None:
    tags = exif()
    options: dict[str, Any] = {"exif": tags}
    if kind == "TIFF":
        info = ImageFileDirectory_v2()
        info.update(tags)
        for place in (EXIF_IFD, GPS_IFD):
            info[place] = tags.get_ifd(place)
        options = {"tiffinfo": info}
    data = encoded(halves(64, 48), kind, **options)
    assert exif_fields(decoded(data).exif) == FIELDS


def test_an_image_without_exif_gives_none() -> None:
    for kind in ("JPEG", "GIF", "BMP", "TIFF"):
        assert exif_fields(decoded(encoded(halves(64, 48), kind)).exif) == {}


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"photo": {0x9011: "summer"}}, {"taken_at": "2024-05-17T18:03:59"}),
        ({"photo": {0x9003: "0000:00:00 00:00:00"}}, {"taken_at": None}),
        ({"photo": {0x9003: "2024:02:30 10:00:00"}}, {"taken_at": None}),
        (
            {"photo": {0x9003: "    :  :     :  :  ", 0x9004: "2001:01:01 00:00:00"}},
            {"taken_at": "2001-01-01T00:00:00"},
        ),
        ({"photo": {0x9003: 7}}, {"taken_at": None}),
        ({"main": {0x010F: "Apple", 0x0110: "iPhone 15"}}, {"camera": "Apple iPhone 15"}),
        ({"main": {0x010F: "", 0x0110: " NIKON  D90 \0 "}}, {"camera": "NIKON D90"}),
        ({"main": {0x010F: "", 0x0110: ""}}, {"camera": None}),
        ({"main": {0x010F: "", 0x0110: "x" * 900}}, {"camera": "x" * 200}),
        ({"gps": {1: "N", 3: "W"}}, {"latitude": 33.856784, "longitude": -151.215297}),
        ({"gps": {2: (91.0, 0.0, 0.0)}}, {"latitude": None, "longitude": None}),
        ({"gps": {4: (1.0, 2.0)}}, {"latitude": None, "longitude": None}),
        (
            {"gps": {2: (IFDRational(0, 0), 0.0, 0.0)}},
            {"latitude": None, "longitude": None},
        ),
        ({"gps": {5: b"\1"}}, {"altitude": -12.5}),
        ({"gps": {6: IFDRational(1, 0)}}, {"altitude": None}),
    ],
)
def test_what_is_impossible_is_left_out(changes: dict[str, Any], right: dict[str, Any]) -> None:
    seen = exif_fields(exif(**changes).tobytes())
    expected = {name: value for name, value in (FIELDS | right).items() if value is not None}
    assert seen == expected


def test_damage_costs_only_its_own_fields() -> None:
    whole = exif().tobytes()
    for end in range(0, len(whole), 7):
        assert exif_fields(whole[:end]).items() <= FIELDS.items()
    place = whole.index(b"2024:05:17")
    no_date = whole[:place] + b"\xff" * 10 + whole[place + 10 :]
    assert exif_fields(no_date).keys() == FIELDS.keys() - {"taken_at"}


@pytest.fixture
def photo(workplace: Workplace) -> Path:
    path = workplace.folder / "a.jpg"
    path.write_bytes(encoded(halves(64, 48), "JPEG", exif=exif()))
    return path


def test_a_job_adds_the_fields_to_the_metadata_of_its_images(
    workplace: Workplace, photo: Path
) -> None:
    mine = {"camera": "my old one", "altitude": None, "year": 1999}
    items = [
        workplace.item(photo),
        workplace.item(photo, id="mine", metadata=mine),
        workplace.photo("plain.jpg", metadata={"year": 7}),
    ]
    assert workplace.run(items, exif=True).state == "succeeded"
    assert metadata(workplace, "a.jpg") == FIELDS
    assert metadata(workplace, "mine") == FIELDS | {"camera": "my old one", "year": 1999}
    assert metadata(workplace, "plain.jpg") == {"year": 7}


def test_a_job_without_the_option_adds_nothing_and_one_with_it_does_later(
    workplace: Workplace, photo: Path
) -> None:
    items = [workplace.item(photo)]
    workplace.run(items)
    assert metadata(workplace, "a.jpg") == {}
    assert workplace.run(items, "two", exif=True).done == 1
    assert metadata(workplace, "a.jpg") == FIELDS
    assert workplace.run(items, "three", exif=True).skipped == 1


def test_a_field_that_does_not_fit_is_left_out_and_the_image_is_indexed(
    workplace: Workplace, photo: Path
) -> None:
    workplace.collection.fields["camera"] = "int"  # in the collection that the job finds
    item = workplace.item(photo)
    assert workplace.run([item], exif=True).done == 1
    assert metadata(workplace, "a.jpg").keys() == FIELDS.keys() - {"camera"}


def test_metadata_that_would_be_too_large_stays_without_the_fields(
    workplace: Workplace, photo: Path
) -> None:
    limit = workplace.settings.limits.metadata_bytes
    mine = {"text": "x" * (limit - 20)}
    item = workplace.item(photo, metadata=mine)
    assert workplace.run([item], exif=True).done == 1
    assert metadata(workplace, "a.jpg") == mine


def test_a_command_with_exif_asks_for_the_fields_of_folders_and_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(halves(64, 48), "JPEG", exif=exif()))
    with MemoryService() as service, service.client() as client:
        for name, source, option in (
            ("plain", tmp_path, []),
            ("folder", tmp_path, ["--exif"]),
            ("file", path, ["--exif"]),
        ):
            command = ["index", str(source), "--collection", name, "--url", service.url, *option]
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 0, done.output
            (image_id,) = client.iter_ids(name)
            assert client.image(name, image_id).metadata == (FIELDS if option else {})


def metadata(workplace: Workplace, image_id: str) -> dict[str, Any]:
    row = workplace.row(image_id)
    assert row
    return row.metadata
