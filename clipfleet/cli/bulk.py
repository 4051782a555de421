"""`clipfleet collections count|ids|delete-images|recall`: all images of a collection at once."""

import json as json_module
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clipfleet.cli import show
from clipfleet.cli.show import URL, ApiKey, Json, Name, Namespace, Url, Where


def count(
    name: Name,
    where: Where = None,
    namespace: Namespace = "default",
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Count the images of a namespace that pass a filter."""
    with show.client(url, api_key) as client:
        number = client.count(name, filter=show.filter_of(where), namespace=namespace)
    print(json_module.dumps({"count": number}) if json else number)


OrderBy = Annotated[
    str | None,
    typer.Option(help="Field that gives the order: id, indexed_at, or metadata. Default: none."),
]
Descending = Annotated[
    bool, typer.Option("--descending", help="Begin with the largest value of --order-by.")
]


def ids(
    name: Name,
    where: Where = None,
    order_by: OrderBy = None,
    descending: Descending = False,
    namespace: Namespace = "default",
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Print the ids of the images of a namespace, one per line.

    With --order-by or --filter, at most 10,000.
    """
    if descending and order_by is None:
        raise typer.BadParameter("--descending needs --order-by")
    with show.client(url, api_key) as client:
        if order_by is None and where is None:
            image_ids = client.iter_ids(name, namespace=namespace)
        else:
            image_ids = iter(
                client.ordered_ids(
                    name,
                    order_by=order_by or "id",
                    descending=descending,
                    filter=show.filter_of(where),
                    namespace=namespace,
                )
            )
        if json:
            print(json_module.dumps({"ids": list(image_ids)}))
            return
        for image_id in image_ids:
            print(show.one_line(image_id))


def delete_images(
    name: Name,
    where: Where = None,
    every: Annotated[
        bool, typer.Option("--all", help="Delete all images of the namespace.")
    ] = False,
    namespace: Namespace = "default",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Delete without asking, as --json does.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Delete the images that pass a filter from the collection. Image files are not touched."""
    parsed = show.filter_of(where)
    if bool(parsed) == every:
        raise typer.BadParameter("give exactly one of --filter and --all")
    with show.client(url, api_key) as client:
        if not (yes or json):
            count = client.count(name, filter=parsed, namespace=namespace)
            typer.confirm(f"Delete {count} images from {name}?", abort=True, err=True)
        deleted = client.delete(name, filter=parsed, namespace=namespace, all=every)
    print(json_module.dumps({"deleted": deleted}) if json else f"deleted {deleted} images")


def recall(
    name: Name,
    k: Annotated[int, typer.Option("-k", min=1, help="Nearest images of each query.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="Images to use as queries.")] = 100,
    where: Where = None,
    namespace: Namespace = "default",
    seed: Annotated[int, typer.Option(min=0, help="Number that chooses the sample.")] = 0,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Measure recall@k: the share of the k nearest images that the index finds.

    A sample of the images is searched for with the index and by comparing with every image.
    """
    with show.client(url, api_key) as client, show.err.status("comparing"):
        result = client.recall(
            name,
            k=k,
            sample=sample,
            filter=show.filter_of(where),
            namespace=namespace,
            seed=seed,
        )
    if json:
        show.document(result)
        return
    print(f"recall@{result.k} {result.recall:.4f}  ({result.queries} queries)")
    if result.worst:
        table = Table("recall", "id", title="lowest recall", box=None, title_justify="left")
        for query in result.worst:
            table.add_row(f"{query.recall:.2f}", escape(show.one_line(query.id)))
        show.out.print(table)
