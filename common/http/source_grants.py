"""Folders and buckets that may be indexed, and how one contains the other. Needs pydantic only."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from clipfleet.common.http import uris

ROOTS_SETTING, BUCKETS_SETTING = "CLIPFLEET_SOURCE_ROOTS", "CLIPFLEET_SOURCE_BUCKETS"
# Of one store, by whichever of its names.
_SAME_STORE = {"gcs": "gs", "abfs": "az", "abfss": "az", "s3a": "s3"}

Paths = tuple[str, ...] | None
"""None: all that the service may read."""


def _bucket_url(url: str) -> str:
    try:
        if uris.kind(url) != "bucket":
            raise ValueError(f"{uris.short(url)} is no bucket; one begins with {uris.SCHEMES}")
        return uris.require_bucket(url)
    except uris.BadUri as error:
        raise ValueError(str(error)) from error


BucketUrl = Annotated[str, AfterValidator(_bucket_url)]


class SourceGrant(BaseModel):
    """What a job's API key let it read, at the time of the request. It comes on top of what the
    service may read. None: no less than that."""

    model_config = ConfigDict(frozen=True)

    roots: Paths = None
    buckets: Paths = None

    def and_only(self, other: "SourceGrant") -> "SourceGrant":
        """What both allow."""
        return SourceGrant(
            roots=in_both(self.roots, other.roots, contains_path),
            buckets=in_both(self.buckets, other.buckets, contains_bucket),
        )


def in_both(one: Paths, other: Paths, contains: Callable[[str, str], bool]) -> Paths:
    """What lies in a place of each."""
    if one is None or other is None:
        return other if one is None else one
    inner = [b for b in other if any(contains(a, b) for a in one)]
    inner += [a for a in one if any(contains(b, a) for b in other)]
    return tuple(dict.fromkeys(inner))


def contains_path(root: str, path: str) -> bool:
    """Both are absolute and normal; part by part."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def contains_bucket(allowed: str, url: str) -> bool:
    """`s3://b/prod` contains itself and `s3://b/prod/x`, not `s3://b/production`."""
    return BucketPlace.of(allowed).contains(BucketPlace.of(url))


@dataclass(frozen=True)
class BucketPlace:
    """A bucket, or a prefix or an object in it. Two schemes of one store are one."""

    store: str
    bucket: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, url: str) -> "BucketPlace":
        name = uris.scheme(url)
        bucket, _, key = url.partition("://")[2].partition("/")
        parts = tuple(key.rstrip("/").split("/")) if key.rstrip("/") else ()
        return cls(_SAME_STORE.get(name, name), bucket.partition("@")[0], parts)

    def contains(self, other: "BucketPlace") -> bool:
        same = (self.store, self.bucket) == (other.store, other.bucket)
        return same and other.parts[: len(self.parts)] == self.parts

    @property
    def compact(self) -> "BucketPlace":
        """Without empty parts, which some stores drop."""
        return BucketPlace(self.store, self.bucket, tuple(filter(None, self.parts)))
