"""Groups the members of an archive as webdataset does: by the path up to the first dot of the name.

`.txt` is the caption, `.json` the metadata and `.cls` the label of the images of a group.
"""

import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits
from clipfleet.workers.sources.base import ending_of
from clipfleet.workers.sources.rows import BadRow, metadata_of

SIDECARS = (".txt", ".json", ".cls")


@dataclass(slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: the path in the archive.
        size: the unpacked size in bytes.
        read: returns the `read` of the file's item, from which a worker reads it.
        data: returns the first bytes of the file, as many as its argument.
        problem: the reason why the file cannot be read, if there is one.
        group: the path up to the first dot of the name, which members of one group share.
        suffix: the ending of the name in small letters.
        is_image: whether that is the ending of an image.
        is_sidecar: whether that is the ending of a caption, of metadata or of a label.
    """

    name: str
    size: int
    read: Callable[[], str]
    data: Callable[[int], bytes]
    problem: str | None = None
    group: str = field(init=False)
    suffix: str = field(init=False)
    is_image: bool = field(init=False)
    is_sidecar: bool = field(init=False)

    def __post_init__(self) -> None:
        folder, _, last = self.name.rpartition("/")
        self.group = f"{folder}/{last.partition('.')[0]}"
        self.suffix = suffix = _suffix(last)
        self.is_image, self.is_sidecar = suffix in SUFFIXES, suffix in SIDECARS


def counts(name: str) -> bool:
    """Whether a member is an image or a sidecar and is not hidden (macOS adds `._name` files)."""
    suffix = _suffix(name.rpartition("/")[2])
    if not (suffix in SUFFIXES or suffix in SIDECARS) or "__MACOSX" in name:
        return False
    if not name.startswith(".") and "/." not in name:
        return True
    return not any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _suffix(last: str) -> str:
    """The ending of the last part of a path; a name that begins with its only dot has none."""
    return posixpath.splitext(last)[1].lower() if last.startswith(".") else ending_of(last)


@dataclass
class SidecarData:
    """The label and metadata from the sidecars of one group, or their problem."""

    label: str = ""
    metadata: dict[str, Any] | None = None
    problem: str | None = None


def sidecar_data(sidecars: list[Member], limits: Limits) -> SidecarData:
    """Read the sidecars of one group."""
    if not sidecars:
        return SidecarData()
    fields: dict[str, Any] = {}
    label = ""
    try:
        for sidecar in sorted(sidecars, key=lambda member: member.suffix != ".json"):
            if sidecar.suffix == ".json":
                fields = {**_object(sidecar, limits), **fields}
            elif sidecar.suffix == ".txt":
                fields["caption"] = _text(sidecar, limits)
            else:
                label = _text(sidecar, limits)
        label = label or str(fields.get("label", ""))
        return SidecarData(label, metadata_of(fields, limits.metadata_bytes))
    except (BadRow, Unreadable) as error:
        return SidecarData(problem=str(error))


def items(uri: str, members: list[Member], limits: Limits) -> Iterator[Item]:
    """The images of one group, with the data of its sidecars."""
    images = [member for member in members if member.is_image]
    if not images:
        return
    sidecars = sidecar_data([member for member in members if member.is_sidecar], limits)
    for image in images:
        yield item_of(uri, image, sidecars, limits)


def item_of(uri: str, image: Member, sidecars: SidecarData, limits: Limits) -> Item:
    """The item of an image in an archive at `uri`."""
    item_id = printable(f"{uri}#{image.name}")
    problem = image.problem or sidecars.problem or id_problem(item_id)
    if image.size > limits.image_bytes:
        problem = f"it has {image.size} bytes; the limit is {limits.image_bytes}"
    return Item(
        id=item_id,
        uri=item_id,
        read="" if problem else image.read(),
        label=sidecars.label,
        metadata=sidecars.metadata or {},
        problem=problem,
    )


def _text(member: Member, limits: Limits) -> str:
    if member.size > limits.metadata_bytes:
        limit = limits.metadata_bytes
        raise BadRow(f"{printable(member.name)!r} has {member.size} bytes; the limit is {limit}")
    try:
        return member.data(limits.metadata_bytes).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadRow(f"{printable(member.name)!r} is not valid UTF-8") from error


def _object(member: Member, limits: Limits) -> dict[str, Any]:
    try:
        value = json.loads(_text(member, limits))
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{printable(member.name)!r} is not JSON: {error}"[:200]) from error
    if not isinstance(value, dict):
        raise BadRow(f"{printable(member.name)!r} is not a JSON object")
    return value
