"""`clipfleet collections count|ids|delete-images|recall`: many images of a collection at once."""

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
    """How many images of a namespace pass a filter."""
    with show.client(url, api_key) as client:
        found = client.count(name, filter=show.filter_of(where), namespace=namespace)
    print(json_module.dumps({"count": found}) if json else found)


def ids(
    name: Name,
    namespace: Namespace = "default",
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """The ids of a namespace's images, one a line."""
    with show.client(url, api_key) as client:
        if json:
            print(json_module.dumps({"ids": list(client.iter_ids(name, namespace=namespace))}))
            return
        for one in client.iter_ids(name, namespace=namespace):
            print(show.one_line(one))


def delete_images(
    name: Name,
    where: Where = None,
    every: Annotated[bool, typer.Option("--all", help="All images of the namespace.")] = False,
    namespace: Namespace = "default",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Delete the images that pass a filter, from the collection alone: no file is touched."""
    told = show.filter_of(where)
    if bool(told) == every:
        raise typer.BadParameter("give either --filter or --all")
    with show.client(url, api_key) as client:
        if not (yes or json):
            found = client.count(name, filter=told, namespace=namespace)
            typer.confirm(f"Delete {found} images from {name}?", abort=True, err=True)
        deleted = client.delete(name, filter=told, namespace=namespace, all=every)
    print(json_module.dumps({"deleted": deleted}) if json else f"deleted {deleted} images")


def recall(
    name: Name,
    k: Annotated[int, typer.Option("-k", min=1, help="How many nearest images.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="How many of the images to ask with.")] = 100,
    where: Where = None,
    namespace: Namespace = "default",
    seed: Annotated[int, typer.Option(min=0, help="Another sample.")] = 0,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Measure the index: which share of the k nearest images does it find?

    A sample of the images is searched for by the index and by comparing with every image.
    """
    with show.client(url, api_key) as client, show.err.status("comparing"):
        found = client.recall(
            name,
            k=k,
            sample=sample,
            filter=show.filter_of(where),
            namespace=namespace,
            seed=seed,
        )
    if json:
        show.document(found)
        return
    print(f"recall@{found.k} {found.recall:.4f}  ({found.queries} queries)")
    if found.worst:
        table = Table("recall", "id", title="found least for", box=None, title_justify="left")
        for one in found.worst:
            table.add_row(f"{one.recall:.2f}", escape(show.one_line(one.id)))
        show.out.print(table)
