"""Versions of messages and records, in their field `v`.

Within one version, unknown fields are ignored and missing fields have defaults, so that parts of
neighbouring releases work side by side. Another version is refused without loss of data.
docs/upgrades.md describes both for operators and developers.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import Unavailable

T = TypeVar("T", bound=BaseModel)
log = logging.getLogger(__name__)

RETRY_AFTER_S = 30


class OtherVersion(Unavailable):
    """A record or message has a version that this release does not understand.

    It concerns only this record: a loop that waits for a part that is away must not wait for it.

    Args:
        what: the record, such as "job 'x'".
        version: its version.
        known: the versions that this release understands.
    """

    slug = "other-version"
    title = "Written by another release of clipfleet"

    def __init__(self, what: str, version: object, known: Sequence[int]) -> None:
        newer = not isinstance(version, int) or version > max(known)
        reads = " and ".join(str(number) for number in known)
        advice = "upgrade this part" if newer else "upgrade one release at a time"
        super().__init__(
            f"{what} is in version {version}, this part of clipfleet reads version {reads}: "
            f"{advice}",
            RETRY_AFTER_S,
        )


def parse_versioned(kind: type[T], raw: str | bytes, what: str) -> T:
    """Parse a record or message.

    Args:
        kind: its model.
        raw: its JSON.
        what: what it is, for the error, such as "job".

    Raises:
        OtherVersion: it, or a record in it, has a version that this release does not understand.
        ValidationError: it is invalid for another reason.

    Example:
        collection = parse_versioned(Collection, raw, "collection")
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            if fault["type"] == "literal_error" and fault["loc"][-1] == "v":
                known = [int(number) for number in re.findall(r"\d+", fault["ctx"]["expected"])]
                raise OtherVersion(f"{what}{_name(raw)}", fault["input"], known) from error
        raise


def _name(raw: str | bytes) -> str:
    record = json.loads(raw)
    name = record.get("name") or record.get("id")
    return f" {name!r}" if name else ""


@contextmanager
def skipping_unknown_versions() -> Iterator[None]:
    """Context in which OtherVersion is logged and ignored, for the items of a list."""
    try:
        yield
    except OtherVersion as error:
        warn_once(f"left out of a list: {error.detail}")


@lru_cache(maxsize=1_000)
def warn_once(text: str) -> None:
    """Log a warning once in this process, for loops that would repeat it."""
    log.warning(text)
