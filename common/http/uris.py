"""What a caller's URI names: a local path, something on the web, or an object in a bucket."""

import re
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

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
SCHEMES = ", ".join(f"{name}://" for name in BUCKETS)
ALLOWED = f"a path, file://, http(s):// or one of {SCHEMES}"


# Of S3, Google and Azure, the latter's with an account. No `:`, by which S3 knows an access point:
# that is a second name of a bucket.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")


class BadUri(Exception):
    """The URI names nothing that may be read.

    Attributes:
        problem: why, without the URI itself: "names no host". It goes where the URI may be the text
            of any file.
    """

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(f"{short(uri)} {problem}")
        self.problem = problem


def scheme(uri: str) -> str:
    """In small letters; "" for a path, relative or not."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def kind(uri: str) -> Kind:
    """BadUri where the scheme is none of ours."""
    name = scheme(uri)
    if name in ("", "file"):
        if "::" in uri and "://" in uri:
            raise BadUri(uri, f"chains several schemes; give {ALLOWED}")
        return "path"
    if name in ("http", "https"):
        return "web"
    if name in BUCKETS:
        return "bucket"
    raise BadUri(uri, f"has a scheme that cannot be read; give {ALLOWED}")


def local_path(uri: str) -> str:
    """The path of a `file://` URI, its escapes undone; a path as it is."""
    if scheme(uri) != "file":
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # file://[x
        raise BadUri(uri, "is no URL") from error
    if parts.netloc not in ("", "localhost"):
        raise BadUri(uri, "names another machine; a local file is file:///path")
    return printable(unquote_to_bytes(parts.path).decode("utf-8", "surrogateescape"))


def require_web(url: str) -> str:
    """The http(s) URL; BadUri where it cannot be one."""
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise BadUri(url, "is no URL") from error
    if not host:
        raise BadUri(url, "names no host")
    return url


def require_bucket(url: str) -> str:
    """The URL of a bucket, or of an object in one; BadUri where it cannot be one.

    `.` and `..` are refused as parts of a key, however they are written: some stores, and proxies
    in front of them, take such a key for another one.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket:
        raise BadUri(url, f"names no bucket: {scheme(url)}://BUCKET/...")
    if not _BUCKET_NAME.fullmatch(bucket):
        raise BadUri(url, "names a bucket by what cannot be its name")
    if any(unquote(part) in (".", "..") for part in key.split("/")):
        raise BadUri(url, "has a part . or .. in its key")
    return url


def name_of(uri: str) -> str:
    """Its last part in small letters, without a URL's query."""
    path = urlsplit(uri).path if scheme(uri) in ("http", "https") else uri
    return path.rstrip("/").rpartition("/")[2].lower()


def short(uri: str) -> str:
    return repr(uri[:200])
