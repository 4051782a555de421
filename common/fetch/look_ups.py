"""Looks up the addresses of host names on threads of their own.

A look-up has no timeout, and nothing ends it: a silent name server holds its thread for half a
minute or longer. The fetch, on another thread, waits for no longer than its own time limit.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from clipfleet.common.errors import Unavailable
from clipfleet.common.fetch.fair_slots import FairSlots
from clipfleet.common.shares import Owner

LookUp = Callable[[str, int], Sequence[str]]

MAX_LOOK_UPS = 256  # at once; as many as a worker makes fetches by default


class LookUpsBusy(Unavailable):
    """Too many look-ups of the same owner, or of all owners, are not answered; try again later."""

    def __init__(self) -> None:
        super().__init__("too many host names are being looked up and are not answered")


def look_up(host: str, port: int) -> Sequence[str]:
    """Look up the addresses of a host name.

    Like C, it also accepts numbers: 2130706433 is 127.0.0.1.
    """
    return _addresses(host, port, 0)


class LookUps:
    """Looks up host names, each on a daemon thread. Owners share the threads. Thread-safe.

    Args:
        look_up: looks up the addresses of one name.
        slots: the number of look-ups at once, including those for which nobody waits any more.
    """

    def __init__(self, look_up: LookUp, slots: int) -> None:
        self._look_up = look_up
        self._lock = threading.Lock()
        self._slots = FairSlots(slots)
        self._under_way: dict[tuple[str, int], Future[Sequence[str]]] = {}

    def addresses(self, host: str, port: int, owner: Owner, timeout: float | None) -> Sequence[str]:
        """The addresses of a host. A name that is being looked up is not looked up once more.

        A fetch does not queue for a slot, so no time limit runs while it waits for the look-ups of
        others.

        Args:
            host: a name, or an address, which needs no slot.
            owner: whose slot the look-up takes; see `FairSlots`.
            timeout: seconds to wait for the answer; None: no limit.

        Raises:
            TimeoutError: there is no answer in time.
            LookUpsBusy: the owner may have no slot now.
            OSError, UnicodeError: what the look-up raised.
        """
        with suppress(socket.gaierror):
            return _addresses(host, port, socket.AI_NUMERICHOST)
        return self._begin(host, port, owner).result(timeout)

    def _begin(self, host: str, port: int, owner: Owner) -> "Future[Sequence[str]]":
        with self._lock:
            if under_way := self._under_way.get((host, port)):
                return under_way
            if not self._slots.may_take(owner):
                raise LookUpsBusy
            result: Future[Sequence[str]] = Future()
            run = threading.Thread(
                target=self._run, args=(host, port, owner, result), name="look-up", daemon=True
            )
            run.start()
            self._slots.take(owner)
            self._under_way[host, port] = result
        return result

    def _run(self, host: str, port: int, owner: Owner, result: "Future[Sequence[str]]") -> None:
        try:
            addresses = self._look_up_and_free(host, port, owner)
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(addresses)

    def _look_up_and_free(self, host: str, port: int, owner: Owner) -> Sequence[str]:
        try:
            return self._look_up(host, port)
        finally:
            with self._lock:
                del self._under_way[host, port]
                self._slots.give_back(owner)


def _addresses(host: str, port: int, flags: int) -> Sequence[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
