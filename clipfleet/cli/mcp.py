"""`clipfleet mcp`: the tools of the service for assistants, over standard input and output."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.cli import complete, show
from clipfleet.cli.show import COLLECTION, URL, ApiKey, Url

Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root",
        help="Folder with images that the assistant may search by. Repeatable. Default: none, and "
        "no file of this machine is read.",
    ),
]
DefaultCollection = Annotated[
    str,
    typer.Option(
        help="Collection to use when the assistant names none.",
        autocompletion=complete.collection_names,
    ),
]


def mcp(
    root: Roots = None,
    collection: DefaultCollection = COLLECTION,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Serve assistants by the Model Context Protocol, on standard input and output.

    An assistant starts this command: docs/guides/assistants.md has the lines for its
    configuration. The tools are search, similar, images, collections, jobs and job. They change
    nothing.
    """
    try:
        from clipfleet.mcp.pictures import LocalImages
        from clipfleet.mcp.server import create_server
    except ImportError as error:
        message = f"the command mcp needs packages that are missing or too old ({error}): "
        show.fail(ValueError(f"{message}pip install 'clipfleet[mcp]'"))
    from clipfleet.client import AsyncClient

    server = create_server(AsyncClient(url, api_key=api_key), LocalImages(root or ()), collection)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own waits for the thread that reads
    if sys.stdin.isatty():
        show.err.print("An assistant starts this command and writes to it. Ctrl-C ends it.")
    server.run()
