"""What of this machine an assistant can send: pixels of images below the folders of the user."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from clipfleet.mcp import pictures
from clipfleet.mcp.pictures import LocalImages
from support.images import encoded, halves, png_chunk

SECRET = b"-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "rome").mkdir(parents=True)
    (folder / "rome" / "1.png").write_bytes(encoded(halves(40, 20), "PNG"))
    (tmp_path / "outside.png").write_bytes(encoded(halves(40, 20), "PNG"))
    (tmp_path / "id_rsa").write_bytes(SECRET)
    return folder


def loaded(root: Path, name: str) -> Image.Image:
    data = LocalImages([root]).load(name)
    assert isinstance(data, bytes)
    return Image.open(io.BytesIO(data)).convert("RGB")


def refused(images: LocalImages, name: str) -> str:
    with pytest.raises(ValueError, match=r"\w") as error:
        images.load(name)
    assert SECRET.decode() not in str(error.value)
    return str(error.value)


def test_a_file_is_found_by_its_path_in_any_form(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    path = root / "rome" / "1.png"
    names = ("rome/1.png", str(path), path.as_uri(), "~/pictures/rome/1.png", "rome/../rome/1.png")
    assert [loaded(root, name).size for name in names] == [(40, 20)] * 5


def test_each_of_several_folders_counts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "2.png").write_bytes(encoded(halves(30, 30), "PNG"))
    images = LocalImages([tmp_path / "more", root])
    assert images.load("rome/1.png") != images.load("2.png")


def test_without_a_root_no_file_is_read_and_the_option_is_named(root: Path) -> None:
    assert "--root" in refused(LocalImages(), str(root / "rome" / "1.png"))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "../id_rsa",
        "/etc/passwd",
        "rome/link.png",
        "linked/outside.png",
        "..",
        "~",
    ],
)
def test_a_file_outside_is_refused_whatever_it_is(root: Path, name: str) -> None:
    (root / "rome" / "link.png").symlink_to(root.parent / "outside.png")
    (root / "linked").symlink_to(root.parent)
    reason = refused(LocalImages([root]), name)
    assert "is not below --root" in reason
    assert str(root) in reason
    assert reason == refused(LocalImages([root]), name.replace("id_rsa", "gone")).replace(
        "gone", "id_rsa"
    )


def test_a_file_that_is_no_image_is_not_sent(root: Path) -> None:
    (root / "id_rsa").write_bytes(SECRET)
    (root / "key.png").write_bytes(encoded(halves(9, 9), "PNG")[:40])
    (root / "text.ppm").write_bytes(b"P3 1 1 255 1 2 3")
    for name in ("id_rsa", "key.png", "text.ppm"):
        assert "is not an image that can be read" in refused(LocalImages([root]), name)


@pytest.mark.parametrize("name", ["rome", "rome/2.png", "a\0b", "x" * 5_000, "pipe"])
def test_what_is_no_file_is_named(root: Path, name: str) -> None:
    os.mkfifo(root / "pipe")
    assert len(refused(LocalImages([root]), name)) < 400


def test_nothing_but_pixels_is_sent(root: Path) -> None:
    """A PNG with a comment and with bytes after its end, a JPEG with EXIF: what a user may hide."""
    plain = encoded(halves(40, 20), "PNG")
    text = png_chunk(b"tEXt", b"Comment\0" + SECRET)
    (root / "a.png").write_bytes(plain[:33] + text + plain[33:] + SECRET)
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    (root / "b.jpg").write_bytes(encoded(halves(40, 20), "JPEG", exif=exif, comment=SECRET))
    for name in ("a.png", "b.jpg"):
        assert SECRET in (root / name).read_bytes()
        sent = LocalImages([root]).load(name)
        assert isinstance(sent, bytes)
        assert SECRET not in sent


def test_a_photo_is_sent_small_and_upright(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (root / "a.jpg").write_bytes(encoded(halves(4_000, 2_000), "JPEG", exif=exif))
    image = LocalImages([root]).load("a.jpg")
    assert isinstance(image, bytes)
    seen = Image.open(io.BytesIO(image))
    assert seen.size == (1_024, 512)
    assert seen.getexif()[0x0112] == 3


def test_too_large_files_and_images_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 500)
    assert "500 pixels" in refused(LocalImages([root]), "rome/1.png")
    monkeypatch.setattr(pictures, "MAX_BYTES", 50)
    assert "50 bytes" in refused(LocalImages([root]), "rome/1.png")


def test_urls_are_left_to_the_service() -> None:
    assert LocalImages().load("https://example.org/a.jpg") == "https://example.org/a.jpg"


def test_a_data_uri_needs_no_root_and_is_decoded_too() -> None:
    body = base64.b64encode(encoded(halves(40, 20), "PNG")).decode()
    sent = LocalImages().load(f"data:image/png;base64,{body}")
    assert isinstance(sent, bytes)
    assert Image.open(io.BytesIO(sent)).size == (40, 20)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:image/png,abc", "has to begin with data:image/TYPE;base64,"),
        ("data:image/png;base64", "has to begin with"),
        ("data:image/png;base64,a?b", "not base64"),
        ("data:image/png;base64," + base64.b64encode(SECRET).decode(), "not an image"),
    ],
)
def test_a_bad_data_uri_is_refused_in_words(uri: str, reason: str) -> None:
    assert reason in refused(LocalImages(), uri)


def test_a_root_has_to_be_a_folder(root: Path) -> None:
    for path in (root / "gone", root / "rome" / "1.png"):
        with pytest.raises(ValueError, match="is not a folder"):
            LocalImages([path])
