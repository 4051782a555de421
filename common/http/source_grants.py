"""Grants: the folders and buckets that may be indexed, and whether one contains another."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from clipfleet.common.http import uris

ROOTS_SETTING, BUCKETS_SETTING = "CLIPFLEET_SOURCE_ROOTS", "CLIPFLEET_SOURCE_BUCKETS"
# Schemes that are other names of the same store.
_SAME_STORE = {"gcs": "gs", "abfs": "az", "abfss": "az", "s3a": "s3"}

Paths = tuple[str, ...] | None
"""Folders, or URLs of buckets. None: all that the service may read."""


def _bucket_url(url: str) -> str:
    try:
        if uris.kind(url) != "bucket":
            raise ValueError(
                f"{uris.short(url)} is not a bucket; it must begin with {uris.SCHEMES}"
            )
        return uris.require_bucket(url)
    except uris.BadUri as error:
        raise ValueError(str(error)) from error


BucketUrl = Annotated[str, AfterValidator(_bucket_url)]


class SourceGrant(BaseModel):
    """What the API key of a job allows it to read, at the time of the request.

    A job may read only what the service may read, too.

    Attributes:
        roots: folders; None: all that the service may read.
        buckets: URLs of buckets; None: all that the service may read.
    """

    model_config = ConfigDict(frozen=True)

    roots: Paths = None
    buckets: Paths = None

    def and_only(self, other: "SourceGrant") -> "SourceGrant":
        """The grant of what both grants allow."""
        return SourceGrant(
            roots=in_both(self.roots, other.roots, contains_path),
            buckets=in_both(self.buckets, other.buckets, contains_bucket),
        )


def in_both(first: Paths, second: Paths, contains: Callable[[str, str], bool]) -> Paths:
    """The places that are contained in a place of each.

    Args:
        contains: whether its first argument contains the second.
    """
    if first is None or second is None:
        return second if first is None else first
    inner = [b for b in second if any(contains(a, b) for a in first)]
    inner += [a for a in first if any(contains(b, a) for b in second)]
    return tuple(dict.fromkeys(inner))


def contains_path(root: str, path: str) -> bool:
    """Whether a folder contains a path, compared part by part. Both are absolute and normalised."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def contains_bucket(allowed: str, url: str) -> bool:
    """Whether a bucket or prefix contains a URL.

    `s3://b/prod` contains itself and `s3://b/prod/x`, but not `s3://b/production`.
    """
    return BucketPlace.of(allowed).contains(BucketPlace.of(url))


@dataclass(frozen=True)
class BucketPlace:
    """A bucket, or a prefix or an object in it. Schemes of the same store are equal.

    Attributes:
        store: the scheme.
        bucket: the name of the bucket.
        parts: the parts of the key, between slashes.
    """

    store: str
    bucket: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, url: str) -> "BucketPlace":
        """The place with this URL, which must be valid."""
        name = uris.scheme(url)
        bucket, _, key = url.partition("://")[2].partition("/")
        parts = tuple(key.rstrip("/").split("/")) if key.rstrip("/") else ()
        return cls(_SAME_STORE.get(name, name), bucket.partition("@")[0], parts)

    def contains(self, other: "BucketPlace") -> bool:
        """Whether the other place is this one, or is in it."""
        same = (self.store, self.bucket) == (other.store, other.bucket)
        return same and other.parts[: len(self.parts)] == self.parts

    @property
    def compact(self) -> "BucketPlace":
        """The place without empty parts in its key, which some stores ignore."""
        return BucketPlace(self.store, self.bucket, tuple(filter(None, self.parts)))
