"""`clipfleet sources`: sources that the service indexes again and again."""

import json as json_module
import time
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from clipfleet.cli import complete, show
from clipfleet.cli.follow import show_and_exit
from clipfleet.cli.images import (
    DryRun,
    Exif,
    LabelFromFolder,
    MaxDelete,
    Mirror,
    OnMissingOption,
    SourceKind,
    Sources,
    TargetNamespace,
    WebhookSecret,
    WebhookUrl,
    checked_webhook_secret,
    mirror_options,
    naming_webhook_options,
    source_from,
)
from clipfleet.cli.show import COLLECTION, URL, ApiKey, Collection, Json, Url, moment
from clipfleet.common.http.registered import SourceList
from clipfleet.results import RegisteredSource, SourceRun

app = typer.Typer(
    help="Register sources that are indexed on a schedule or for events; list, run and pause them.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Name of the source.")]
Interval = Annotated[
    str | None,
    typer.Option(
        help="Time between the beginnings of two runs: 30s, 15m, 1h, 1d. Default: no schedule, so "
        "that it runs on request and for events alone."
    ),
]
Paused = Annotated[
    bool | None,
    typer.Option("--paused/--not-paused", help="Start no run by itself. Default: as before."),
]
_STATES = {"running": "cyan", "blocked": "red", "paused": "yellow", "due": "cyan"}


@app.command("list")
def list_sources(
    collection: Annotated[
        str | None,
        typer.Option(
            help="Only sources of this collection.", autocompletion=complete.collection_names
        ),
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """List registered sources with their last and next runs."""
    with show.client(url, api_key) as client:
        names = [collection] if collection else [each.name for each in client.collections()]
        sources = [source for name in names for source in client.sources(name)]
    if json:
        show.document(SourceList(sources=sources))
    else:
        _print_table(sources)


@app.command("show")
def show_source(
    name: Name,
    collection: Collection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Show one source: its state, its runs, and why it cannot run."""
    with show.client(url, api_key) as client:
        _print(client.source(collection, name), json=json)


@app.command("add")
def add_source(
    name: Name,
    sources: Sources,
    interval: Interval = None,
    collection: Collection = COLLECTION,
    paused: Paused = None,
    namespace: TargetNamespace = "default",
    label_from_folder: LabelFromFolder = False,
    kind: SourceKind = None,
    exif: Exif = False,
    mirror: Mirror = False,
    missing: OnMissingOption = None,
    max_delete: MaxDelete = None,
    dry_run: DryRun = False,
    webhook: WebhookUrl = None,
    webhook_secret: WebhookSecret = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Register a source that the service can read, or replace the one of this name.

    With --interval the first run begins at once. Its jobs have the rights of the API key of this
    command, at the time of each run.

    Example: clipfleet sources add camera s3://photos/camera --interval 15m
    """
    secret = checked_webhook_secret(webhook_secret) if webhook else None
    mirrored = mirror_options(mirror, missing, max_delete, dry_run)
    source = source_from(sources, kind, label_from_folder)
    with show.client(url, api_key) as client, naming_webhook_options():
        client.create_collection(collection)
        registered = client.register_source(
            collection,
            name,
            source.model_dump(),
            interval=interval,
            paused=paused,
            namespace=namespace,
            exif=exif,
            mirror=mirrored,
            webhook=webhook,
            webhook_secret=secret,
        )
    _print(registered, json=json)


@app.command("run")
def run_source(
    name: Name,
    collection: Collection = COLLECTION,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until the job has ended.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Start a run now, also of a paused source.

    With --wait the exit codes are those of `clipfleet index`: 0, 3 or 1.
    """
    with show.client(url, api_key) as client:
        show_and_exit(client, client.run_source(collection, name), wait=wait, json=json)


@app.command("pause")
def pause_source(
    name: Name,
    collection: Collection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Let a source start no run by itself. A job that is under way goes on."""
    with show.client(url, api_key) as client:
        _print(client.pause_source(collection, name), json=json)


@app.command("resume")
def resume_source(
    name: Name,
    collection: Collection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Let a paused source start runs again. Runs that were missed are made up by one."""
    with show.client(url, api_key) as client:
        _print(client.resume_source(collection, name), json=json)


@app.command("notify")
def notify_source(
    name: Name,
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY...", help="Paths or keys, relative to the source."),
    ],
    collection: Collection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Say that files of a source were created, changed or removed. A job looks at these alone."""
    with show.client(url, api_key) as client:
        answer = client.notify_source(collection, name, keys)
    if json:
        show.document(answer)
    else:
        print(f"{answer.accepted} accepted, {answer.ignored} ignored")


@app.command("delete")
def delete_source(
    name: Name,
    collection: Collection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Delete a source. Its images stay, and a job that is under way goes on."""
    with show.client(url, api_key) as client:
        client.delete_source(collection, name)
    print(json_module.dumps({"deleted": name}) if json else f"deleted {name}")


def _print(source: RegisteredSource, *, json: bool) -> None:
    """Print one source and what its table row has no room for."""
    if json:
        show.document(source)
        return
    _print_table([source])
    for what, text in (
        ("next run", moment(source.next_run) if source.next_run else ""),
        ("running", _run(source.running)),
        ("last run", _run(source.last_run)),
        ("waiting", f"{source.waiting_keys} keys of events" if source.waiting_keys else ""),
        ("rights", f"those of the API key {source.key}" if source.key else ""),
        ("problem", source.problem),
    ):
        if text:
            show.out.print(f"{what}: {escape(show.one_line(text))}")


def _print_table(sources: list[RegisteredSource]) -> None:
    columns = ("name", "collection", "state", "interval", "next run", "last run")
    table = Table(*columns, Column("source", overflow="fold"), box=None)
    for source in sources:
        colour = _STATES.get(source.state, "green")
        last = source.last_run
        table.add_row(
            escape(source.name),
            escape(source.collection),
            f"[{colour}]{source.state}[/]",
            _duration(source.interval) if source.interval else "-",
            _until(source.next_run) if source.next_run else "-",
            f"{last.state} {_ago(last.ended_at or last.began_at)}" if last else "-",
            escape(show.one_line(source.source)),
        )
    show.out.print(table if sources else "no sources")


def _run(run: SourceRun | None) -> str:
    """A run in words; "" for none."""
    if run is None:
        return ""
    words = f"job {run.job} ({run.cause}), began {moment(run.began_at)}"
    if run.state:
        words += f", {run.state}"
    return f"{words}: {run.error}" if run.error else words


def _until(unix_s: float) -> str:
    """How long it is until then: "in 12 min"; "now" when it is over."""
    seconds = unix_s - time.time()
    return f"in {_about(seconds)}" if seconds >= 1 else "now"


def _ago(unix_s: float) -> str:
    """How long ago it was: "3 h ago"."""
    return f"{_about(max(0.0, time.time() - unix_s))} ago"


def _about(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _duration(seconds: float) -> str:
    """Seconds as an interval is written: 90 s, 15m, 1h."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
