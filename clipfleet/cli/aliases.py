"""`clipfleet aliases`: further names of collections."""

import json as json_module
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clipfleet.cli import complete, show
from clipfleet.cli.show import URL, ApiKey, Json, Url
from clipfleet.common.http.collections import AliasList
from clipfleet.results import Alias

app = typer.Typer(
    help="Further names of collections, which can be moved from one to another in one step.",
    no_args_is_help=True,
)

AliasName = Annotated[str, typer.Argument(help="The alias.", autocompletion=complete.alias_names)]


@app.command("list")
def list_aliases(url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """List all aliases."""
    with show.client(url, api_key) as client:
        aliases = client.aliases()
    show.document(AliasList(aliases=aliases)) if json else _table(aliases)


@app.command("show")
def show_alias(
    alias: AliasName, url: Url = URL, api_key: ApiKey = None, json: Json = False
) -> None:
    """Show which collection an alias stands for."""
    with show.client(url, api_key) as client:
        known = client.alias(alias)
    show.document(known) if json else _table([known])


@app.command("set")
def set_alias(
    alias: AliasName,
    collection: Annotated[
        str,
        typer.Argument(
            help="Name of the collection that it is to stand for.",
            autocompletion=complete.collection_names,
        ),
    ],
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Create an alias, or move it to another collection in one step.

    Each search is answered from the old collection or from the new one, never from both.
    """
    with show.client(url, api_key) as client:
        known = client.set_alias(alias, collection)
    show.document(known) if json else _table([known])


@app.command("delete")
def delete(alias: AliasName, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Delete an alias. The collection stays."""
    with show.client(url, api_key) as client:
        client.delete_alias(alias)
    print(json_module.dumps({"deleted": alias}) if json else f"deleted {alias}")


def _table(aliases: Sequence[Alias]) -> None:
    table = Table("alias", "collection", box=None)
    for alias in aliases:
        table.add_row(escape(alias.name), escape(alias.collection))
    show.out.print(table if aliases else "no aliases")
