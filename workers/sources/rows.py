"""Turns the rows of a manifest into items."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipfleet.common.http import uris
from clipfleet.common.identity import id_problem, printable, text_problem
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.base import SourceError
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.values import BadRow, Values
from clipfleet.workers.storage.locations import BadLocation, Storage

_ENDINGS = tuple(SUFFIXES)


def require_distinct(names: Sequence[str]) -> None:
    """Raise SourceError if two columns have the same name."""
    for number, name in enumerate(names, 1):
        first = names.index(name) + 1
        if first < number:
            raise SourceError(
                f"two columns of the manifest have the same name: numbers {first} and {number}"
            )


class Rows:
    """The rows of one manifest. No error quotes a row, since any file may be named as a manifest.

    Attributes:
        values: reads the values of the rows.

    Args:
        storage: resolves the URIs of the rows.
        location: the manifest's location.
        uri: the manifest's URI.
        fields: the declared fields of the collection, by name, with their types.
        notes: counts what was changed.
        plain: the manifest is a list of URIs without columns; any text file could be such a list.
    """

    def __init__(
        self,
        storage: Storage,
        location: str,
        uri: str,
        fields: Mapping[str, str],
        notes: Notes,
        *,
        plain: bool = False,
    ) -> None:
        self._storage, self._location, self._uri = storage, location, printable(uri)
        self._plain, self._notes = plain, notes
        self.values = Values(fields, notes, storage.settings.limits.metadata_bytes)

    def item(self, row: Mapping[str, Any], name: str) -> Item:
        """The item of a row; one with a `problem` if the row is not valid.

        Args:
            name: names a row that has no id or URI, such as `line 12`.
        """
        try:
            return self._item(row, name)
        except BadRow as error:
            return self.bad(name, str(error))

    def bad(self, name: str, problem: str) -> Item:
        """An item that fails with this problem. Its id says which row it is."""
        self._notes.gap()
        return Item(id=name, uri=self._uri, read="", problem=problem)

    def _item(self, row: Mapping[str, Any], name: str) -> Item:
        text = self.values.text(row, "uri")
        if not text:
            raise BadRow("there is no uri")
        try:
            read = self._storage.find(text, self._location)
        except BadLocation as error:
            raise BadRow(f"the uri {error.problem}") from error
        uri = read.partition(":")[2]
        label, metadata = self.values.text(row, "label"), self.values.metadata(row)
        item_id = self.values.text(row, "id") or uri
        if problem := id_problem(item_id) or text_problem("uri", uri, 4_096):
            raise BadRow(problem)
        row_name = "" if self._is_uri(text) else name
        return Item(id=item_id, uri=uri, read=read, label=label, metadata=metadata, row=row_name)

    def _is_uri(self, text: str) -> bool:
        """Whether a text is meant as a URI, and is not a line of some other file."""
        if text.lower().endswith(_ENDINGS):
            return True
        return not self._plain and bool(uris.scheme(text))
