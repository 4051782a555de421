"""The work folder of an export: what came from the service, and how far the export is.

It lies beside the target and is called like it, with `.part` at the end. Rows are appended to a
file of JSON lines. The state is replaced after each page, once the page is on disk: an export that
was killed at any moment goes on at the last page.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from pydantic import BaseModel, ValidationError

from clipfleet.client.exports.plan import ExportPlan
from clipfleet.common.http.collections import RowPage, RowsIn
from clipfleet.errors import Error

RowDict = dict[str, Any]


class CollectionChanged(Error):
    """The collection was deleted and created again while it was exported."""


class Shard(BaseModel):
    """A complete shard."""

    name: str
    images: int
    bytes: int


class ShardsState(BaseModel):
    """How far the writing of shards is: `offset` bytes of the rows, and `rows` of them."""

    offset: int = 0
    rows: int = 0
    shards: list[Shard] = []
    left_out: int = 0
    left_out_bytes: int = 0
    reasons: dict[str, int] = {}


class State(BaseModel):
    """How far an export is."""

    v: Literal[1] = 1
    plan: dict[str, Any]
    cursor: str = ""
    hits_read: int = 0
    complete: bool = False
    rows: int = 0
    bytes: int = 0
    gone: int = 0
    truncated: str | None = None
    publishing: bool = False
    writing: ShardsState = ShardsState()


class Spool:
    """The work folder of one export, held by this process.

    Args:
        plan: what is exported.
        overwrite: whether an existing target is replaced.
        restart: whether an unfinished export is thrown away.

    Attributes:
        plan: what is exported.
        folder: the work folder.
        state: how far the export is.

    Raises:
        FileExistsError: the target exists, and `overwrite` is False.
        ValueError: an unfinished export with other arguments is there, another process writes the
            same target, or the target may not be replaced.
        OSError: the folder cannot be written.
    """

    def __init__(self, plan: ExportPlan, *, overwrite: bool = False, restart: bool = False) -> None:
        self.plan = plan
        self.folder = plan.target.with_name(plan.target.name + ".part")
        self._remove_what_is_published()
        if plan.target.exists() and not overwrite:
            raise FileExistsError(f"{plan.target} exists already")
        require_replaceable(plan)
        self.folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder / "lock", plan.target)
        try:
            if restart:
                self._clear()
            self.state = self._read_state()
            self._file = self._open_rows()
        except BaseException:
            self._lock.close()
            raise
        self._hits: list[tuple[str, float]] | None = self._read_hits()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        is_empty = not self.state.rows and self._hits is None
        if self.state.publishing or (error is not None and is_empty and not self.state.complete):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    # The matches of the query

    @property
    def needs_hits(self) -> bool:
        """Whether the search has not been made yet."""
        return self.plan.query is not None and self._hits is None

    @property
    def scores(self) -> dict[str, float] | None:
        """The score of each match of the query, by id; None without a query."""
        return None if self._hits is None else dict(self._hits)

    def save_hits(self, hits: Sequence[tuple[str, float]], truncated: str | None) -> None:
        """Keep the matches of the query: an export that goes on has the same ones."""
        self._hits = list(hits)
        self._replace("hits.json", json.dumps([truncated, self._hits], ensure_ascii=False))
        self.state.truncated = truncated

    # Rows

    def next_request(self) -> RowsIn | None:
        """The request for the next page; None when all rows are here."""
        if self.state.complete:
            return None
        if self._hits is None:
            return self.plan.page(self.state.cursor)
        some = self._hits[self.state.hits_read :][: self.plan.ids_per_page]
        if not some:
            self.state.complete = True
            self.save()
            return None
        return self.plan.page_of([image_id for image_id, _ in some])

    def append(self, page: RowPage) -> None:
        """Write a page to disk.

        Raises:
            CollectionChanged: the page is of another collection with this name.
        """
        if page.created_at != self.plan.collection.created_at:
            raise CollectionChanged(
                f"the collection {self.plan.collection.name!r} was deleted and created again "
                "while it was exported; begin the export anew with --restart (restart=True)"
            )
        for row in page.rows:
            self._file.write(_line(row.model_dump()))
        sync(self._file)
        state = self.state
        state.rows += len(page.rows)
        state.bytes = self._file.tell()
        if self._hits is None:
            state.cursor, state.complete = page.next or "", page.next is None
        else:
            requested = len(self._hits[state.hits_read :][: self.plan.ids_per_page])
            state.hits_read += requested
            state.gone += requested - len(page.rows)
        self.save()

    def rows(self, offset: int = 0) -> Iterator[tuple[int, RowDict]]:
        """Read the rows again.

        Args:
            offset: where to begin, bytes.

        Yields:
            (the offset behind the row, the row).
        """
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                yield offset, json.loads(line)

    # The state and the target

    def save(self) -> None:
        """Write the state to disk."""
        self._replace("state.json", self.state.model_dump_json())

    def publish(self, written: Path) -> None:
        """Give the finished file or folder the name of the target, in one step."""
        self.state.publishing = True
        self.save()
        target = self.plan.target
        if written.is_dir() and target.is_dir():
            old = self.folder / "replaced"
            target.rename(old)
        os.replace(written, target)

    def _remove_what_is_published(self) -> None:
        """Remove the work folder of an export that was killed after its target had its name."""
        with suppress(OSError, ValidationError):
            state = State.model_validate_json((self.folder / "state.json").read_bytes())
            if state.publishing and not (self.folder / written_name(self.plan)).exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def _read_state(self) -> State:
        path, identity = self.folder / "state.json", self.plan.identity()
        if not path.exists():
            self._clear()
            return State(plan=identity)
        try:
            state = State.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(
                f"the unfinished export in {self.folder} cannot be continued: its state is "
                "damaged; --restart (restart=True) begins anew"
            ) from error
        if state.plan != json.loads(json.dumps(identity)):
            different = sorted(key for key in identity if state.plan.get(key) != identity[key])
            raise ValueError(
                f"{self.folder} holds an unfinished export with another "
                f"{' and '.join(different) or 'plan'}; finish it with the same options, or begin "
                "anew with --restart (restart=True)"
            )
        state.publishing = False
        return state

    def _open_rows(self) -> BufferedWriter:
        path = self.folder / "rows.jsonl"
        file = path.open("r+b" if path.exists() else "w+b")
        if path.stat().st_size < self.state.bytes:
            file.close()
            raise ValueError(
                f"the unfinished export in {self.folder} cannot be continued: its rows are "
                "incomplete; --restart (restart=True) begins anew"
            )
        file.truncate(self.state.bytes)
        file.seek(self.state.bytes)
        return file  # type: ignore[return-value]

    def _read_hits(self) -> list[tuple[str, float]] | None:
        path = self.folder / "hits.json"
        if not path.exists():
            return None
        self.state.truncated, hits = json.loads(path.read_bytes())
        return [(str(image_id), float(score)) for image_id, score in hits]

    def _replace(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.new"
        with path.open("wb") as file:
            file.write(text.encode())
            sync(file)
        os.replace(path, self.folder / name)


def written_name(plan: ExportPlan) -> str:
    """The name of the finished file or folder in the work folder."""
    return "shards" if plan.format == "webdataset" else f"finished-{plan.target.name}"


def require_replaceable(plan: ExportPlan) -> None:
    """Raise ValueError when an existing target is not what an export writes."""
    target = plan.target
    if target.is_dir() and plan.format != "webdataset":
        raise ValueError(f"{target} is a folder; name a file")
    if plan.format == "webdataset" and target.exists():
        is_export = target.is_dir() and (
            (target / "export.json").exists() or not any(target.iterdir())
        )
        if not is_export:
            raise ValueError(f"{target} is no export of clipfleet, so it is not replaced")


def sync(file: IO[bytes]) -> None:
    """Write what a file holds in memory to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _line(row: RowDict) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _locked(path: Path, target: Path) -> IO[bytes]:
    """The open lock file. The lock ends with the process, however that ends."""
    file = path.open("ab")
    with suppress(ImportError):  # Windows has no flock
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ValueError(f"another process exports to {target} now") from error
    return file
