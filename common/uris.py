"""What a caller's URI names: a local path, something on the web, or an object in a bucket."""

import re
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from clipfleet.common.identity import printable

# Buckets that may be read, and the package (also our extra) that reads each. Everything else that
# fsspec knows (local, ftp, ssh, github, chains like simplecache::...) stays out.
BUCKETS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "abfs": ("adlfs", "az"),
}
Kind = Literal["path", "web", "bucket"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
ALLOWED = f"a path, file://, http(s):// or one of {', '.join(f'{name}://' for name in BUCKETS)}"


class BadUri(Exception):
    """The URI names nothing that may be read; the text says why."""


def scheme(uri: str) -> str:
    """In small letters; "" for a path, relative or not."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def kind(uri: str) -> Kind:
    """BadUri where the scheme is none of ours."""
    name = scheme(uri)
    if name in ("", "file"):
        if "::" in uri and "://" in uri:
            raise BadUri(f"{short(uri)} chains several schemes; give {ALLOWED}")
        return "path"
    if name in ("http", "https"):
        return "web"
    if name in BUCKETS:
        return "bucket"
    raise BadUri(f"{name}:// cannot be read; give {ALLOWED}")


def local_path(uri: str) -> str:
    """The path of a `file://` URI, its escapes undone; a path as it is."""
    if scheme(uri) != "file":
        return uri
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise BadUri(f"{short(uri)} names another machine; a local file is file:///path")
    return printable(unquote_to_bytes(parts.path).decode("utf-8", "surrogateescape"))


def web_problem(url: str) -> str | None:
    """Why an http(s) URL cannot be one; None when it can."""
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        return f"{short(url)} is no URL: {error}"
    return None if host else f"{short(url)} names no host"


def bucket_problem(url: str) -> str | None:
    name, _, rest = url.partition("://")
    return None if rest.partition("/")[0] else f"{short(url)} names no bucket: {name}://BUCKET/..."


def name_of(uri: str) -> str:
    """Its last part in small letters, without a URL's query."""
    path = urlsplit(uri).path if scheme(uri) in ("http", "https") else uri
    return path.rstrip("/").rpartition("/")[2].lower()


def short(uri: str) -> str:
    return repr(uri[:200])
