"""What lies beside the picture in a file (EXIF, comments, profiles) never costs the picture."""

import io
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from support.images import decoded, encoded, halves, near, png_chunk, refused

ORIENTATION = 0x0112


def exif(orientation: int = 6, order: str = "<") -> bytes:
    """EXIF with an orientation and nothing else, as in JPEG."""
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HIH", 42, 8, 1)
    entry = struct.pack(order + "HHIHH", ORIENTATION, 3, 1, orientation, 0)
    return b"Exif\0\0" + head + entry + bytes(4)


DAMAGED = [
    b"Exif\0\0",
    b"Exif\0\0XXXXnot a TIFF header at all",
    b"Exif\0\0II*\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 4,
    b"b'Exif\\x00\\x00MM\\x00*'",
    exif()[:-9],
    exif()[:20],
    bytes(40),
    b"x" * 40,
    exif(0),
    exif(9),
    exif(65_535),
    exif().replace(struct.pack("<HHI", ORIENTATION, 3, 1), struct.pack("<HHI", ORIENTATION, 2, 3)),
]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_damaged_exif_does_not_cost_the_photo(kind: str, number: int) -> None:
    data = with_exif(kind, DAMAGED[number])
    seen = decoded(data)
    assert (seen.width, seen.height) == (96, 64)
    assert near(seen.image, (8, 8), (255, 0, 0))
    assert near(seen.image, (88, 8), (0, 0, 255))


