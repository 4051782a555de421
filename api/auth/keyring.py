"""The API keys of the keys file, which is read again when it changes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from clipfleet.common.auth.keys import Key, read_keys, require_within
from clipfleet.common.errors import StartupError
from clipfleet.common.http.source_grants import SourceGrant

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 1.0
Signature = tuple[int, ...] | None


class KeyRing:
    """The keys of a file. A change of the file takes effect within REFRESH_INTERVAL_S.

    The file may be rewritten or replaced. It may also be a link whose target changes, as in the
    volumes of Kubernetes Secrets.

    Args:
        path: the keys file.
        clock: monotonic seconds.
        service: what the service itself may read; by default everything.

    Raises:
        StartupError: the file does not exist or is not valid, or one of its keys may read a source
            that the service may not.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        service: SourceGrant | None = None,
    ) -> None:
        self._path, self._clock, self._service = path, clock, service or SourceGrant()
        self._signature, self._keys = _signature(path), self._read()
        self._checked_at = clock()

    def active_keys(self) -> tuple[Key, ...]:
        """Return the keys of the file, expired ones included.

        While a new version of the file is not valid, the keys of the version before remain.
        """
        if self._clock() - self._checked_at >= REFRESH_INTERVAL_S:
            self._checked_at = self._clock()
            self._refresh()
        return self._keys

    def _read(self) -> tuple[Key, ...]:
        keys = read_keys(self._path)
        require_within(keys, self._service, self._path)
        return keys

    def _refresh(self) -> None:
        signature = _signature(self._path)
        if signature == self._signature:
            return
        self._signature = signature  # taken before the reading: a later change is seen next time
        try:
            self._keys = self._read()
            log.info("read %d keys from %s", len(self._keys), self._path)
        except StartupError as error:
            log.error("%s; the keys read before stay in force", error.detail)


def _signature(path: Path) -> Signature:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev)
