"""What jobs may read: folders and buckets that are allowed, and never the service's own data."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import Forbidden, Unreadable
from clipfleet.common.http import uris
from clipfleet.common.http.source_grants import (
    BUCKETS_SETTING,
    ROOTS_SETTING,
    BucketPlace,
    Paths,
    SourceGrant,
    contains_path,
)
from clipfleet.common.settings import Settings

# Files that are views of the kernel's, of processes among others: their root, their open files.
_OF_THE_KERNEL = ("/proc", "/sys")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class SourceRefused(Forbidden):
    """A source may not be read.

    Attributes:
        problem: why, without what was asked for: that may be the text of any file.
    """

    def __init__(self, asked: str, problem: str) -> None:
        super().__init__(f"{asked[:200]!r} {problem}")
        self.problem = problem


class OwnData(SourceRefused):
    """It is no one's to index: the blob store, say."""

    def __init__(self, asked: str) -> None:
        super().__init__(asked, "belongs to the service or the system, and is never indexed")


def grant_of_service(settings: Settings) -> SourceGrant:
    """What the service may read. Unset, its buckets are all that there are for the user of this
    machine, and none once others may ask: with API keys, or open to everybody."""
    buckets = settings.source_buckets
    if buckets is None and (settings.keys_file or settings.open):
        buckets = ()
    roots = tuple(os.path.normpath(root) for root in settings.source_roots)
    return SourceGrant(roots=roots, buckets=buckets)


@dataclass(frozen=True)
class OwnPlaces:
    """Where the service keeps its own data.

    Attributes:
        paths: files and folders.
        bucket: the blob store, if it lies in one.
    """

    paths: tuple[str, ...] = ()
    bucket: BucketPlace | None = None

    @classmethod
    def of(cls, settings: Settings, blobs: Blobs) -> "OwnPlaces":
        paths = [*map(str, settings.private_paths), settings.keys_file, blobs.folder]
        bucket = BucketPlace.of(blobs.url).compact if blobs.url else None
        return cls((*_OF_THE_KERNEL, *(os.path.abspath(path) for path in paths if path)), bucket)


