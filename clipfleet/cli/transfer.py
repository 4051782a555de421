"""`clipfleet collections export|import`: collections, and parts of them, as files."""

import json as json_module
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

from clipfleet.cli import show
from clipfleet.cli.follow import INTERRUPTED, show_and_exit
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url, Where
from clipfleet.client import Client
from clipfleet.client.exports.plan import MAX_TOP_K, Format, Stage, format_for
from clipfleet.client.payloads import image_url
from clipfleet.errors import ProblemError
from clipfleet.results import Export

PARQUET_MISSING = "pyarrow is not installed: pip install 'clipfleet[parquet]'"
LEFT_OUT = 3  # exit code, as that of a job of which images failed
REASONS = 5  # shown
ENDINGS = {"parquet": ".parquet", "manifest": ".jsonl", "webdataset": "-webdataset"}


def export(
    name: Name,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="File (.parquet, .jsonl, .csv) or, for webdataset, folder to write. Default: the "
            "name of the collection, in this folder."
        ),
    ] = None,
    target_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="parquet: metadata and embeddings. manifest: JSON lines or CSV that `clipfleet "
            "index` reads. webdataset: tar files with images, metadata and embeddings. Default: by "
            "the name of FILE, else parquet.",
        ),
    ] = None,
    where: Where = None,
    query: Annotated[
        str | None, typer.Option(help="Words: export the --top-k best matches, not all images.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="The same with an image: a file or a URL.")
    ] = None,
    image_id: Annotated[
        str | None, typer.Option("--id", help="The same with the id of an indexed image.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, max=MAX_TOP_K, help="Matches of the query at most.")
    ] = 1_000,
    namespace: Annotated[
        str | None,
        typer.Option(help="Namespace of the images. Default: all; of a query: default."),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Images in one shard at most.")] = 10_000,
    originals: Annotated[
        bool, typer.Option(help="Add the image files to shards, as the service gives them.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing export.")] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew instead of going on where an export stopped."),
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Export a collection, or the part that passes a filter or matches a query.

    The export appears under its name once it is complete. What is there after Ctrl-C or an error
    is kept in FILE.part: the same command goes on there.

    The exit code is 3 if images were left out because their files cannot be read.
    """
    terms = {"text": query, "image": image, "id": image_id}
    search = {term: value for term, value in terms.items() if value is not None}
    if len(search) > 1:
        raise typer.BadParameter("give one of --query, --image and --id")
    if image and not image_url(image) and not Path(image).expanduser().is_file():
        raise typer.BadParameter(f"there is no file {image}")
    chosen, target = _target(name, file, target_format)
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists already; --force overwrites it")
    selection = {"filter": show.filter_of(where), "namespace": namespace}
    with show.client(url, api_key) as client:
        if chosen == "parquet" and find_spec("pyarrow") is None:
            if search or any(selection.values()):
                show.fail(ValueError(f"a part of a collection as Parquet: {PARQUET_MISSING}"))
            _stream(client, name, target, force=force, json=json)
            return
        done = _export(
            client,
            name,
            target,
            format=chosen,
            **selection,
            query=search or None,
            top_k=top_k,
            shard_size=shard_size,
            originals=originals,
            overwrite=force,
            restart=restart,
        )
    print(json_module.dumps({"file": done.path, **done.model_dump()}) if json else _summary(done))
    _explain(done)
    sys.exit(LEFT_OUT if done.left_out else 0)


def _target(name: str, file: Path | None, chosen: Format | None) -> tuple[Format, Path]:
    if file is None:
        chosen = chosen or "parquet"
        return chosen, Path(name + ENDINGS[chosen])
    try:
        return chosen or format_for(file), file.expanduser()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _export(client: Client, name: str, target: Path, **options: Any) -> Export:
    total = _total(client, name, options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=show.err, transient=True) as bars:
        bar = bars.add_task("reading", total=total)

        def show_progress(stage: Stage, images: int) -> None:
            bars.update(bar, description=stage, completed=images)

        try:
            return client.export_images(name, target, **options, progress=show_progress)
        except KeyboardInterrupt:
            bars.stop()
            part = escape(f"{target}.part")
            show.err.print(f"Interrupted; {part} keeps what is there. Export again to go on.")
            raise SystemExit(INTERRUPTED) from None


def _total(client: Client, name: str, options: dict[str, Any]) -> int | None:
    """The number of images to export; None if it is not known before."""
    if options["query"]:
        return None
    if options["namespace"]:
        return client.count(name, filter=options["filter"], namespace=options["namespace"])
    return None if options["filter"] else client.collection(name).count


def _summary(done: Export) -> str:
    shards = "" if done.shards is None else f" in {done.shards} shards"
    return f"wrote {done.path}: {done.images:,} images{shards} ({done.bytes:,} bytes)"


def _explain(done: Export) -> None:
    """Print on standard error what an export does not have."""
    if done.left_out:
        show.err.print(
            f"[yellow]{done.left_out} images were left out[/] of the shards; left-out.jsonl has "
            "them, each with its reason:"
        )
        often = sorted(done.reasons.items(), key=lambda entry: -entry[1])
        for reason, count in often[:REASONS]:
            show.err.print(f"  {count} times: {escape(reason)}")
    if done.not_indexable:
        show.err.print(
            f"[yellow]{done.not_indexable} rows[/] have no address that `clipfleet index` can read "
            "(uploads, own vectors, images in archives)."
        )
    if done.gone:
        show.err.print(f"[yellow]{done.gone} matches[/] were deleted while they were exported.")
    if done.truncated:
        show.err.print(f"[yellow]There may be more matches:[/] of the limit {done.truncated}.")


def _stream(client: Client, name: str, file: Path, *, force: bool, json: bool) -> None:
    """Write the Parquet file that the service makes of a whole collection."""
    columns = (TextColumn("exporting"), DownloadColumn())
    with Progress(*columns, console=show.err, transient=True) as progress:
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
    file: Annotated[
        Path,
        typer.Argument(help="What `export` wrote: a Parquet file, a folder of shards, a manifest."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the collection. Default: the name in the file.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Write an export into a collection, which is created if it does not exist.

    The embeddings of a Parquet file or of shards are stored as they are, without a model. Images
    with the id of an existing image replace it, so an import can be repeated after a stop.

    A manifest has no embeddings: its images are indexed, as `clipfleet index` does it.
    """
    if _is_manifest(file):
        _index(file, name, url, api_key, json)
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
        except ImportError:
            show.fail(ValueError(PARQUET_MISSING))
        except KeyboardInterrupt:
            show.err.print(f"Interrupted; {done} images are imported. Import again to continue.")
            raise SystemExit(INTERRUPTED) from None
        except ProblemError as error:
            progress.stop()
            if error.status == 409:
                source = f"{file}/SHARD.tar" if file.is_dir() else str(file)
                show.err.print(
                    "Embeddings fit only a collection of the same model, metric, dimension and "
                    f"fields. To embed the images anew: clipfleet index {escape(source)} "
                    "--collection NAME"
                )
            raise
    if json:
        show.document(collection)
        return
    show.err.print(f"imported {done} images into {escape(collection.name)}")
    show.collections([collection])


def _is_manifest(file: Path) -> bool:
    try:
        return not file.is_dir() and format_for(file) == "manifest"
    except ValueError:
        return False


def _index(file: Path, name: str | None, url: str, api_key: str | None, json: bool) -> None:
    if name is None:
        raise typer.BadParameter("a manifest does not name its collection; give --name")
    if not file.exists():
        raise typer.BadParameter(f"there is no file {file}")
    with show.client(url, api_key) as client:
        job = client.index(name, {"type": "manifest", "uri": str(file.expanduser().absolute())})
        show_and_exit(client, job, wait=True, json=json)
