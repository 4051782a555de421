"""Counts what a source leaves out or changes, for its job to say."""

import re
from collections import Counter
from collections.abc import Mapping

from clipfleet.common.ledger.notes import GAPS, NO_SUFFIX, OTHER_SUFFIXES

MAX_KEYS = 30  # of a job's suffixes and remarks
_SUFFIX = re.compile(r"\.[a-z0-9_+-]{1,16}")


class Notes:
    """The counts since the last `take`, by the suffix of files or the text of a remark.

    A source counts a file or remark while it lists the next item after it, so that each count is
    stored together with the cursor behind it.
    """

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def leave_out(self, suffix: str) -> None:
        """Count a file that is left out.

        Args:
            suffix: the ending of its name with the dot, in small letters; "": none.
        """
        known = _SUFFIX.fullmatch(suffix) and (
            suffix in self._counts or len(self._counts) < MAX_KEYS
        )
        other = OTHER_SUFFIXES if suffix else NO_SUFFIX
        self._counts[suffix if known else other] += 1

    def remark(self, text: str) -> None:
        """Count a remark."""
        self._counts[text] += 1

    def gap(self) -> None:
        """Count a part of the source of which it is not known which images it has."""
        self._counts[GAPS] += 1

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts that were made elsewhere."""
        self._counts.update(counts)

    def take(self) -> dict[str, int]:
        """Return the counts, and begin again at zero."""
        counts, self._counts = dict(self._counts), Counter()
        return counts

    def copy(self) -> Counter[str]:
        """The counts so far, for `restore`."""
        return self._counts.copy()

    def restore(self, counts: Counter[str]) -> None:
        """Go back to earlier counts: what came after them will be listed again."""
        self._counts = counts