def with_exif(kind: str, body: bytes) -> bytes:
    image = halves(96, 64)
    if kind == "JPEG":
        plain = encoded(image, kind, quality=95, dpi=(72, 72))
        assert plain[6:10] == b"JFIF"
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        return plain[:20] + segment + plain[20:]
    if kind == "PNG":
        plain = encoded(image, kind)
        return plain[:33] + png_chunk(b"eXIf", body.removeprefix(b"Exif\0\0")) + plain[33:]
    if kind == "WEBP":
        right = encoded(image, kind, quality=95, exif=exif(1))
        at = right.index(b"EXIF")
        chunk = b"EXIF" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
        data = right[:at] + chunk
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    whole = Image.Exif()
    whole[270] = "X" * 1_200
    data = encoded(image, kind, quality=95, exif=whole.tobytes())
    end = data.index(b"X" * 1_200) + 1_200
    start = data.rindex(whole.tobytes()[6:14], 0, end)
    damaged = body.removeprefix(b"Exif\0\0")
    return data[:start] + damaged + bytes(end - start - len(damaged)) + data[end:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_in_whole_exif_turns_the_photo(kind: str, order: str) -> None:
    seen = decoded(encoded(halves(96, 64), kind, quality=95, exif=exif(6, order)))
    assert (seen.width, seen.height) == (64, 96)
    assert near(seen.image, (8, 8), (255, 0, 0))
    assert near(seen.image, (8, 88), (0, 0, 255))


def test_exif_after_the_pixels_of_a_png_turns_it_too() -> None:
    plain = encoded(halves(96, 64), "PNG")
    at = len(plain) - 12
    seen = decoded(plain[:at] + png_chunk(b"eXIf", exif()[6:]) + plain[at:])
    assert (seen.width, seen.height) == (64, 96)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_orientation_in_xmp_alone_does_not_turn_the_photo(kind: str) -> None:
    """As in browsers."""
    options: dict[str, object] = {"xmp": XMP}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options = {"pnginfo": info}
    if kind == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    data = encoded(halves(96, 64), kind, **options)
    assert b"tiff:Orientation" in data
    seen = decoded(data)
    assert (seen.width, seen.height) == (96, 64)
    assert near(seen.image, (8, 8), (255, 0, 0))


def test_exif_as_imagemagick_writes_it_into_a_png_turns_it() -> None:
    plain = encoded(halves(96, 64), "PNG")
    text = b"\nexif\n      %d\n" % len(exif()) + exif().hex().encode() + b"\n"
    for body in (
        (b"tEXt", b"Raw profile type exif\0" + text),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
    ):
        seen = decoded(plain[:33] + png_chunk(*body) + plain[33:])
        assert (seen.width, seen.height) == (64, 96)
    damaged = png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 5\nno numbers\n")
    assert decoded(plain[:33] + damaged + plain[33:]).width == 96


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFIF\0\1"),
        (0xE0, b"JFIF\0"),
        (0xE1, b"Exif\0\0II*"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xFE, b""),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_damaged_segment_beside_the_pixels_does_not_cost_the_jpeg(
    segment: tuple[int, bytes], first: bool
) -> None:
    plain = encoded(halves(96, 64), "JPEG", quality=95, exif=exif(6))
    marker, body = segment
    damaged = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
    at = 2 if first else plain.index(b"\xff\xdb")
    seen = decoded(plain[:at] + damaged + plain[at:])
    assert sorted((seen.width, seen.height)) == [64, 96]
    assert near(seen.image, (8, 8), (255, 0, 0))
    if marker != 0xE1:
        assert (seen.width, seen.height) == (64, 96)


def test_a_cmyk_jpeg_with_a_damaged_segment_keeps_its_colours() -> None:
    plain = encoded(halves(96, 64).convert("CMYK"), "JPEG", quality=95)
    seen = decoded(plain[:2] + b"\xff\xe0\0\x08JFIF\0\1" + plain[2:])
    assert near(seen.image, (8, 8), (255, 0, 0))


LARGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"workflow\0\0" + LARGE),
        (b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
        (b"iCCP", b"profile\0\0" + LARGE),
        (b"tEXt", b"prompt\0" + bytes(3_000_000)),
        (b"zTXt", b"Raw profile type exif\0\0" + LARGE),
        (b"zTXt", b"damaged\0\0not packed at all"),
        (b"iCCP", b"no end"),
        (b"iCCP", b"profile\0\7"),
        (b"iTXt", b""),
        (b"pHYs", b"short"),
        (b"gAMA", b""),
        (b"cHRM", b"1"),
        (b"sRGB", b""),
        (b"acTL", b"damaged!"),
        (b"fcTL", b"damaged!"),
        (b"eXIf", b""),
        (b"vpAg", b"private"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_large_or_damaged_part_beside_the_pixels_does_not_cost_the_png(
    chunk: tuple[bytes, bytes], late: bool
) -> None:
    plain = encoded(halves(96, 64), "PNG")
    at = len(plain) - 12 if late else 33
    seen = decoded(plain[:at] + png_chunk(*chunk) + plain[at:])
    assert near(seen.image, (8, 8), (255, 0, 0))
    assert near(seen.image, (88, 8), (0, 0, 255))


def test_many_large_comments_do_not_cost_the_png() -> None:
    plain = encoded(halves(96, 64), "PNG")
    comments = b"".join(png_chunk(b"zTXt", b"a\0\0" + LARGE) for _ in range(100))
    assert decoded(plain[:33] + comments + plain[33:]).width == 96


@pytest.mark.parametrize("kind", [b"pHYs", b"tEXt", b"tIME", b"iCCP", b"eXIf", b"tRNS"])
def test_a_wrong_checksum_of_a_part_that_may_be_left_out_is_ignored(kind: bytes) -> None:
    """As in browsers, which leave the part out."""
    plain = encoded(halves(96, 64), "PNG")
    body = exif()[6:] if kind == b"eXIf" else b"\0\xff\0\0\0\0"
    chunk = bytearray(png_chunk(kind, body))
    chunk[-1] ^= 1
    seen = decoded(plain[:33] + bytes(chunk) + plain[33:])
    assert (seen.width, seen.height) == (96, 64)
    assert near(seen.image, (8, 8), (255, 0, 0))


def test_a_wrong_checksum_of_the_header_is_damage_and_called_so() -> None:
    plain = bytearray(encoded(halves(96, 64), "PNG"))
    plain[32] ^= 1
    assert "the PNG is damaged" in refused(bytes(plain))


def test_the_first_image_of_an_animated_png_is_still_the_first() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert near(decoded(data).image, (3, 3), (255, 0, 0))
    assert Image.open(io.BytesIO(data)).is_animated  # type: ignore[attr-defined]
