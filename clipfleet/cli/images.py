"""`clipfleet index` and `clipfleet search`."""

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clipfleet.cli import show
from clipfleet.cli.show import COLLECTION, URL, ApiKey, Collection, Json, Url
from clipfleet.client import Client, ProblemError
from clipfleet.common.schemas import JobOut, SearchOut

EXIT = {"succeeded": 0, "partial": 3}
SHOWN_FAILURES = 5


def index(
    source: Annotated[Path, typer.Argument(help="A folder of images, or one image.")],
    collection: Collection = COLLECTION,
    namespace: Annotated[str, typer.Option(help="Keeps ids apart.")] = "default",
    label_from_folder: Annotated[
        bool, typer.Option("--label-from-folder", help="Label = name of the image's folder.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the end, with progress.")] = True,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Index images. Ends with 0 when all are in, 3 when some failed, 1 when the job failed."""
    with show.client(url, api_key) as client:
        ensure(client, collection)
        if source.is_file():
            job = client.upload(collection, [source], namespace=namespace)
        else:
            folder = source.expanduser().absolute()
            job = client.index_folder(
                collection, folder, namespace=namespace, label_from_folder=label_from_folder
            )
        if wait:
            job = follow(client, job)
            failures(client, job)
    show.document(job) if json else show.job(job)
    sys.exit(EXIT.get(job.state, 1) if wait else 0)


def search(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image file to search by.")] = None,
    image_id: Annotated[str | None, typer.Option("--id", help="More like this one.")] = None,
    collection: Collection = COLLECTION,
    top_k: Annotated[int, typer.Option(min=1, help="How many matches.")] = 10,
    where: Annotated[
        str | None, typer.Option("--filter", help='As JSON: \'{"label": "church"}\'.')
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out what scores less.")] = None,
    namespace: Annotated[str, typer.Option(help="Where to look.")] = "default",
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Find images by words, by an image, or by the id of one that is in."""
    if sum(one is not None for one in (text, image, image_id)) != 1:
        raise typer.BadParameter("give exactly one of TEXT, --image and --id")
    options: dict[str, Any] = {"top_k": top_k, "namespace": namespace}
    if min_score is not None:
        options["min_score"] = min_score
    with show.client(url, api_key) as client:
        found = _search(client, collection, text, image, image_id, _filter(where), options)
    show.document(found) if json else show.matches(found)


def _search(
    client: Client,
    collection: str,
    text: str | None,
    image: Path | None,
    image_id: str | None,
    where: dict[str, Any] | None,
    options: dict[str, Any],
) -> SearchOut:
    if image is None:
        query = {"text": text} if text is not None else {"id": image_id}
        return client.search(collection, **query, **options, filter=where)
    if not image.is_file():
        raise typer.BadParameter(f"there is no file {image}")
    if where:
        options["filter"] = json_module.dumps(where)
    return client.search_image(collection, image, **options)


def _filter(text: str | None) -> dict[str, Any] | None:
    try:
        where = json_module.loads(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(f"--filter is not JSON: {error}") from error
    if where is not None and not isinstance(where, dict):
        raise typer.BadParameter("--filter must be a JSON object")
    return where


def ensure(client: Client, collection: str) -> None:
    try:
        client.collection(collection)
    except ProblemError as error:
        if error.status != 404:
            raise
        client.create_collection(collection)


def follow(client: Client, job: JobOut) -> JobOut:
    """The job once it has ended, with a progress bar. Ctrl-C leaves the job at work."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=show.err, transient=True) as progress:
        bar = progress.add_task("waiting", total=None, rate="")

        def update(now: JobOut) -> None:
            finished = now.done + now.failed + now.skipped
            said = escape(show.one_line(now.waiting)) if now.waiting else now.state
            rate = f"{now.rate:.0f}/s" if now.rate else ""
            total = now.total or None
            progress.update(bar, completed=finished, total=total, description=said, rate=rate)

        try:
            return client.wait(job.id, update)
        except KeyboardInterrupt:
            progress.stop()
            show.err.print(f"The job goes on. Follow it with: clipfleet jobs show {job.id}")
            sys.exit(130)


def failures(client: Client, job: JobOut) -> None:
    """The first few, on standard error."""
    if not job.failed:
        return
    some = client.failures(job.id, SHOWN_FAILURES)
    for one in some.failures:
        name, reason = escape(show.one_line(one.id)), escape(show.one_line(one.reason))
        show.err.print(f"[red]failed[/] {name}: {reason}")
    if job.failed > len(some.failures):
        show.err.print(f"… {job.failed} in all: clipfleet jobs failures {job.id}")
