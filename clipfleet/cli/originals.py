"""`clipfleet collections original`: the original file of an image."""

from pathlib import Path
from typing import Annotated

import typer

from clipfleet.cli import show
from clipfleet.cli.show import URL, ApiKey, Name, Namespace, Url


def original(
    name: Name,
    image_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the image.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: the name of the image here."),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="A JPEG of at most 1,000 pixels a side instead.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the file.")] = False,
    namespace: Namespace = "default",
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Save the original file of an image, as far as the service may read it."""
    target = output or _target(image_id, preview=preview)
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists already; --force replaces it, -o names another")
    with show.client(url, api_key) as client:
        fetch = client.preview if preview else client.original
        data = fetch(name, image_id, namespace=namespace)
    target.write_bytes(data)
    print(target)


def _target(image_id: str, *, preview: bool) -> Path:
    """The file for an image: the last part of its id, in the current folder."""
    last = image_id.rstrip("/").replace("\\", "/").rpartition("/")[2].rpartition("#")[2] or "image"
    path = Path(last if last not in (".", "..") else "image")
    return path.with_name(f"{path.stem}.preview.jpg") if preview else path
