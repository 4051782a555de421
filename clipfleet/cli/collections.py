"""`clipfleet collections`: create, show and delete collections."""

import json as json_module
from typing import Annotated, get_args

import typer

from clipfleet.cli import bulk, maps, migrate, originals, show, tags, transfer
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url
from clipfleet.common.collection import FieldType, Metric
from clipfleet.common.http.schemas import CollectionList

app = typer.Typer(
    help="Create, show, measure, export and delete collections.", no_args_is_help=True
)
app.command("export")(transfer.export)
app.command("import")(transfer.import_)
app.command("count")(bulk.count)
app.command("ids")(bulk.ids)
app.command("delete-images")(bulk.delete_images)
app.command("recall")(bulk.recall)
app.command("map")(maps.map_)
app.command("migrate")(migrate.migrate)
app.command("tag")(tags.tag)
app.command("original")(originals.original)

Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        help="Metadata field to declare, NAME:TYPE; a type is string, int, float, bool, string[] "
        "or int[]. Repeatable.",
    ),
]


@app.command("list")
def list_collections(url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """List all collections."""
    with show.client(url, api_key) as client:
        collections = client.collections()
    show.document(CollectionList(collections=collections)) if json else show.collections(
        collections
    )


@app.command("show")
def show_collection(name: Name, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Show one collection."""
    with show.client(url, api_key) as client:
        collection = client.collection(name)
    show.document(collection) if json else show.collections([collection])


@app.command("create")
def create(
    name: Name,
    metric: Annotated[
        str, typer.Option(help="How embeddings are compared: cosine, dot or euclidean.")
    ] = "cosine",
    model: Annotated[str | None, typer.Option(help="CLIP model. Default: the service's.")] = None,
    dim: Annotated[
        int | None, typer.Option(help="Numbers in an embedding. Default: the model's.")
    ] = None,
    field: Fields = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Create a collection, or check that the existing one is as described."""
    fields = dict(_field(text) for text in field or [])
    with show.client(url, api_key) as client:
        collection = client.create_collection(
            name, metric=_metric(metric), model=model, dim=dim, fields=fields
        )
    show.document(collection) if json else show.collections([collection])


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Delete without asking, as --json does.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Delete a collection with its embeddings and thumbnails. Image files are not touched."""
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
    raise typer.BadParameter(f"{text!r} is not one of cosine, dot, euclidean")


def _field(text: str) -> tuple[str, FieldType]:
    name, _, kind = text.partition(":")
    kinds: tuple[FieldType, ...] = get_args(FieldType)
    for known in kinds:
        if name and kind == known:
            return name, known
    raise typer.BadParameter(f"{text!r} is not NAME:TYPE; a type is one of {', '.join(kinds)}")
