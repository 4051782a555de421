"""Reads the image files that rows name, with the means of this machine.

Rows come from a service, so a row may name any file of this machine. Only regular files that are
images are read into an export.
"""

import os
import re
import stat
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

import httpx

from clipfleet.client.exports.spool import RowDict
from clipfleet.common.http import uris

MAX_BYTES = 100_000_000  # of one image
TIMEOUT_S = 30.0

# How image files begin, and the ending that webdataset readers know for each.
_KINDS = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "tif"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "heic"),
)
_ARCHIVED = re.compile(r"\.(tar|tgz|txz|tbz2?|zip|tar\.[a-z0-9]+)#", re.IGNORECASE)


def has_own_address(uri: str) -> bool:
    """Whether a URI names a file: that of an upload, of an own vector or in an archive does not."""
    return (uri.startswith("/") or bool(uris.scheme(uri))) and not _ARCHIVED.search(uri)


class NotReadable(Exception):
    """The image of a row cannot be read; the text is the reason, without names."""


class Originals:
    """Reads images. Threads may share it."""

    def __init__(self) -> None:
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)

    def __enter__(self) -> "Originals":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def read(self, row: RowDict) -> tuple[bytes, str]:
        """The image of a row.

        Returns:
            Its bytes, and the ending for its name, such as "jpg".

        Raises:
            NotReadable: it cannot be read, is no image, or has another size than when it was
                indexed.
        """
        data = self._bytes(row["uri"])
        if row["bytes"] and len(data) != row["bytes"]:
            raise NotReadable("the file has another size than when it was indexed")
        ending = next((ending for start, ending in _KINDS if start.match(data)), None)
        if ending is None:
            raise NotReadable("the file is no image of a known format")
        return data, ending

    def _bytes(self, uri: str) -> bytes:
        if uri.startswith("upload:"):
            raise NotReadable("the image was uploaded, and the service does not give it back")
        if _ARCHIVED.search(uri):
            raise NotReadable("the image is in an archive, which an export does not open")
        if not has_own_address(uri):
            raise NotReadable("the image has no address: neither a whole path nor a URL")
        try:
            kind = uris.kind(uri)
            if kind == "web":
                return self._download(uris.require_web(uri))
            return _object(uri) if kind == "bucket" else _file(uris.local_path(uri))
        except uris.BadUri as error:
            raise NotReadable("its address is of a kind that cannot be read") from error

    def _download(self, url: str) -> bytes:
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    raise NotReadable(f"its server answers {response.status_code}")
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise NotReadable(_too_large())
                return bytes(data)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotReadable(f"its server does not answer ({type(error).__name__})") from error


def _file(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise NotReadable("there is no such file on this machine") from error
    except (OSError, ValueError) as error:
        raise NotReadable(_reason(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotReadable("it is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            return _limited(file)
        except OSError as error:
            raise NotReadable(_reason(error)) from error


def _object(url: str) -> bytes:
    """An object of a bucket, by fsspec and the credentials of this machine."""
    scheme = uris.scheme(url)
    package, extra = uris.BUCKETS[scheme]
    missing = f"buckets of {scheme}:// need {package} here: pip install 'clipfleet[{extra}]'"
    try:
        import fsspec
    except ImportError as error:
        raise NotReadable(missing) from error
    try:
        with fsspec.open(uris.require_bucket(url), "rb") as file:
            return _limited(file)
    except NotReadable:
        raise
    except ImportError as error:
        raise NotReadable(missing) from error
    except uris.BadUri:
        raise
    except FileNotFoundError as error:
        raise NotReadable("there is no such object") from error
    except Exception as error:  # the libraries of buckets raise errors of many kinds
        raise NotReadable(f"its bucket cannot be read ({type(error).__name__})") from error


def _limited(file: IO[bytes] | Any) -> bytes:
    data = bytes(file.read(MAX_BYTES + 1))
    if len(data) > MAX_BYTES:
        raise NotReadable(_too_large())
    return data


def _too_large() -> str:
    return f"it has more than {MAX_BYTES // 1_000_000} MB"


def _reason(error: Exception) -> str:
    with suppress(AttributeError):
        if error.strerror:  # type: ignore[attr-defined]
            return f"it cannot be read: {error.strerror}"  # type: ignore[attr-defined]
    return "it cannot be read"
