"""Prints results and errors: tables for people, JSON for scripts. Has the shared options."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipfleet.cli import complete
from clipfleet.client import Client
from clipfleet.client._config import DEFAULT_URL, PROXY_SETTINGS
from clipfleet.client.progress import line
from clipfleet.common.http.schemas import CollectionOut, ImageOut, JobOut, SearchOut
from clipfleet.errors import Error, InvalidRequest, NotFound, ProblemError, Unreachable
from clipfleet.results import Timing

# emoji=False: Rich would print the file name `a:x:.jpg` with a picture in its middle.
out = Console(soft_wrap=True, emoji=False, highlight=False)
# For names and ids, which must be neither cut nor folded at the terminal's width.
_wide = Console(width=10_000, soft_wrap=True, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, emoji=False, highlight=False)

Url = Annotated[str, typer.Option(envvar="CLIPFLEET_URL", help="Address of the service.")]
ApiKey = Annotated[str | None, typer.Option(envvar="CLIPFLEET_API_KEY", help="API key to send.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[
    str,
    typer.Argument(help="Name of the collection.", autocompletion=complete.collection_names),
]
Where = Annotated[
    str | None, typer.Option("--filter", help='Metadata filter as JSON: \'{"label": "church"}\'.')
]
Namespace = Annotated[str, typer.Option(help="Namespace of the images.")]
Collection = Annotated[
    str, typer.Option(help="Name of the collection.", autocompletion=complete.collection_names)
]

URL = DEFAULT_URL
COLLECTION = "images"
SHOWN_NAMES = 20  # of collections, in an error

_STATES = {"succeeded": "green", "partial": "yellow", "failed": "red", "cancelled": "yellow"}


def filter_of(text: str | None) -> dict[str, Any] | None:
    """The value of --filter. BadParameter if it is not a JSON object."""
    try:
        where = json.loads(text) if text else None
    except RecursionError as error:
        raise typer.BadParameter("--filter is nested too deeply") from error
    except ValueError as error:
        raise typer.BadParameter(f"--filter {text!r} is not JSON. {_FILTER_EXAMPLE}") from error
    if where is not None and not isinstance(where, dict):
        raise typer.BadParameter(f"--filter must be a JSON object. {_FILTER_EXAMPLE}")
    return where


_FILTER_EXAMPLE = """Write for example --filter '{"label": "church", "year": {"$gt": 2010}}'"""


@contextmanager
def client(url: str, api_key: str | None) -> Iterator[Client]:
    """A client for the values of --url and --api-key.

    The error for a collection that does not exist gets the names of those that do.
    """
    with Client(url, api_key=api_key) as opened:
        try:
            yield opened
        except NotFound as error:
            if error.collection:
                error.detail = _no_collection(opened, error.collection)
            raise


def _no_collection(client: Client, name: str) -> str:
    detail = f"there is no collection {name!r}"
    names = []
    with suppress(Error):
        names = [collection.name for collection in client.collections()]
    if near := get_close_matches(name, names, n=1):
        detail += f"; did you mean {near[0]!r}?"
    elif names:
        more = f", … ({len(names)} in all)" if len(names) > SHOWN_NAMES else ""
        detail += f"; there are: {', '.join(names[:SHOWN_NAMES])}{more}"
    else:
        option = "" if name == COLLECTION else f" --collection {name}"
        detail += f" yet; `clipfleet index FOLDER{option}` creates it"
    return detail


def fail(error: Exception, code: int = 1) -> NoReturn:
    """Print an error as one line on standard error and exit.

    With --json, the problem document goes to standard output, too.
    """
    if "--json" in sys.argv:
        problem = error.problem if isinstance(error, ProblemError) else {"detail": str(error)}
        print(json.dumps(problem))
    text = _with_options(error) if isinstance(error, InvalidRequest) else str(error)
    err.print(f"[red]clipfleet:[/] {escape(one_line(text))}")
    if isinstance(error, Unreachable) and PROXY_SETTINGS not in text:
        err.print("Start a service with `clipfleet up`, or give its address with --url.")
    if isinstance(error, ProblemError) and error.status == 401:
        err.print("Give a key with --api-key or CLIPFLEET_API_KEY.")
    sys.exit(code)


def _with_options(error: InvalidRequest) -> str:
    """The message of an error with the names of options in the place of fields of the API."""
    root, _, place = error.field.partition(".")
    text = error.detail
    if root in _ARGUMENTS and text.startswith(f"{error.field}: "):
        text = f"{_ARGUMENTS[root]}: {place}{': ' if place else ''}{text[len(error.field) + 2 :]}"
    return _FIELDS.sub(lambda match: _option(match[0]), text)


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


# Fields of the API that options of the same name set.
_SAME = (
    "api_key", "collapse", "collection", "dim", "exact", "filter", "group_by", "group_size",
    "limit", "metric", "min_score", "model", "namespace", "offset", "sample", "seed", "state",
    "timeout_s", "top_k", "url",
)  # fmt: skip
_ARGUMENTS = {
    **{field: _option(field) for field in _SAME},
    "ids": "--id", "id": "--id", "image": "--image", "text": "TEXT", "fields": "--field", "k": "-k",
}  # fmt: skip
_FIELDS = re.compile(r"(?<![\w-])(?:top_k|min_score|group_by|group_size)\b")


def document(model: BaseModel) -> None:
    """Print a result as JSON."""
    print(model.model_dump_json(indent=2))


def image(image: ImageOut) -> None:
    """Print what is known of an image, one fact a line."""
    size = f"{image.width}x{image.height} pixels, {image.bytes} bytes" if image.width else ""
    facts = {
        "id": image.id,
        "uri": image.uri,
        "label": image.label or "",
        "size": size,
        "indexed": moment(image.indexed_at / 1000),
    }
    for key, value in image.metadata.items():
        facts[f"metadata {key}"] = json.dumps(value, ensure_ascii=False)
    for what, text in facts.items():
        if text:
            out.print(f"{escape(one_line(what))}: {escape(one_line(text))}", soft_wrap=True)


def one_line(text: str) -> str:
    """The text with control characters and line breaks escaped: names can hold any character."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def matches(result: SearchOut, first: int = 1) -> None:
    """Print matches with their whole ids, which scripts and `search --id` need.

    Args:
        result: the matches.
        first: rank of the first match, for later pages.
    """
    collapsed = any(match.duplicates is not None for match in result.matches)
    alike = ["alike"] if collapsed else []
    table = Table("#", "score", *alike, "label", "id", box=None, pad_edge=False)
    for rank, match in enumerate(result.matches, first):
        others = [f"+{match.duplicates}" if match.duplicates else ""] if collapsed else []
        label, name = escape(one_line(match.label or "")), escape(one_line(match.id))
        table.add_row(str(rank), f"{match.score:.3f}", *others, label, name)
    _print_matches(table, result, first)


