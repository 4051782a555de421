"""Joins the images of an archive with their sidecars: captions, metadata and labels.

`.txt` is a caption, `.json` metadata and `.cls` a label. As in webdataset, files belong to one
group when their names are the same up to the first dot. Names may have more dots, though, and then
each image has its own sidecars. Of each kind, an image takes the first of these that exists:

1. the sidecar of its whole name: `1.2.jpg.txt` for `1.2.jpg`
2. that of its name without the ending: `1.2.txt`
3. that of fewer parts of the name: `1.txt`
4. one with further words: `1.2.caption.txt`, unless that is the first or second of another image
"""

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import id_problem, printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits
from clipfleet.workers.sources.base import ending_of
from clipfleet.workers.sources.values import BadRow, Values

SIDECARS = (".txt", ".json", ".cls")
SEVERAL = "images have several captions, labels or files of metadata; the first by name was taken"
_WORDS = re.compile(r"(\.[^\W\d][\w-]*)+")  # not the digits of a time or a version


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
        stem: the path without the ending of the name.
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
    stem: str = field(init=False)
    suffix: str = field(init=False)
    is_image: bool = field(init=False)
    is_sidecar: bool = field(init=False)

    def __post_init__(self) -> None:
        folder, _, last = self.name.rpartition("/")
        self.group = f"{folder}/{last.partition('.')[0]}"
        self.suffix = suffix = ending(last)
        self.stem = self.name[: -len(suffix)] if suffix else self.name
        self.is_image, self.is_sidecar = suffix in SUFFIXES, suffix in SIDECARS


def is_hidden(name: str) -> bool:
    """Whether a member is hidden, or lies in a hidden folder (macOS adds `._name` files)."""
    if "__MACOSX" in name:
        return True
    if not name.startswith(".") and "/." not in name:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def is_part_of_sample(name: str) -> bool:
    """Whether a member is an image or a sidecar by its ending."""
    suffix = ending(name.rpartition("/")[2])
    return suffix in SUFFIXES or suffix in SIDECARS


def ending(last: str) -> str:
    """The ending of the last part of a path; a name that begins with its only dot has none."""
    return posixpath.splitext(last)[1].lower() if last.startswith(".") else ending_of(last)


def stems_for(image: Member) -> list[str]:
    """The stems of the sidecars that an image can have, except those with further words."""
    stems = [image.name, image.stem]
    while (shorter := _shorter(stems[-1])) is not None:
        stems.append(shorter)
    return stems


def owners_of(stem: str) -> list[str]:
    """The stems of the images that a sidecar with further words can belong to, the longest first.

    Empty if what may be left out is no word: `10.30` is a time, and no part of `10`.
    """
    owners, whole = [], stem
    while (shorter := _shorter(stem)) is not None and _WORDS.fullmatch(whole[len(shorter) :]):
        owners.append(shorter)
        stem = shorter
    return owners


def _shorter(stem: str) -> str | None:
    """The stem without its last part; None if it has one part only."""
    begin = stem.rfind("/") + 1
    dot = stem.rfind(".", begin)
    return stem[:dot] if dot > begin else None


def best_of(image: Member, candidates: Iterable[Member]) -> tuple[list[Member], bool]:
    """The sidecars of an image, one of each kind, and whether there were several to choose from.

    Args:
        candidates: the sidecars with one of `stems_for`, and those with further words.
    """
    ranks = {stem: rank for rank, stem in enumerate(stems_for(image))}
    best: dict[str, tuple[int, str, Member]] = {}
    several = False
    for sidecar in candidates:
        entry = (ranks.get(sidecar.stem, len(ranks)), sidecar.name, sidecar)
        other = best.get(sidecar.suffix)
        several |= other is not None and other[0] == entry[0]
        if other is None or entry[:2] < other[:2]:
            best[sidecar.suffix] = entry
    return [sidecar for _, _, sidecar in best.values()], several


