"""Writes the rows of an export as webdataset shards, and reads such shards.

A folder holds the shards NAME-000000.tar, NAME-000001.tar, …, `export.json`, which describes the
collection and lists the shards, and `left-out.jsonl`: the rows whose image could not be read, whole
and with the reason. A sample of a shard is called by a number, because the name of a sample ends at
its first dot, and ids have dots, slashes and any letters. Its files are

    NUMBER.jpg   the image, as it is (.png, .webp, …)
    NUMBER.json  id, namespace, uri, label, sizes, and all metadata
    NUMBER.txt   the caption, if the metadata has the text `caption`
    NUMBER.cls   the label, if it is a whole number: readers of webdataset take it for one
    NUMBER.npy   the embedding
"""

import base64
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from clipfleet.client.exports.npy import floats, npy_file, numbers_of
from clipfleet.client.exports.originals import NotReadable, Originals
from clipfleet.client.exports.plan import Progress
from clipfleet.client.exports.spool import RowDict, Shard, Spool, sync
from clipfleet.common.http.exchange import TEXT, WHOLE, Description, NotOurs

SHARD_BYTES = 1_000_000_000  # of one shard; the sample that passes it is its last
READERS = 8  # images that are read at once
BLOCK = tarfile.BLOCKSIZE
INDEX, LEFT_OUT = "export.json", "left-out.jsonl"
FIXED = (*TEXT, *WHOLE, "indexed_at")
VECTORS_AT_ONCE = 1_000

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")

Image = tuple[bytes, str]


def write_shards(
    spool: Spool, folder: Path, progress: Progress | None, originals: Originals
) -> None:
    """Write the shards that are not complete yet, and the description.

    Args:
        spool: the rows.
        folder: the folder of shards, which may hold those of an earlier attempt.
        progress: told how many rows are written.
        originals: reads the images.
    """
    folder.mkdir(exist_ok=True)
    state = spool.state.writing
    with _appending(folder / LEFT_OUT, state.left_out_bytes) as left_out:
        read = originals.read if spool.plan.originals else _nothing
        rows = _read_ahead(spool.rows(state.offset), read)
        row = next(rows, None)
        while row is not None:
            name = f"{spool.plan.collection.name}-{len(state.shards):06}.tar"
            with _ShardFile(folder / name) as shard:
                while row is not None and not shard.is_full(spool.plan.shard_size):
                    offset, content, image = row
                    if isinstance(image, NotReadable):
                        line = json.dumps({"reason": str(image), **content}, ensure_ascii=False)
                        left_out.write(line.encode() + b"\n")
                        state.left_out += 1
                        state.reasons[image.kind] = state.reasons.get(image.kind, 0) + 1
                    else:
                        shard.add(f"{state.rows:09}", content, image)
                    state.offset, state.rows = offset, state.rows + 1
                    if progress:
                        progress("writing", state.rows)
                    row = next(rows, None)
            sync(left_out)
            state.left_out_bytes = left_out.tell()
            if shard.images:
                size = (folder / name).stat().st_size
                state.shards.append(Shard(name=name, images=shard.images, bytes=size))
            spool.save()
    _write_index(spool, folder)


def _nothing(_: RowDict) -> None:
    return None


