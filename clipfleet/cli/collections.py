"""`clipfleet collections`: make, look at and delete collections."""

import json as json_module
from typing import Annotated

import typer

from clipfleet.cli import matching, show, transfer
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url
from clipfleet.common.http.schemas import CollectionList, FieldType, Metric

app = typer.Typer(
    help="Make, look at, measure, export and delete collections.", no_args_is_help=True
)
app.command("export")(transfer.export)
app.command("import")(transfer.import_)
app.command("count")(matching.count)
app.command("ids")(matching.ids)
app.command("delete-images")(matching.delete_images)
app.command("recall")(matching.recall)

Fields = Annotated[
    list[str] | None,
    typer.Option("--field", help="Typed metadata, NAME:string|int|float|bool; may be repeated."),
]


@app.command("list")
def list_collections(url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """All collections."""
    with show.client(url, api_key) as client:
        found = client.collections()
    show.document(CollectionList(collections=found)) if json else show.collections(found)


@app.command("show")
def show_collection(name: Name, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """One collection."""
    with show.client(url, api_key) as client:
        found = client.collection(name)
    show.document(found) if json else show.collections([found])


@app.command("create")
def create(
    name: Name,
    metric: Annotated[str, typer.Option(help="cosine, dot or euclidean.")] = "cosine",
    model: Annotated[str | None, typer.Option(help="Default: the service's.")] = None,
    dim: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    field: Fields = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Make a collection, or make sure that it is as described."""
    fields = dict(_field(one) for one in field or [])
    with show.client(url, api_key) as client:
        found = client.create_collection(
            name, metric=_metric(metric), model=model, dim=dim, fields=fields
        )
    show.document(found) if json else show.collections([found])


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Delete a collection with all its embeddings. The images themselves are not touched."""
    with show.client(url, api_key) as client:
        count = client.collection(name).count
        if not (yes or json):
            typer.confirm(f"Delete {name} with {count} images?", abort=True, err=True)
        client.delete_collection(name)
    print(json_module.dumps({"deleted": name}) if json else f"deleted {name}")


def _metric(text: str) -> Metric:
    for known in ("cosine", "dot", "euclidean"):
        if text == known:
            return known
    raise typer.BadParameter(f"{text!r} is none of cosine, dot, euclidean")


def _field(text: str) -> tuple[str, FieldType]:
    name, _, kind = text.partition(":")
    for known in ("string", "int", "float", "bool"):
        if name and kind == known:
            return name, known
    raise typer.BadParameter(f"{text!r} is not NAME:string|int|float|bool")