@dataclass(frozen=True)
class ArchivePlace:
    """An archive, as its images are named.

    Attributes:
        uri: the archive's URI.
        label_from_folder: whether the folder of an image is its label, unless it has another one.
    """

    uri: str
    label_from_folder: bool = False


def folder_of(name: str) -> str:
    """The name of the folder of a member; "" at the top of the archive."""
    folders = [part for part in name.split("/")[:-1] if part not in ("", ".")]
    return folders[-1] if folders and folders[-1] != ".." else ""


@dataclass
class SidecarData:
    """The label and metadata from the sidecars of one image, or their problem."""

    label: str = ""
    metadata: dict[str, Any] | None = None
    problem: str | None = None


def sidecar_data(sidecars: Sequence[Member], limits: Limits, values: Values) -> SidecarData:
    """Read the sidecars of one image, one of each kind."""
    if not sidecars:
        return SidecarData()
    fields: dict[str, Any] = {}
    label = ""
    try:
        for sidecar in sorted(sidecars, key=lambda member: member.suffix != ".json"):
            if sidecar.suffix == ".json":
                fields = _object(sidecar, limits)
            elif sidecar.suffix == ".cls":
                label = _text(sidecar, limits)
            elif caption := _text(sidecar, limits):
                fields["caption"] = caption
        label = label or values.text(fields, "label")
        return SidecarData(label, values.metadata(fields))
    except (BadRow, Unreadable) as error:
        return SidecarData(problem=str(error))


def items(
    place: ArchivePlace, members: list[Member], limits: Limits, values: Values
) -> Iterator[Item]:
    """The images of one group, each with the data of its sidecars.

    Sidecars of no image are counted as left out.
    """
    images = [member for member in members if member.is_image]
    sidecars = [member for member in members if member.is_sidecar]
    if len(images) == 1 and _are_all_its_own(images[0], sidecars):  # the most frequent case
        yield item_of(place, images[0], sidecar_data(sidecars, limits, values), limits)
        return
    by_stem = _by_stem(images, sidecars)
    used = set[int]()
    for image in images:
        stems = stems_for(image) if by_stem else ()
        candidates = [sidecar for stem in stems for sidecar in by_stem[stem]]
        candidates += by_stem[f"{image.stem}."] if by_stem else ()
        chosen, several = best_of(image, candidates)
        used.update(map(id, candidates))
        if several:
            values.notes.remark(SEVERAL)
        yield item_of(place, image, sidecar_data(chosen, limits, values), limits)
    for sidecar in sidecars:
        if id(sidecar) not in used:
            values.notes.leave_out(sidecar.suffix)


def _are_all_its_own(image: Member, sidecars: list[Member]) -> bool:
    """Whether the sidecars have the name of the image, and there is one of each kind at most."""
    suffixes = {sidecar.suffix for sidecar in sidecars if sidecar.stem == image.stem}
    return len(suffixes) == len(sidecars)


def _by_stem(images: list[Member], sidecars: list[Member]) -> defaultdict[str, list[Member]]:
    """The sidecars of a group by their stem; by an image's stem and a dot those with more words."""
    owners = {name for image in images for name in (image.name, image.stem)}
    by_stem = defaultdict[str, list[Member]](list)
    for sidecar in sidecars:
        by_stem[sidecar.stem].append(sidecar)
        if sidecar.stem not in owners:
            owner = next((stem for stem in owners_of(sidecar.stem) if stem in owners), None)
            if owner is not None:
                by_stem[f"{owner}."].append(sidecar)
    return by_stem


def item_of(place: ArchivePlace, image: Member, sidecars: SidecarData, limits: Limits) -> Item:
    """The item of an image in an archive."""
    item_id = printable(f"{place.uri}#{image.name}")
    problem = image.problem or sidecars.problem or id_problem(item_id)
    if image.size > limits.image_bytes:
        problem = f"it has {image.size} bytes; the limit is {limits.image_bytes}"
    return Item(
        id=item_id,
        uri=item_id,
        read="" if problem else image.read(),
        label=sidecars.label or (folder_of(image.name) if place.label_from_folder else ""),
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
