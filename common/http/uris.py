"""URIs in requests: local paths, addresses on the web, and objects in buckets."""

import re
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from clipfleet.common.identity import printable

# Schemes of buckets, with the package and the extra of clipfleet that read each. All other schemes
# of fsspec (local, ftp, ssh, github, chains such as simplecache::...) are refused.
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


# Names in S3, Google and Azure, the last with an account. Without `:`, which would allow an access
# point of S3: that is a second name of a bucket.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")


class BadUri(Exception):
    """The URI is not valid, or has a scheme that is not supported.

    Args:
        uri: the URI.
        problem: why, as the rest of a sentence: "names no host".

    Attributes:
        problem: why, without the URI: in the rows of a manifest, the URI may be the text of any
            file.
    """

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(f"{short(uri)} {problem}")
        self.problem = problem


def scheme(uri: str) -> str:
    """The scheme of a URI in small letters; "" for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def kind(uri: str) -> Kind:
    """The kind of a URI.

    Raises:
        BadUri: its scheme is not supported.
    """
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
    """The path in a `file://` URI, unquoted. A path is returned unchanged.

    Raises:
        BadUri: the URI is not valid, or names another machine.
    """
    if scheme(uri) != "file":
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # file://[x
        raise BadUri(uri, "is not a URL") from error
    if parts.netloc not in ("", "localhost"):
        raise BadUri(uri, "names another machine; a local file is file:///path")
    return printable(unquote_to_bytes(parts.path).decode("utf-8", "surrogateescape"))


def require_web(url: str) -> str:
    """Check an http(s) URL, and return it.

    Raises:
        BadUri: it is not valid.
    """
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise BadUri(url, "is not a URL") from error
    if not host:
        raise BadUri(url, "names no host")
    return url


def require_bucket(url: str) -> str:
    """Check the URL of a bucket or of an object, and return it.

    `.` and `..` are refused as parts of a key, however they are quoted: some stores, and proxies in
    front of them, read another object for such a key.

    Raises:
        BadUri: it is not valid.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket:
        raise BadUri(url, f"names no bucket: {scheme(url)}://BUCKET/...")
    if not _BUCKET_NAME.fullmatch(bucket):
        raise BadUri(url, "has a bucket name that is not valid")
    if any(unquote(part) in (".", "..") for part in key.split("/")):
        raise BadUri(url, "has a part . or .. in its key")
    if "?versionId=" in key:
        raise BadUri(
            url, "names a version of an object, which is not supported; leave ?versionId= out"
        )
    return url


def name_of(uri: str) -> str:
    """The last part of the path of a URI in small letters, without a query."""
    path = urlsplit(uri).path if scheme(uri) in ("http", "https") else uri
    return path.rstrip("/").rpartition("/")[2].lower()


def short(uri: str) -> str:
    """The beginning of a URI in quotes, for messages."""
    return repr(uri[:200])
