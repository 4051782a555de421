"""The keys in force: those of the file, which is read again when it changes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from clipfleet.common.auth.keys import Key, read_keys, require_within
from clipfleet.common.errors import StartupError
from clipfleet.common.http.source_grants import SourceGrant

log = logging.getLogger(__name__)

LOOK_S = 1.0
Signature = tuple[int, ...] | None


class KeyRing:
    """Looked at, so that a key is in force or not a second after the file says so. The file may be
    written to, replaced, or a link that points elsewhere now, as those of Kubernetes' Secrets."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        service: SourceGrant | None = None,
    ) -> None:
        """StartupError when there is no such file, it cannot be understood, or one of its keys may
        read what the service may not."""
        self._path, self._clock, self._service = path, clock, service or SourceGrant()
        self._signature, self._keys = _signature(path), self._read()
        self._looked_at = clock()

    def active_keys(self) -> tuple[Key, ...]:
        if self._clock() - self._looked_at >= LOOK_S:
            self._looked_at = self._clock()
            self._look()
        return self._keys

    def _read(self) -> tuple[Key, ...]:
        keys = read_keys(self._path)
        require_within(keys, self._service, self._path)
        return keys

    def _look(self) -> None:
        seen = _signature(self._path)
        if seen == self._signature:
            return
        self._signature = seen  # taken before it is read: a change meanwhile is seen next time
        try:
            self._keys = self._read()
            log.info("read %d keys from %s", len(self._keys), self._path)
        except StartupError as error:
            log.error("%s; the keys read before stay in force", error.detail)


def _signature(path: Path) -> Signature:
    try:
        seen = path.stat()
    except OSError:
        return None
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino, seen.st_dev)
