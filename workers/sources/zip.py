"""Zip archives. Their table of contents, at the end, says where every member lies."""

import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import printable
from clipfleet.workers.places import Places
from clipfleet.workers.read import unzipped
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.samples import Member, counts, items

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1


class Zip:
    """The cursor: how many images are listed. Here captions need not lie beside their images."""

    def __init__(self, file: BinaryIO, place: str, uri: str, places: Places) -> None:
        self._file, self._place, self._uri, self._places = file, place, uri, places

    def stream(self, after: str) -> Iterator[Listed]:
        number, skip = 0, int(after or 0)
        for members in self._groups():
            images = sum(member.is_image for member in members)
            if number + images <= skip:
                number += images
                continue
            for item in items(self._uri, members, self._places.settings.limits):
                number += 1
                if number > skip:
                    yield Listed(item, str(number))

    def count(self) -> int:
        return sum(member.is_image for members in self._groups() for member in members)

    def _groups(self) -> Iterator[list[Member]]:
        groups: dict[str, list[Member]] = {}
        with zipfile.ZipFile(self._file) as found:
            for info in found.infolist():
                if not info.is_dir() and counts(info.filename):
                    member = self._member(info)
                    groups.setdefault(member.group, []).append(member)
        yield from groups.values()

    def _member(self, info: zipfile.ZipInfo) -> Member:
        where = (
            f"{info.header_offset}:{info.compress_size}:{info.compress_type}:{info.CRC}"
            f":{self._place}"
        )
        name, problem = printable(info.filename), _problem(info)

        def data(most: int) -> bytes:
            if problem:
                raise Unreadable(f"{name!r}: {problem}")
            return unzipped(self._places, where, most)

        return Member(name, info.file_size, lambda: f"zip:{where}", data, problem)


def _problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & ENCRYPTED:
        return "it is encrypted"
    if info.compress_type not in METHODS:
        return "it is packed by another method than deflate"
    return None
