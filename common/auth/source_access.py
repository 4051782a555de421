"""What jobs may read: the allowed folders and buckets, without the service's own data."""

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

# File systems of the kernel: they lead to the roots and the open files of processes, for example.
_OF_THE_KERNEL = ("/proc", "/sys")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class SourceRefused(Forbidden):
    """A job may not read this source.

    Args:
        source: the path or URL.
        problem: why it is refused.

    Attributes:
        problem: why it is refused, without the path: in the rows of a manifest, the path may be the
            text of any file.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source[:200]!r} {problem}")
        self.problem = problem


class OwnData(SourceRefused):
    """The source is data of the service or the system, such as the blob store."""

    def __init__(self, source: str) -> None:
        super().__init__(source, "belongs to the service or the system, and is never indexed")


def grant_of_service(settings: Settings) -> SourceGrant:
    """What the service may read, from its settings.

    When the buckets are not set, these are all buckets if only the user of this machine can send
    requests, and none if others can: with API keys, or with CLIPFLEET_OPEN.
    """
    buckets = settings.source_buckets
    if buckets is None and (settings.keys_file or settings.open):
        buckets = ()
    roots = tuple(os.path.normpath(root) for root in settings.source_roots)
    return SourceGrant(roots=roots, buckets=buckets)


@dataclass(frozen=True)
class OwnPlaces:
    """Where the service keeps its own data.

    Attributes:
        paths: files and folders, absolute.
        bucket: where the blob store is in a bucket; None when it is in a folder.
    """

    paths: tuple[str, ...] = ()
    bucket: BucketPlace | None = None

    @classmethod
    def of(cls, settings: Settings, blobs: Blobs) -> "OwnPlaces":
        """The places of the service with these settings."""
        paths = [*map(str, settings.private_paths), settings.keys_file, blobs.folder]
        bucket = BucketPlace.of(blobs.url).compact if blobs.url else None
        return cls((*_OF_THE_KERNEL, *(os.path.abspath(path) for path in paths if path)), bucket)


class SourceAccess:
    """What one job may read.

    Args:
        service: what the service may read.
        own: what no job may read.
        grant: what this job may read.
    """

    def __init__(
        self, service: SourceGrant, own: OwnPlaces, grant: SourceGrant | None = None
    ) -> None:
        self._service, self._own, self._grant = service, own, grant or SourceGrant()
        self._last_target = ("", "")  # the folder of a link's target, and where that really is
        self._last_foreign_folder = ""  # the last folder that was found not to be in an own one

    def within(self, grant: SourceGrant | None) -> "SourceAccess":
        """The access of a job with this grant. Links and mounts are resolved again."""
        return SourceAccess(self._service, self._own, grant)

    def require_path(self, path: str) -> str:
        """Normalise a path lexically, without access to the file system.

        Raises:
            SourceRefused: it is not absolute, is outside the roots, or is data of the service.
        """
        normal = os.path.normpath(path)
        if not os.path.isabs(normal):
            raise SourceRefused(path, "is not an absolute path")
        roots = self._allowed.roots
        if roots is not None and not _any_contains(roots, normal):
            raise SourceRefused(path, f"is outside {self._allowed_roots(roots)}")
        if _any_contains(self._own.paths, normal):
            raise OwnData(path)
        return normal

    def own_names(self, folder: str) -> frozenset[str]:
        """The names in a folder that `require_path` refuses as data of the service.

        Args:
            folder: absolute and normalised.
        """
        parts = map(os.path.split, self._own.paths)
        return frozenset(name for above, name in parts if above == folder)

    def require_bucket(self, url: str) -> str:
        """Check the URL of a bucket, a prefix or an object, and return it.

        Raises:
            SourceRefused: it is outside the allowed buckets, or is data of the service.
            BadUri: it is not such a URL.
        """
        place = BucketPlace.of(uris.require_bucket(url))
        allowed = self._allowed.buckets
        if allowed is not None and not any(BucketPlace.of(a).contains(place) for a in allowed):
            raise SourceRefused(url, f"is outside {self._allowed_buckets(allowed)}")
        if self._own.bucket and self._own.bucket.contains(place.compact):
            raise OwnData(url)
        return url

    def is_own_object(self, url: str) -> bool:
        """Whether an object belongs to the blob store."""
        return bool(self._own.bucket and self._own.bucket.contains(BucketPlace.of(url).compact))

    def open_file(self, path: str) -> int:
        """Open a file for reading. Returns its descriptor.

        The file may be of any type; the call does not block. Links are resolved first, and not
        followed when the file is opened. Afterwards the path of the open file is checked, so that a
        link that changes in between is of no use.

        Raises:
            SourceRefused: the file is outside the roots, or is data of the service.
            OSError: it cannot be opened.
        """
        return self._open(path, _FLAGS | os.O_NONBLOCK)

    def open_folder(self, path: str) -> int:
        """Open a folder. Returns its descriptor; otherwise as `open_file`."""
        return self._open(path, _FLAGS | os.O_DIRECTORY)

    def require_real(self, path: str) -> str:
        """Resolve every link of a path.

        Raises:
            SourceRefused: the result is outside the roots, or is data of the service.
        """
        real = os.path.realpath(path)
        self._require_inside(real, path)
        return real

    def require_real_link(self, link: str) -> None:
        """Check where a link leads, as `require_real` does for the caller who lists a folder.

        The folder of the last link's target is not resolved again. Whoever opens the link resolves
        everything: see `open_file`.

        Raises:
            SourceRefused: it leads outside the roots, or to data of the service.
        """
        try:
            target = os.path.join(os.path.dirname(link), os.readlink(link))
            folder, name = os.path.split(target)
            if folder != self._last_target[0]:
                self._last_target = (folder, os.path.realpath(folder))
            real = os.path.join(self._last_target[1], name)
            if name in ("", os.curdir, os.pardir) or os.path.islink(real):
                real = os.path.realpath(link)
        except OSError:
            real = os.path.realpath(link)
        self._require_inside(real, link)

    def _open(self, path: str, flags: int) -> int:
        descriptor = os.open(self.require_real(path), flags)
        try:
            self._require_inside(_path_of(descriptor), path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_inside(self, real: str, path: str) -> None:
        for roots in self._real_roots:
            if not _any_contains(roots, real):
                raise SourceRefused(path, "leads outside the folders that may be indexed")
        if _any_contains(self._own_real, real) or self._is_in_own_folder(real):
            raise OwnData(path)

    def _is_in_own_folder(self, real: str) -> bool:
        """Whether a path is in an own folder by another name of that folder.

        Another name is a mount, or other capitals in a file system that ignores case.
        """
        if set(_ids([real])) & self._own_ids:
            return True
        folder = above = os.path.dirname(real)
        while above != self._last_foreign_folder:
            if set(_ids([above])) & self._own_ids:
                return True
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)
        self._last_foreign_folder = folder
        return False

    @cached_property
    def _allowed(self) -> SourceGrant:
        return self._service.and_only(self._grant)

    @cached_property
    def _real_roots(self) -> list[list[str]]:
        """The resolved roots of the service and of the grant. A path must be in one of each.

        The roots are not intersected by name, since a root of a key may be a link.
        """
        every = (self._service.roots, self._grant.roots)
        return [[os.path.realpath(root) for root in roots] for roots in every if roots is not None]

    @cached_property
    def _own_real(self) -> list[str]:
        return [os.path.realpath(path) for path in self._own.paths]

    @cached_property
    def _own_ids(self) -> set[tuple[int, int]]:
        return set(_ids(self._own_real))

    def _allowed_roots(self, allowed: Sequence[str]) -> str:
        listed = ", ".join(allowed) or "none is configured"
        where = _setting_hint(ROOTS_SETTING, "roots", self._grant.roots)
        return f"the folders that may be indexed ({listed}); {where}"

    def _allowed_buckets(self, allowed: Sequence[str]) -> str:
        listed = ", ".join(allowed) or "none is configured"
        where = _setting_hint(BUCKETS_SETTING, "buckets", self._grant.buckets)
        return f"the buckets that may be indexed ({listed}); {where}"


def _setting_hint(setting: str, word: str, of_key: Paths) -> str:
    """Which settings list the allowed places."""
    if of_key is None:
        return f"{setting} lists them"
    return f"{setting} and the `{word}` of the API key list them"


def access_of(settings: Settings, blobs: Blobs) -> SourceAccess:
    """The access of jobs without a grant."""
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
    """The path of an open file, from the kernel."""
    if sys.platform == "linux":
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError as error:
            message = "the path of the opened file is unknown: /proc is not mounted"
            raise Unreadable(message) from error
    import fcntl

    name: bytes = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1_024))  # type: ignore[attr-defined,unused-ignore]
    return os.fsdecode(name.partition(b"\0")[0])