@contextmanager
def _appending(path: Path, size: int) -> Iterator[IO[bytes]]:
    """The open file, cut to what was there when the last shard was complete."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file
        sync(file)


def _read_ahead(
    rows: Iterator[tuple[int, RowDict]], read: Callable[[RowDict], Image | None]
) -> Iterator[tuple[int, RowDict, Image | NotReadable | None]]:
    """The rows with their images, in their order. Some images are read ahead, at once."""
    with ThreadPoolExecutor(READERS, "originals") as pool:
        ahead = deque[tuple[int, RowDict, Future[Image | NotReadable | None]]]()
        try:
            for offset, row in rows:
                ahead.append((offset, row, pool.submit(_read_or_reason, read, row)))
                if len(ahead) == READERS:
                    first, content, future = ahead.popleft()
                    yield first, content, future.result()
            while ahead:
                first, content, future = ahead.popleft()
                yield first, content, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_or_reason(
    read: Callable[[RowDict], Image | None], row: RowDict
) -> Image | NotReadable | None:
    try:
        return read(row)
    except NotReadable as error:
        return error


class _ShardFile:
    """A shard that has its name once it is complete, and none if it has no sample."""

    def __init__(self, path: Path) -> None:
        self._path, self._unfinished = path, path.with_suffix(".unfinished")
        self.images = self._bytes = 0

    def __enter__(self) -> "_ShardFile":
        self._file = self._unfinished.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.write(bytes(2 * BLOCK))
                sync(self._file)
        if kind is None and self.images:
            os.replace(self._unfinished, self._path)
        else:
            self._unfinished.unlink()

    def is_full(self, images: int) -> bool:
        return self.images >= images or self._bytes >= SHARD_BYTES

    def add(self, key: str, row: RowDict, image: Image | None) -> None:
        when = row["indexed_at"] // 1_000
        if image is not None:
            self._add(f"{key}.{image[1]}", image[0], when)
        about = {**{name: row[name] for name in FIXED}, **row["metadata"]}
        self._add(f"{key}.json", json.dumps(about, ensure_ascii=False).encode(), when)
        caption, label = row["metadata"].get("caption"), row["label"] or ""
        if isinstance(caption, str) and caption.strip():
            self._add(f"{key}.txt", caption.encode(), when)
        if _WHOLE_NUMBER.fullmatch(label):
            self._add(f"{key}.cls", label.encode(), when)
        self._add(f"{key}.npy", npy_file(base64.b64decode(row["embedding"])), when)
        self.images += 1

    def _add(self, name: str, data: bytes, when: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(data), max(0, when)
        # Without TarFile, which keeps every member in memory.
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self._file.write(data + bytes(-len(data) % BLOCK))
        self._bytes += BLOCK + len(data)


def _write_index(spool: Spool, folder: Path) -> None:
    state = spool.state.writing
    index = {
        "clipfleet": spool.plan.description.model_dump(exclude={"columns"}),
        "images": sum(shard.images for shard in state.shards),
        "shards": [shard.model_dump() for shard in state.shards],
        "left_out": {"images": state.left_out, "reasons": state.reasons, "file": LEFT_OUT},
    }
    with (folder / INDEX).open("wb") as file:
        file.write(json.dumps(index, ensure_ascii=False, indent=2).encode())
        sync(file)


class ShardsExport:
    """A folder of exported shards, to be imported. It is used like `ExportFile`.

    Attributes:
        description: the collection that was exported.
        rows: number of images, those in `left-out.jsonl` included.

    Raises:
        NotOurs: the folder is not an export, or is damaged. Raised by `pieces`, too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            index = json.loads((folder / INDEX).read_bytes())
            self.description = Description.model_validate(index["clipfleet"])
            self._shards = [Shard.model_validate(shard) for shard in index["shards"]]
            self._left_out = int(index["left_out"]["images"])
        except FileNotFoundError as error:
            raise self._refusal(f"it has no {INDEX}") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._refusal(f"its {INDEX} cannot be understood") from error
        self.rows = sum(shard.images for shard in self._shards) + self._left_out
        for shard in self._shards:
            path = folder / Path(shard.name).name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise self._refusal(f"the shard {path.name} is missing or incomplete")

    def pieces(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield (namespace, vectors for `upsert`), with as many vectors as one request takes."""
        by_namespace: dict[str, list[dict[str, Any]]] = {}
        size = max(1, min(VECTORS_AT_ONCE, 200_000 // self.description.dim))
        for namespace, vector in self._vectors():
            vectors = by_namespace.setdefault(namespace, [])
            vectors.append(vector)
            if len(vectors) == size:
                yield namespace, by_namespace.pop(namespace)
        yield from by_namespace.items()

    def _vectors(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for shard in self._shards:
            images = 0
            for key, about, numbers in self._samples(Path(shard.name).name):
                images += 1
                yield self._vector(f"sample {key} of {shard.name}", about, numbers)
            if images != shard.images:
                raise self._refusal(f"{shard.name} has {images} samples, not {shard.images}")
        if self._left_out:
            yield from self._left_out_vectors()

    def _samples(self, name: str) -> Iterator[tuple[str, Any, list[float]]]:
        about: dict[str, Any] = {}
        try:
            with (self._folder / name).open("rb") as file:
                for member in _members(file):
                    key, _, ending = member.name.partition(".")
                    if ending == "json":
                        about = {key: json.loads(file.read(member.size))}
                    elif ending == "npy":
                        yield key, about.pop(key), numbers_of(file.read(member.size))
        except (tarfile.TarError, ValueError, KeyError, OSError) as error:
            raise self._refusal(f"{name} is damaged, or was not written by an export") from error

    def _left_out_vectors(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            with (self._folder / LEFT_OUT).open("rb") as file:
                for number, line in enumerate(file, 1):
                    row = json.loads(line)
                    numbers = floats(base64.b64decode(row["embedding"]))
                    about = {**{name: row[name] for name in FIXED}, **row["metadata"]}
                    yield self._vector(f"line {number} of {LEFT_OUT}", about, numbers)
        except (ValueError, KeyError, TypeError, OSError) as error:
            if isinstance(error, NotOurs):
                raise
            raise self._refusal(f"{LEFT_OUT} is missing or damaged") from error

    def _vector(
        self, place: str, about: dict[str, Any], values: list[float]
    ) -> tuple[str, dict[str, Any]]:
        if len(values) != self.description.dim:
            wrong = f"{len(values)} numbers, not {self.description.dim}"
            raise self._refusal(f"the vector of {place} has {wrong}")
        if not all(abs(value) < float("inf") for value in values):
            raise self._refusal(f"the vector of {place} is not finite")
        fixed = {name: about[name] for name in (*TEXT, *WHOLE) if name != "namespace"}
        metadata = {name: value for name, value in about.items() if name not in FIXED}
        return str(about["namespace"]), {**fixed, "metadata": metadata, "values": values}

    def _refusal(self, reason: str) -> NotOurs:
        return NotOurs(f"{self._folder} cannot be imported: {reason}")


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a shard; the file stands at the content of each."""
    while (header := file.read(BLOCK)) != bytes(BLOCK):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        begin = file.tell()
        yield member
        file.seek(begin + member.size + -member.size % BLOCK)
