"""`clipfleet images`: look at single images, and change labels and metadata."""

import json as json_module
import math
from typing import Annotated, Any

import typer

from clipfleet.cli import show
from clipfleet.cli.show import URL, ApiKey, Json, Name, Namespace, Url, Where
from clipfleet.client import Client
from clipfleet.common.collection import ELEMENTS
from clipfleet.results import Updated

app = typer.Typer(help="Show images, and change labels and metadata.", no_args_is_help=True)

Ids = Annotated[
    list[str] | None, typer.Option("--id", help="Id of an image to change. Repeatable.")
]
Label = Annotated[
    str | None, typer.Option(help="The new label; an empty one removes it. Default: it stays.")
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="New value of a metadata key, as JSON or as text: year=2024, tags='[\"a\"]'. "
        "Repeatable.",
    ),
]
Removed = Annotated[
    list[str] | None,
    typer.Option("--unset", metavar="KEY", help="Metadata key to remove. Repeatable."),
]
MISSING_SHOWN = 10
SOME_MISSING = 3  # as of jobs in which some images failed


@app.command("show")
def show_image(
    name: Name,
    image_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the image.")],
    namespace: Namespace = "default",
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Show what is known of one image."""
    with show.client(url, api_key) as client:
        image = client.image(name, image_id, namespace=namespace)
    show.document(image) if json else show.image(image)


@app.command("update")
def update(
    name: Name,
    where: Where = None,
    image_id: Ids = None,
    every: Annotated[
        bool, typer.Option("--all", help="Change all images of the namespace.")
    ] = False,
    label: Label = None,
    values: Values = None,
    unset: Removed = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; show how many images match.")
    ] = False,
    namespace: Namespace = "default",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Change without asking, as --json does.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Change the label and metadata of the images that pass a filter, without embedding them again.

    Other metadata of these images stays. A command that was interrupted can be repeated. The exit
    code is 3 if an --id is not in the collection.

    Example: clipfleet images update photos --filter '{"label": "chruch"}' --label church
    """
    parsed = show.filter_of(where)
    if [bool(parsed), bool(image_id), every].count(True) != 1:
        raise typer.BadParameter("give exactly one of --filter, --id and --all")
    if label is None and not values and not unset:
        raise typer.BadParameter("give what to change: --label, --set or --unset")
    with show.client(url, api_key) as client:
        change: dict[str, Any] = {} if label is None else {"label": label}
        if metadata := _metadata(values or [], unset or [], name, client):
            change["metadata"] = metadata
        if image_id:
            rows = [{"id": each, **change} for each in dict.fromkeys(image_id)]
            updated = client.update_images(name, rows, namespace=namespace, dry_run=dry_run)
        else:
            chosen: dict[str, Any] = {"filter": parsed, "namespace": namespace, "all": every}
            if not (yes or json or dry_run):
                count = client.update_images(name, **chosen, **change, dry_run=True).matched
                typer.confirm(f"Change {count} images of {name}?", abort=True, err=True)
            with show.err.status("changing") as status:
                updated = client.update_images(
                    name,
                    **chosen,
                    **change,
                    dry_run=dry_run,
                    progress=lambda count: status.update(f"changing: {count} images"),
                )
    show.document(updated) if json else _print(updated, dry_run)
    if updated.missing:
        raise typer.Exit(SOME_MISSING)


def _print(updated: Updated, dry_run: bool) -> None:
    if dry_run:
        print(f"images that match: {updated.matched}; nothing was changed")
    else:
        same = updated.matched - updated.updated
        more = f"; {same} had these values already" if same else ""
        print(f"images changed: {updated.updated}{more}")
    if updated.missing:
        shown = ", ".join(show.one_line(each) for each in updated.missing[:MISSING_SHOWN])
        more = ", ..." if len(updated.missing) > MISSING_SHOWN else ""
        print(f"{len(updated.missing)} are not in the collection: {shown}{more}")


def _metadata(values: list[str], unset: list[str], name: str, client: Client) -> dict[str, Any]:
    """New values by key. A value that is JSON is read, unless the key is declared as text."""
    fields = client.collection(name).fields if values else {}
    metadata: dict[str, Any] = {}
    for text in values:
        key, is_pair, value = text.partition("=")
        if not key or not is_pair:
            raise typer.BadParameter(f"--set {text!r} is not KEY=VALUE, such as year=2024")
        kind = fields.get(key)
        metadata[key] = value if kind == "string" else _value(value)
        if kind in ELEMENTS and not isinstance(metadata[key], list | None):
            metadata[key] = [value if kind == "string[]" else metadata[key]]
    for key in unset:
        if metadata.setdefault(key, None) is not None:
            raise typer.BadParameter(f"--set and --unset both name {key!r}")
    return metadata


def _value(text: str) -> Any:
    try:
        return json_module.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _refuse(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are no JSON


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)  # 1e400 would be sent as null, which removes the key
    return number
