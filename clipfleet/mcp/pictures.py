"""Images that an assistant names to search by.

An assistant can be talked into naming any file, so a file is sent only if it is below a folder that
the user gave and is an image. It is decoded and encoded again: nothing but its pixels is sent.
"""

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from clipfleet.client.payloads import image_url
from clipfleet.client.pillow import image_file

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # those that Pillow was built with
MAX_BYTES = 50_000_000  # of a file
MAX_PIXELS = 80_000_000  # of an image
EDGE = 1_024  # longest side of what is sent, in pixels; models see a few hundred
SCALED_MODES = ("CMYK", "L", "LA", "RGB", "RGBA", "YCbCr")
EXPECTED = "give an http(s) URL, a data URI, or the path of an image below --root"


class LocalImages:
    """Reads the images that an assistant may send.

    Args:
        roots: the folders whose files may be read. None: no file is read.

    Raises:
        ValueError: a root is not a folder.
    """

    def __init__(self, roots: Sequence[Path] = ()) -> None:
        self._roots = [_folder(root) for root in roots]

    def load(self, image: str) -> str | bytes:
        """The URL, or the bytes of a new file with the pixels of the image.

        Args:
            image: an http(s) URL, a data URI, a file URI, or a path. A relative path is below one
                of the roots.

        Raises:
            ValueError: the image is not valid, or may not be read.
        """
        if image_url(image):
            return image
        if image.lower().startswith("data:"):
            return pixels_of(_data_of(image), "the data URI")
        return pixels_of(self._file(image), image)

    def _file(self, name: str) -> bytes:
        path = Path(unquote(urlsplit(name).path) if name.lower().startswith("file:") else name)
        if not self._roots:
            raise ValueError(
                "image files of this machine are not read. Start `clipfleet mcp` with --root DIR "
                "to search by images below DIR, or give an http(s) URL or a data URI"
            )
        try:
            places = [(root / path.expanduser()).resolve() for root in self._roots]
            allowed = [
                place for place in places if any(place.is_relative_to(root) for root in self._roots)
            ]
            file = next((place for place in allowed if place.is_file()), None)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name[:200]!r} is not a path; {EXPECTED}") from error
        if not allowed:
            roots = ", ".join(map(str, self._roots))
            raise ValueError(f"{name[:200]} is not below --root: {roots}")
        if file is None:
            raise ValueError(f"there is no file {name[:200]} below --root")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name[:200]} has more than {MAX_BYTES:,} bytes")
        return file.read_bytes()


def pixels_of(data: bytes, name: str) -> bytes:
    """A new image file with the pixels of an image, at most `EDGE` pixels high and wide.

    Args:
        data: the bytes of the file.
        name: what an error calls it.

    Raises:
        ValueError: the file is not an image in one of `FORMATS`, is damaged, or is too large.
    """
    try:
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(data), formats=known)
        fits = image.width * image.height <= MAX_PIXELS
        if fits:
            image.draft(None, (EDGE, EDGE))
            image.load()
            if image.mode in SCALED_MODES:
                image.thumbnail((EDGE, EDGE))
            return image_file(image)
    except Exception as error:  # decoders raise errors of any class
        raise ValueError(f"{name[:200]} is not an image that can be read") from error
    raise ValueError(f"{name[:200]} has more than {MAX_PIXELS:,} pixels")


def _folder(root: Path) -> Path:
    folder = root.expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"--root {root} is not a folder")
    return folder


def _data_of(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError("a data URI has to begin with data:image/TYPE;base64,")
    if len(body) > MAX_BYTES:
        raise ValueError(f"the data URI has more than {MAX_BYTES:,} characters")
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the data URI is not base64") from error
