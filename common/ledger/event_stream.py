"""The stream of Redis from which events about objects are read, for producers that need no HTTP.

A producer adds entries with `XADD name * event JSON`. All gateways are one consumer of one group:
an entry is given to one of them, and to another one when it was not finished within TAKE_OVER_S.
What is finished is deleted. What cannot be used is put aside in the stream `NAME:refused`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from clipfleet.common.redis.client import translating_redis_errors

GROUP, CONSUMER = "clipfleet", "gateway"
TAKE_OVER_S = 30.0  # an entry that was begun so long ago, and not finished, is begun again
MAX_UNFINISHED = 1_000  # no further entries are begun while there are so many
KEPT_REFUSED = 1_000  # entries that are put aside, about


@dataclass(frozen=True)
class StreamEntry:
    """An entry of the stream.

    Attributes:
        id: its id.
        fields: its fields, of which those that are no UTF-8 have replacement characters.
    """

    id: str
    fields: dict[str, str]


class EventStream:
    """A stream of Redis. Every call raises Unavailable when Redis is away.

    Args:
        client: see `make_redis`.
        name: the name of the stream, which is created when it is missing.
        take_over_s: in place of TAKE_OVER_S, for tests.
    """

    def __init__(self, client: "redis.Redis", name: str, take_over_s: float = TAKE_OVER_S) -> None:
        self._redis, self._name, self._take_over_ms = client, name, int(take_over_s * 1000)
        self.refused_name = f"{name}:refused"

    def read(self, limit: int) -> list[StreamEntry]:
        """Begin entries: first those that another gateway has not finished, then new ones.

        Args:
            limit: the number of entries to return at most.

        Raises:
            Unavailable: Redis is away.
        """
        with translating_redis_errors():
            return self._within_group(lambda: self._read(limit))

    def finish(self, entries: Sequence[StreamEntry]) -> None:
        """Delete entries from the stream, since all that they say is stored elsewhere.

        Raises:
            Unavailable: Redis is away.
        """
        ids = [entry.id for entry in entries]
        if not ids:
            return
        pipe = self._redis.pipeline()
        pipe.xack(self._name, GROUP, *ids)
        pipe.xdel(self._name, *ids)
        with translating_redis_errors():
            pipe.execute()

    def refuse(self, entry: StreamEntry, reason: str) -> None:
        """Put an entry aside, with the reason, and finish it.

        Raises:
            Unavailable: Redis is away.
        """
        fields: Any = {**entry.fields, "id": entry.id, "reason": reason}
        with translating_redis_errors():
            self._redis.xadd(self.refused_name, fields, maxlen=KEPT_REFUSED, approximate=True)
        self.finish([entry])

    def refused(self) -> int:
        """Return the number of entries that are put aside.

        Raises:
            Unavailable: Redis is away.
        """
        with translating_redis_errors():
            return int(str(self._redis.xlen(self.refused_name)))

    def _within_group(self, read: Callable[[], list[StreamEntry]]) -> list[StreamEntry]:
        """Read, and create stream and group first when there are none."""
        try:
            return read()
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
        try:
            self._redis.xgroup_create(self._name, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        return read()

    def _read(self, limit: int) -> list[StreamEntry]:
        pending: Any = self._redis.xpending_range(self._name, GROUP, "-", "+", MAX_UNFINISHED)
        stale = [
            row["message_id"]
            for row in pending
            if row["time_since_delivered"] >= self._take_over_ms
        ]
        entries = self._claim(stale[:limit])
        room = min(limit - len(entries), MAX_UNFINISHED - len(pending))
        if room <= 0:
            return entries
        streams: Any = {self._name: ">"}
        answer: Any = self._redis.xreadgroup(GROUP, CONSUMER, streams, count=room)
        return entries + [_entry(row) for _, rows in answer or () for row in rows]

    def _claim(self, ids: Sequence[bytes]) -> list[StreamEntry]:
        """Begin entries again. Those that the producer has trimmed away are forgotten."""
        entries = []
        for entry_id in ids:
            rows: Any = self._redis.xrange(self._name, entry_id, entry_id)
            if not rows:
                self._redis.xack(self._name, GROUP, entry_id)
                continue
            claim: Any = self._redis.xclaim(
                self._name, GROUP, CONSUMER, self._take_over_ms, [entry_id], justid=True
            )
            if claim:  # it was not begun by another one just now
                entries += [_entry(row) for row in rows]
        return entries


def _entry(row: Any) -> StreamEntry:
    return StreamEntry(_text(row[0]), {_text(name): _text(value) for name, value in row[1].items()})


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
