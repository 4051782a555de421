"""`clipfleet collections export|import`: collections as Parquet files."""

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
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Write the ids, embeddings and metadata of a collection to a Parquet file.

    The file appears once it is complete. It holds neither images nor thumbnails.
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
    document = {"file": str(file), "bytes": size}
    print(json_module.dumps(document) if json else f"wrote {file} ({size:,} bytes)")


def import_(
    file: Annotated[Path, typer.Argument(help="Parquet file that `export` wrote.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the collection. Default: the name in the file.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Write an exported file into a collection, which is created if it does not exist.

    Images with the id of an existing image replace it, so an import can be repeated after a stop.
    """
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn())
    with (
        show.client(url, api_key) as client,
        Progress(*columns, console=show.err, transient=True) as progress,
    ):
        bar = progress.add_task("", total=None)
        done = 0

        def show_progress(now: int, total: int) -> None:
            nonlocal done
            done = now
            progress.update(bar, completed=now, total=total)

        try:
            collection = client.import_collection(name, file, progress=show_progress)
        except ImportError as error:
            show.fail(
                ValueError(f"{error.name} is not installed: pip install 'clipfleet[parquet]'")
            )
        except KeyboardInterrupt:
            show.err.print(f"Interrupted; {done} images are imported. Import again to continue.")
            raise SystemExit(INTERRUPTED) from None
    if json:
        show.document(collection)
        return
    show.err.print(f"imported {done} images into {escape(collection.name)}")
    show.collections([collection])
