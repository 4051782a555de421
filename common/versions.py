"""Messages and records carry `v`. Within one number unknown fields are ignored and missing ones
have defaults, so that parts of neighbouring releases work side by side. Another number is refused,
and nothing is lost by it. docs/upgrades.md says both for operators and developers."""

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

AGAIN_S = 30


class OtherVersion(Unavailable):
    """Written by a release that this one does not understand. It concerns this one record: loops
    that wait for a part which is away must not wait for it."""

    slug = "other-version"
    title = "Written by another release of clipfleet"

    def __init__(self, what: str, found: object, known: Sequence[int]) -> None:
        newer = not isinstance(found, int) or found > max(known)
        reads = " and ".join(str(one) for one in known)
        do = "upgrade this part" if newer else "upgrade one release at a time"
        said = f"{what} is in version {found}, this part of clipfleet reads version {reads}: {do}"
        super().__init__(said, AGAIN_S)


def read(kind: type[T], raw: str | bytes, what: str) -> T:
    """OtherVersion, naming it, where it or anything in it has a number that we do not know."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            if fault["type"] == "literal_error" and fault["loc"][-1] == "v":
                known = [int(number) for number in re.findall(r"\d+", fault["ctx"]["expected"])]
                raise OtherVersion(f"{what}{_name(raw)}", fault["input"], known) from error
        raise


def _name(raw: str | bytes) -> str:
    said = json.loads(raw)
    name = said.get("name") or said.get("id")
    return f" {name!r}" if name else ""


@contextmanager
def skipping_unknown_versions() -> Iterator[None]:
    """What is of another version is left out of a list, so that the rest can be seen."""
    try:
        yield
    except OtherVersion as error:
        warn_once(f"left out of a list: {error.detail}")


@lru_cache(maxsize=1_000)
def warn_once(text: str) -> None:
    """What would otherwise be said in every round."""
    log.warning(text)
