"""Detection of captions in a tar that are not next to their image.

A stream cannot join them, so the images are indexed without their captions, and the job reports
that.
"""

from clipfleet.common.ledger import Item
from clipfleet.workers.sources.samples import Member

MAX_GROUPS = 100_000  # remembered of each kind


class ScatteredCaptions:
    """Finds groups of members that appear twice, once with images and once with sidecars.

    It remembers MAX_GROUPS groups and may miss some in an archive with more.

    Args:
        uri: the archive's URI.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._images: set[int] = set()
        self._sidecars: set[int] = set()
        self._count = 0
        self._first = ""

    def add(self, members: list[Member]) -> None:
        """Add neighbouring members of one group."""
        group = hash(members[0].group)
        images = True in [member.is_image for member in members]
        sidecars = True in [member.is_sidecar for member in members]
        if images and sidecars:
            return
        if group in (self._sidecars if images else self._images):
            self._count += 1
            self._first = self._first or members[0].name
        groups = self._images if images else self._sidecars
        if len(groups) < MAX_GROUPS:
            groups.add(group)

    def item(self) -> Item | None:
        """An item that fails with a report of scattered captions; None if there are none."""
        if not self._count:
            return None
        return Item(
            id=self._uri,
            uri=self._uri,
            read="",
            problem=f"{self._count} images (the first near {self._first!r}) were indexed without "
            "their captions, which are not next to them; pack the archive in the order of the "
            "names (tar --sort=name)",
        )