def pictures(result: SearchOut, name: Callable[[str], str]) -> None:
    """Print matches with names for people.

    Args:
        result: the matches.
        name: gives the name of an id.
    """
    table = Table("#", "score", "image", "label", box=None, pad_edge=False)
    for rank, match in enumerate(result.matches, 1):
        label, shown = escape(one_line(match.label or "")), escape(one_line(name(match.id)))
        table.add_row(str(rank), f"{match.score:.3f}", shown, label)
    _print_matches(table, result)


_TRUNCATED = {
    "answer_bytes": "an answer has no room for more bytes (CLIPFLEET_LIMITS__ANSWER_BYTES); go on "
    "with --offset {next}",
    "candidates": "the service examines no more matches (CLIPFLEET_LIMITS__CANDIDATES); --filter "
    "reaches others",
    "window": "the service ranks no more matches; --filter reaches others",
}


def no_matches(client: Client, collection: str, filtered: bool) -> None:
    """Say on standard error why a search may have found nothing.

    Args:
        client: the client that searched.
        collection: the collection.
        filtered: whether the search had a filter or another limit.
    """
    with suppress(Error):
        count = client.collection(collection).count
        running = client.jobs(1, collection=collection, state=["running", "queued"])
        for unfinished in running:
            err.print(f"Job {unfinished.id} is still {line(unfinished)}.", markup=False)
        if not count and not running:
            name = "" if collection == COLLECTION else f" --collection {collection}"
            err.print(f"The collection is empty: clipfleet index FOLDER{name}", markup=False)
        elif count and filtered:
            err.print(
                f"The collection has {count:,} images; none passes the limits of this search "
                "(--filter, --min-score, --namespace, --offset).",
                markup=False,
            )


