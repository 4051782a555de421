"""Takes events from the stream of Redis to the registered sources that they concern."""

import json
import logging

from clipfleet.api.sources.events import Events, keys_for, parse_events
from clipfleet.common.errors import ClipfleetError, InvalidRequest, Unavailable
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.ledger.event_stream import EventStream, StreamEntry
from clipfleet.common.ledger.registered import (
    RegisteredSource,
    Registry,
    TooManyEvents,
    unknown_source,
)

log = logging.getLogger(__name__)

MAX_ENTRIES = 100  # of one round
FIELD = "event"


class StreamReader:
    """Reads the stream, one round at a time.

    Args:
        stream: the stream.
        registry: has the sources.
        catalogue: has the collections.
        limit: the keys that may wait for one source.
    """

    def __init__(
        self, stream: EventStream, registry: Registry, catalogue: Catalogue, limit: int
    ) -> None:
        self._stream, self._registry, self._catalogue = stream, registry, catalogue
        self._limit = limit

    def round(self) -> int:
        """Take the next entries to their sources, and return the number of entries.

        An entry that cannot be used is put aside. An entry for a source that has no room is read
        again later.

        Raises:
            Unavailable: Redis is away. The entries are read again later.
        """
        entries = self._stream.read(MAX_ENTRIES)
        sources = self._all_sources() if entries else []
        for entry in entries:
            try:
                self._take(entry, sources)
                self._stream.finish([entry])
            except TooManyEvents as error:
                log.warning("an event of the stream waits: %s", error.detail)
            except Unavailable:
                raise
            except ClipfleetError as error:
                self._refuse(entry, error.detail)
            except Exception as error:  # its text may quote the event
                log.exception("an event of the stream cannot be handled")
                self._refuse(entry, type(error).__name__)
        return len(entries)

    def _refuse(self, entry: StreamEntry, reason: str) -> None:
        self._stream.refuse(entry, reason)
        log.warning(
            "event %s of the stream is put aside in %s, which has %d: %s",
            entry.id, self._stream.refused_name, self._stream.refused(), reason,
        )  # fmt: skip

    def _all_sources(self) -> list[RegisteredSource]:
        names = [collection.name for collection in self._catalogue.all()]
        return [source for name in names for source in self._registry.all(name)]

    def _take(self, entry: StreamEntry, sources: list[RegisteredSource]) -> None:
        events = _parse(entry)
        addressed = self._addressed(entry, sources)
        if events.keys and addressed is None:
            raise InvalidRequest(
                "keys relative to a source need the fields `collection` and `source` beside "
                f"`{FIELD}`"
            )
        for source in sources if addressed is None else [addressed]:
            try:
                keys = keys_for(source, events)
            except InvalidRequest:
                if addressed:
                    raise
                continue
            if keys:
                self._add(source, keys)

    def _add(self, source: RegisteredSource, keys: list[str]) -> None:
        distinct = list(dict.fromkeys(keys))
        self._registry.add_keys(source.collection, source.name, distinct, self._limit)

    def _addressed(
        self, entry: StreamEntry, sources: list[RegisteredSource]
    ) -> RegisteredSource | None:
        """The source that the entry names; None: it names none."""
        collection, name = entry.fields.get("collection", ""), entry.fields.get("source", "")
        if not (collection or name):
            return None
        for source in sources:
            if (source.collection, source.name) == (collection, name):
                return source
        raise unknown_source(collection, name)


def _parse(entry: StreamEntry) -> Events:
    text = entry.fields.get(FIELD)
    if text is None:
        raise InvalidRequest(f"the entry has no field `{FIELD}`")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the field `{FIELD}` is no JSON") from error
    return parse_events(document)
