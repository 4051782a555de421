"""`clipfleet collections export|import`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

from clipfleet.cli import show
from clipfleet.cli.follow import INTERRUPTED
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url


def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Write a collection - ids, vectors, metadata - to a Parquet file.

    The file is there once it is complete. It does not hold the images, nor their thumbnails.
    """
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} exists already; --force overwrites it")
    columns = (TextColumn("exporting"), DownloadColumn())
    with (
        show.client(url, api_key) as client,
        Progress(*columns, console=show.err, transient=True) as progress,
    ):
        bar = progress.add_task("", total=None)
        try:
            client.export_collection(
                name, file, overwrite=force, progress=lambda n: progress.update(bar, completed=n)
            )
        except KeyboardInterrupt:
            show.err.print("Interrupted; no file was written.")
            raise SystemExit(INTERRUPTED) from None
    size = file.stat().st_size
    told = {"file": str(file), "bytes": size}
    print(json_module.dumps(told) if json else f"wrote {file} ({size:,} bytes)")


def import_(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    name: Annotated[
        str | None, typer.Option(help="The collection to make. Default: named as in the file.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Read an exported file into a collection, made as the file says if there is none.

    Importing again overwrites what is in by id, so an import that was stopped can be repeated.
    """
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn())
    with (
        show.client(url, api_key) as client,
        Progress(*columns, console=show.err, transient=True) as progress,
    ):
        bar = progress.add_task("", total=None)
        done = 0

        def tell(now: int, total: int) -> None:
            nonlocal done
            done = now
            progress.update(bar, completed=now, total=total)

        try:
            found = client.import_collection(name, file, progress=tell)
        except ImportError as error:
            show.fail(ValueError(f"{error.name} is missing: pip install 'clipfleet[parquet]'"))
        except KeyboardInterrupt:
            show.err.print(f"Interrupted; {done} images are in. Import again to go on.")
            raise SystemExit(INTERRUPTED) from None
    if json:
        show.document(found)
        return
    show.err.print(f"imported {done} images into {escape(found.name)}")
    show.collections([found])