def _print_matches(table: Table, result: SearchOut, first: int = 1) -> None:
    _wide.print(table if result.matches else "no matches")
    err.print(f"[dim]{len(result.matches)} matches in {result.took_ms:.0f} ms[/]")
    if result.truncated_texts:
        what = "A text is" if len(result.truncated_texts) == 1 else "Several texts are"
        err.print(f"[yellow]{what} longer than the model reads:[/] only the beginning counts.")
    if result.truncated:
        reason = _TRUNCATED.get(result.truncated, f"of the limit {result.truncated}")
        reason = reason.format(next=first - 1 + len(result.matches))
        err.print(f"[yellow]There may be more:[/] {escape(reason)}.")


def timing(timing: Timing | None) -> None:
    """Print where the time of a request went, on standard error."""
    stages = {} if timing is None else timing.model_dump(exclude_none=True)
    shown = ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in stages.items())
    err.print(f"{shown} ms" if shown else "the service does not say where its time went")


def jobs(listed: list[JobOut]) -> None:
    """Print a table of jobs."""
    table = Table("id", "collection", "state", "done", "failed", "skipped", "total", box=None)
    for job in listed:
        counts = (str(n) for n in (job.done, job.failed, job.skipped, job.total))
        table.add_row(job.id, job.collection, state(job), *counts)
    out.print(table if listed else "no jobs")


def job(job: JobOut) -> None:
    """Print one job and what its table row has no room for."""
    jobs([job])
    took = job.finished_at and job.started_at and job.finished_at - job.started_at
    for what, text in (
        ("source", job.source),
        ("started", moment(job.started_at or job.created_at)),
        ("took", f"{took:.1f} s" if took else ""),
        ("rate", f"{job.rate:.1f} images/s" if job.rate else ""),
        ("mirror", mirror(job)),
        ("replaced", _replaced(job) if job.replaced else ""),
        ("left out", left_out(job)),
        ("note", "; ".join(f"{text} ({count})" for text, count in job.remarks.items())),
        ("error", job.error),
        ("waiting", job.waiting),
        ("webhook", job.webhook),
        ("retry of", job.retry_of),
        ("retried by", job.retried_by),
    ):
        if text:
            out.print(f"{what}: {escape(one_line(text))}")


def _replaced(job: JobOut) -> str:
    updated = f", {job.updated} of them only the label or metadata" if job.updated else ""
    return f"{job.replaced} (other content than before{updated})"


def moment(unix_s: float) -> str:
    """A time of this machine's time zone, to the second."""
    return f"{datetime.fromtimestamp(unix_s).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def mirror(job: JobOut) -> str:
    """What a mirror did, or would do: "3 images gone from the source, 3 deleted"; "" for none."""
    result = job.mirror
    if result is None or result.gone is None:
        return ""
    gone = f"{result.gone} {'image' if result.gone == 1 else 'images'} gone from the source"
    if result.dry_run:
        parts = [f"dry run: {result.new} new, {result.changed} perhaps changed, {gone}"]
    else:
        parts = [f"{job.skipped} unchanged, {gone}, {result.deleted} deleted"]
    if result.kept_because and result.kept_because != job.error:
        parts.append(result.kept_because)
    return "; ".join(parts)


def left_out(job: JobOut) -> str:
    """The files that a job left out, by suffix: "12 files (10 .heic, 2 .mov)"; "" for none."""
    if not job.left_out:
        return ""
    names = {"": "without suffix", "*": "others"}
    counts = ", ".join(f"{count} {names.get(key, key)}" for key, count in job.left_out.items())
    total = sum(job.left_out.values())
    return f"{total} {'file' if total == 1 else 'files'} ({counts})"


def state(job: JobOut) -> str:
    """The state of a job in its colour, as Rich markup."""
    colour = _STATES.get(job.state, "cyan")
    return f"[{colour}]{job.state}[/]"


def collections(listed: list[CollectionOut]) -> None:
    """Print a table of collections."""
    table = Table("name", "images", "metric", "model", "dim", "fields", box=None)
    for collection in listed:
        fields = ", ".join(f"{name}: {kind}" for name, kind in collection.fields.items())
        row = (
            collection.name,
            str(collection.count),
            collection.metric,
            collection.model,
            str(collection.dim),
            fields,
        )
        table.add_row(*map(escape, row))
    out.print(table if listed else "no collections")