class SourceAccess:
    """What one job may read.

    Args:
        service: what the service may read.
        own: what it may never read.
        grant: what this job may read.
    """

    def __init__(
        self, service: SourceGrant, own: OwnPlaces, grant: SourceGrant | None = None
    ) -> None:
        self._service, self._own, self._grant = service, own, grant or SourceGrant()
        self._foreign = ""  # the folder that was last seen to be none of our own

    def within(self, grant: SourceGrant | None) -> "SourceAccess":
        """The same for a job with this grant. Links and mounts are looked at anew."""
        return SourceAccess(self._service, self._own, grant)

    def require_path(self, path: str) -> str:
        """The path made absolute and normal, by its letters alone: nothing is read.

        Raises:
            SourceRefused: it lies outside the roots, or is the service's own.
        """
        normal = os.path.normpath(path)
        if not os.path.isabs(normal):
            raise SourceRefused(path, "is no absolute path")
        roots = self._allowed.roots
        if roots is not None and not _any_contains(roots, normal):
            raise SourceRefused(path, f"lies outside {self._allowed_roots(roots)}")
        if _any_contains(self._own.paths, normal):
            raise OwnData(path)
        return normal

    def require_bucket(self, url: str) -> str:
        """The URL of a bucket, a prefix or an object.

        Raises:
            SourceRefused: it lies outside the buckets that are allowed, or is the service's own.
            BadUri: it is no such URL.
        """
        place = BucketPlace.of(uris.require_bucket(url))
        allowed = self._allowed.buckets
        if allowed is not None and not any(BucketPlace.of(a).contains(place) for a in allowed):
            raise SourceRefused(url, f"lies outside {self._allowed_buckets(allowed)}")
        if self._own.bucket and self._own.bucket.contains(place.compact):
            raise OwnData(url)
        return url

    def is_own_object(self, url: str) -> bool:
        return bool(self._own.bucket and self._own.bucket.contains(BucketPlace.of(url).compact))

    def open_file(self, path: str) -> int:
        """The descriptor of a file, which need not be a regular one; it does not block.

        The path's links are followed first, and none when it is opened. Then it is asked which file
        was opened: so a link that is swapped in between leads nowhere.

        Raises:
            SourceRefused: it lies elsewhere.
            OSError: it cannot be opened.
        """
        return self._open(path, _FLAGS | os.O_NONBLOCK)

    def open_folder(self, path: str) -> int:
        """The descriptor of a folder; otherwise as `open_file`."""
        return self._open(path, _FLAGS | os.O_DIRECTORY)

    def require_real(self, path: str) -> str:
        """The path with every link followed; SourceRefused when that leads elsewhere."""
        real = os.path.realpath(path)
        self._require_inside(real, path)
        return real

    def _open(self, path: str, flags: int) -> int:
        descriptor = os.open(self.require_real(path), flags)
        try:
            self._require_inside(_path_of(descriptor), path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_inside(self, real: str, asked: str) -> None:
        for roots in self._real_roots:
            if not _any_contains(roots, real):
                raise SourceRefused(asked, "leads outside the folders that may be indexed")
        if _any_contains(self._own_real, real) or self._lies_in_own(real):
            raise OwnData(asked)

    def _lies_in_own(self, real: str) -> bool:
        """Also by another name of one of our folders: a mount, or other capitals where a file
        system takes them for the same."""
        if set(_ids([real])) & self._own_ids:
            return True
        folder = above = os.path.dirname(real)
        while above != self._foreign:
            if set(_ids([above])) & self._own_ids:
                return True
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)
        self._foreign = folder
        return False

    @cached_property
    def _allowed(self) -> SourceGrant:
        return self._service.and_only(self._grant)

    @cached_property
    def _real_roots(self) -> list[list[str]]:
        """A path lies in one of each: a root of a key may be a link that leads elsewhere."""
        every = (self._service.roots, self._grant.roots)
        return [[os.path.realpath(root) for root in roots] for roots in every if roots is not None]

    @cached_property
    def _own_real(self) -> list[str]:
        return [os.path.realpath(path) for path in self._own.paths]

    @cached_property
    def _own_ids(self) -> set[tuple[int, int]]:
        return set(_ids(self._own_real))

    def _allowed_roots(self, allowed: Sequence[str]) -> str:
        said = ", ".join(allowed) or "none is configured"
        where = _say_where(ROOTS_SETTING, "roots", self._grant.roots)
        return f"the folders that may be indexed ({said}); {where}"

    def _allowed_buckets(self, allowed: Sequence[str]) -> str:
        said = ", ".join(allowed) or "none is configured"
        where = _say_where(BUCKETS_SETTING, "buckets", self._grant.buckets)
        return f"the buckets that may be indexed ({said}); {where}"


def _say_where(setting: str, word: str, of_key: Paths) -> str:
    """Which setting changes it."""
    if of_key is None:
        return f"{setting} lists them"
    return f"{setting} lists them, and so may the `{word}` of the API key"


def access_of(settings: Settings, blobs: Blobs) -> SourceAccess:
    """What jobs without a grant of their own may read."""
    return SourceAccess(grant_of_service(settings), OwnPlaces.of(settings, blobs))


def _any_contains(roots: Iterable[str], path: str) -> bool:
    return any(contains_path(root, path) for root in roots)


def _ids(paths: Iterable[str]) -> Iterable[tuple[int, int]]:
    for path in paths:
        try:
            seen = os.stat(path)
        except OSError:  # not there yet
            continue
        yield seen.st_dev, seen.st_ino


def _path_of(descriptor: int) -> str:
    """Where an open file lies, as the kernel has it."""
    if sys.platform == "linux":
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError as error:
            said = "it cannot be told which file was opened: /proc is not mounted"
            raise Unreadable(said) from error
    import fcntl

    found: bytes = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1_024))  # type: ignore[attr-defined,unused-ignore]
    return os.fsdecode(found.partition(b"\0")[0])
