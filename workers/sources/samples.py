"""Members of an archive that belong together, as webdataset has it: one name up to the first dot
of its last part. `.txt` is the caption, `.json` metadata, `.cls` the label of the images."""

import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits
from clipfleet.workers.sources.rows import BadRow, metadata_of

SIDECARS = (".txt", ".json", ".cls")


@dataclass(frozen=True)
class Member:
    """A file in an archive. `read`: where a worker finds it. `data`: its first bytes, now."""

    name: str
    size: int
    read: Callable[[], str]
    data: Callable[[int], bytes]
    problem: str | None = None

    @property
    def group(self) -> str:
        folder, _, last = self.name.rpartition("/")
        return f"{folder}/{last.partition('.')[0]}"

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1].lower()

    @property
    def is_image(self) -> bool:
        return self.suffix in SUFFIXES

    @property
    def is_sidecar(self) -> bool:
        return self.suffix in SIDECARS


def counts(name: str) -> bool:
    """Whether a member is looked at. macOS hides its own beside the real ones as ._name."""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
    suffix = posixpath.splitext(name)[1].lower()
    return not hidden and "__MACOSX" not in name and (suffix in SUFFIXES or suffix in SIDECARS)


@dataclass
class SidecarData:
    """What the sidecars of one group say."""

    label: str = ""
    metadata: dict[str, Any] | None = None
    problem: str | None = None


def said(sidecars: list[Member], limits: Limits) -> SidecarData:
    found: dict[str, Any] = {}
    label = ""
    try:
        for one in sorted(sidecars, key=lambda member: member.suffix != ".json"):
            if one.suffix == ".json":
                found = {**_object(one, limits), **found}
            elif one.suffix == ".txt":
                found["caption"] = _text(one, limits)
            else:
                label = _text(one, limits)
        label = label or str(found.get("label", ""))
        return SidecarData(label, metadata_of(found, limits.metadata_bytes))
    except (BadRow, Unreadable) as error:
        return SidecarData(problem=str(error))


def items(uri: str, members: list[Member], limits: Limits) -> Iterator[Item]:
    """The images of one group."""
    images = [member for member in members if member.is_image]
    if not images:
        return
    beside = said([member for member in members if member.is_sidecar], limits)
    for one in images:
        yield item_of(uri, one, beside, limits)


def item_of(uri: str, image: Member, beside: SidecarData, limits: Limits) -> Item:
    item_id = printable(f"{uri}#{image.name}")
    problem = image.problem or beside.problem or id_problem(item_id)
    if image.size > limits.image_bytes:
        problem = f"it has {image.size} bytes; the limit is {limits.image_bytes}"
    return Item(
        id=item_id,
        uri=item_id,
        read="" if problem else image.read(),
        label=beside.label,
        metadata=beside.metadata or {},
        problem=problem,
    )


def _text(member: Member, limits: Limits) -> str:
    if member.size > limits.metadata_bytes:
        most = limits.metadata_bytes
        raise BadRow(f"{printable(member.name)!r} has {member.size} bytes; the limit is {most}")
    try:
        return member.data(limits.metadata_bytes).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadRow(f"{printable(member.name)!r} is not valid UTF-8") from error


def _object(member: Member, limits: Limits) -> dict[str, Any]:
    try:
        found = json.loads(_text(member, limits))
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{printable(member.name)!r} is not JSON: {error}"[:200]) from error
    if not isinstance(found, dict):
        raise BadRow(f"{printable(member.name)!r} is no JSON object")
    return found
