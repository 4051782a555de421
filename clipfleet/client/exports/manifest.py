"""Writes the rows of an export as a manifest: JSON lines or CSV, which `clipfleet index` reads."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clipfleet.client.exports.columns import Columns
from clipfleet.client.exports.plan import Progress
from clipfleet.client.exports.spool import RowDict, Spool, sync
from clipfleet.common.http.sources import format_of

FIXED = ("uri", "id", "label", "namespace", "width", "height", "bytes")
MAX_CSV_COLUMNS = 2_000


def write_manifest(spool: Spool, path: Path, progress: Progress | None) -> None:
    """Write a manifest.

    Args:
        spool: the rows.
        path: the new file.
        progress: told how many rows are written.

    Raises:
        ValueError: a CSV would have too many columns.
    """
    target = spool.plan.target.name.lower()
    write = _write_csv if format_of(target) == "csv" else _write_lines
    with _opened(path, compressed=target.endswith(".gz")) as out:
        for done in write(spool, out):
            if progress and done % 1_000 == 0:
                progress("writing", done)
    if progress:
        progress("writing", spool.state.rows)


def _write_lines(spool: Spool, out: IO[bytes]) -> Iterator[int]:
    for done, (_, row) in enumerate(spool.rows(), 1):
        line = {**_fixed(row), **row["metadata"]}
        out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        yield done


def _write_csv(spool: Spool, out: IO[bytes]) -> Iterator[int]:
    columns = Columns({}, MAX_CSV_COLUMNS)
    for _, row in spool.rows():
        columns.add(row["metadata"])
    if columns.overflow:
        raise ValueError(
            f"the images have more than {MAX_CSV_COLUMNS} different metadata keys, which are too "
            "many columns for a CSV file; end the name in .jsonl"
        )
    text = io.TextIOWrapper(out, "utf-8", newline="")
    delimiter = "\t" if ".tsv" in spool.plan.target.name.lower() else ","
    names = list(columns.names)
    # Without quotes, by which `index` would not see that tabs separate the names.
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow([*FIXED, *names])
    # Quotes around every text keep the blanks at its beginning.
    writer = csv.writer(
        text, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    for done, (_, row) in enumerate(spool.rows(), 1):
        fixed, metadata = _fixed(row), row["metadata"]
        cells = [*(fixed.get(name, "") for name in FIXED), *map(metadata.get, names)]
        writer.writerow([_cell(value) for value in cells])
        yield done
    text.flush()
    text.detach()


def _fixed(row: RowDict) -> dict[str, Any]:
    """What the service keeps of each image; `index` reads `uri`, `id` and `label` of it."""
    return {name: row[name] for name in FIXED if row[name] is not None}


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


@contextmanager
def _opened(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if compressed:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield file
        sync(file)
