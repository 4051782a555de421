"""How results and errors look, as tables for people or as JSON for scripts."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipfleet.cli import complete
from clipfleet.client import Client
from clipfleet.client._config import DEFAULT_URL
from clipfleet.common.http.schemas import CollectionOut, JobOut, SearchOut
from clipfleet.errors import ProblemError, Unreachable

# emoji=False: Rich would print the file name `a:x:.jpg` with a picture in its middle.
out = Console(soft_wrap=True, emoji=False, highlight=False)
# For names and ids: cut or folded to the terminal's width, they are of no use to anybody.
_wide = Console(width=10_000, soft_wrap=True, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, emoji=False, highlight=False)

Url = Annotated[str, typer.Option(envvar="CLIPFLEET_URL", help="Where the service is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="CLIPFLEET_API_KEY", help="Your API key.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Name = Annotated[
    str,
    typer.Argument(help="The collection's name.", autocompletion=complete.collection_names),
]
Where = Annotated[str | None, typer.Option("--filter", help='As JSON: \'{"label": "church"}\'.')]
Namespace = Annotated[str, typer.Option(help="Which namespace.")]
Collection = Annotated[
    str, typer.Option(help="The collection.", autocompletion=complete.collection_names)
]

URL = DEFAULT_URL
COLLECTION = "images"

_STATES = {"succeeded": "green", "partial": "yellow", "failed": "red", "cancelled": "yellow"}


def filter_of(text: str | None) -> dict[str, Any] | None:
    """What --filter says."""
    try:
        where = json.loads(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(f"--filter is not JSON: {error}") from error
    if where is not None and not isinstance(where, dict):
        raise typer.BadParameter("--filter must be a JSON object")
    return where


def client(url: str, api_key: str | None) -> Client:
    return Client(url, api_key=api_key)


def fail(error: Exception, code: int = 1) -> NoReturn:
    """One line on standard error; under --json the problem document on standard output too."""
    if "--json" in sys.argv:
        problem = error.problem if isinstance(error, ProblemError) else {"detail": str(error)}
        print(json.dumps(problem))
    err.print(f"[red]clipfleet:[/] {escape(one_line(str(error)))}")
    if isinstance(error, Unreachable):
        err.print("Start one with `clipfleet up`, or name it with --url.")
    if isinstance(error, ProblemError) and error.status == 401:
        err.print("Give a key with --api-key or CLIPFLEET_API_KEY.")
    sys.exit(code)


def document(model: BaseModel) -> None:
    print(model.model_dump_json(indent=2))


def one_line(text: str) -> str:
    """Names come from the outside: no line break or control character reaches the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def matches(found: SearchOut, first: int = 1) -> None:
    """With the whole id: scripts and `search --id` need it."""
    collapsed = any(match.duplicates is not None for match in found.matches)
    alike = ["alike"] if collapsed else []
    table = Table("#", "score", *alike, "label", "id", box=None, pad_edge=False)
    for rank, match in enumerate(found.matches, first):
        others = [f"+{match.duplicates}" if match.duplicates else ""] if collapsed else []
        label, name = escape(one_line(match.label or "")), escape(one_line(match.id))
        table.add_row(str(rank), f"{match.score:.3f}", *others, label, name)
    _print_matches(table, found)


def pictures(found: SearchOut, name: Callable[[str], str]) -> None:
    """With names for people."""
    table = Table("#", "score", "image", "label", box=None, pad_edge=False)
    for rank, match in enumerate(found.matches, 1):
        label, shown = escape(one_line(match.label or "")), escape(one_line(name(match.id)))
        table.add_row(str(rank), f"{match.score:.3f}", shown, label)
    _print_matches(table, found)


def _print_matches(table: Table, found: SearchOut) -> None:
    _wide.print(table if found.matches else "no matches")
    err.print(f"[dim]{len(found.matches)} matches in {found.took_ms:.0f} ms[/]")


def jobs(found: list[JobOut]) -> None:
    table = Table("id", "collection", "state", "done", "failed", "skipped", "total", box=None)
    for job in found:
        counts = (str(n) for n in (job.done, job.failed, job.skipped, job.total))
        table.add_row(job.id, job.collection, state(job), *counts)
    out.print(table if found else "no jobs")


def job(one: JobOut) -> None:
    jobs([one])
    for what, text in (
        ("error", one.error),
        ("waiting", one.waiting),
        ("retry of", one.retry_of),
        ("retried by", one.retried_by),
    ):
        if text:
            out.print(f"{what}: {escape(one_line(text))}")


def state(one: JobOut) -> str:
    colour = _STATES.get(one.state, "cyan")
    return f"[{colour}]{one.state}[/]"


def collections(found: list[CollectionOut]) -> None:
    table = Table("name", "images", "metric", "model", "dim", "fields", box=None)
    for one in found:
        fields = ", ".join(f"{name}: {kind}" for name, kind in one.fields.items())
        row = (one.name, str(one.count), one.metric, one.model, str(one.dim), fields)
        table.add_row(*map(escape, row))
    out.print(table if found else "no collections")
