"""What a job left out or changed, as its ledger counts it: by the suffix of files, or by a remark.

A key that begins with a dot is the suffix of files that were left out. One that begins with an
exclamation mark is a count for a mirror, and not shown.
"""

from collections.abc import Mapping

NO_SUFFIX = "."
OTHER_SUFFIXES = ".*"
MAX_NOTES = 60
HIDDEN = "!"
GAPS = "!gaps"  # parts of a source that could not be listed, or were empty
NEW = "!new"  # in a dry run: images that are not indexed
CHANGED = "!changed"  # in a dry run: images with another signature


def added(notes: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts. Keys beyond MAX_NOTES are counted together."""
    sums = dict(notes)
    for key, count in more.items():
        fits = key in sums or len(sums) < MAX_NOTES
        name = key if fits or not key.startswith(".") else OTHER_SUFFIXES
        sums[name] = sums.get(name, 0) + count
    return sums


def left_out(notes: Mapping[str, int]) -> dict[str, int]:
    """The number of files that were left out, by their suffix, the most frequent first.

    Files without a suffix are counted as "", those of rare suffixes as "*".
    """
    names = {NO_SUFFIX: "", OTHER_SUFFIXES: "*"}
    counts = {names.get(key, key): count for key, count in notes.items() if key.startswith(".")}
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def remarks(notes: Mapping[str, int]) -> dict[str, int]:
    """The other counts, by their text."""
    return {key: count for key, count in sorted(notes.items()) if key[:1] not in (".", HIDDEN)}
