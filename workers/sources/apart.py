"""Captions that lie in a tar, but not beside their image. A stream cannot bring them together, so
that is said, instead of indexing the images without them and keeping silent."""

from clipfleet.common.ledger import Item
from clipfleet.workers.sources.samples import Member

MOST = 100_000


class ScatteredCaptions:
    """Remembers so many groups, and no more; of an archive with more it may miss some."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._images: set[int] = set()
        self._sidecars: set[int] = set()
        self._found = 0
        self._first = ""

    def look(self, members: list[Member]) -> None:
        group = hash(members[0].group)
        images = any(member.is_image for member in members)
        sidecars = any(member.is_sidecar for member in members)
        if images and sidecars:
            return
        if group in (self._sidecars if images else self._images):
            self._found += 1
            self._first = self._first or members[0].name
        mine = self._images if images else self._sidecars
        if len(mine) < MOST:
            mine.add(group)

    def item(self) -> Item | None:
        """One that fails and says so; None where there is nothing to say."""
        if not self._found:
            return None
        return Item(
            id=self._uri,
            uri=self._uri,
            read="",
            problem=f"{self._found} images (the first near {self._first!r}) are in without their "
            "captions, which are not right beside them; pack the archive in the order of the "
            "names (tar --sort=name)",
        )
