"""Packs and opens archives, for their tests."""

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfleet.common.ledger import Item
from clipfleet.workers.sources import Source
from clipfleet.workers.storage.items import read_item
from support.source_helpers import Web, source, storage_at

Members = Mapping[str, bytes] | Sequence[tuple[str, bytes]]
KINDS = ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"]


def packed(name: str, members: Members) -> bytes:
    """An archive of the kind that the ending of `name` says."""
    pairs = list(members.items() if isinstance(members, Mapping) else members)
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in pairs:
                archive.writestr(member, data)
        return out.getvalue()
    packing = name.rpartition(".")[2]
    mode: Any = "w" if packing == "tar" else f"w:{packing.replace('tgz', 'gz')}"
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for member, data in pairs:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def archive(folder: Path, members: Members | bytes, name: str = "a.tar", **limits: int) -> Source:
    path = folder / name
    path.write_bytes(members if isinstance(members, bytes) else packed(name, members))
    return source(folder, {"type": "archive", "uri": str(path)}, None, **limits)


def names(items: Sequence[Item]) -> list[str]:
    return [item.id.partition("#")[2] for item in items]


def data_of(folder: Path, item: Item, web: Web | None = None, **limits: int) -> bytes:
    return read_item(item.read, storage_at(folder, web, **limits))
