"""`clipfleet index` and `clipfleet search`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clipfleet.cli import show
from clipfleet.cli.follow import show_and_exit
from clipfleet.cli.show import COLLECTION, URL, ApiKey, Collection, Json, Url, Where
from clipfleet.client.payloads import image_url
from clipfleet.client.source_detection import Kind, kind_of, source_of
from clipfleet.common.http.sources import Source


def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A folder, image files, a manifest (.jsonl .csv .parquet .txt), an archive "
            "(.tar .tar.gz .zip), image URLs, or a bucket (s3://...).",
        ),
    ],
    collection: Collection = COLLECTION,
    namespace: Annotated[str, typer.Option(help="Keeps ids apart.")] = "default",
    label_from_folder: Annotated[
        bool, typer.Option("--label-from-folder", help="Label = name of the image's folder.")
    ] = False,
    kind: Annotated[
        Kind | None, typer.Option("--type", help="What SOURCE is, where its name does not tell.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end, with progress.")] = True,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Index images: a source that the service can read, or image files of this machine.

    Ends with 0 when all are in, 3 when some failed, 1 when the job failed.

    Ctrl-C leaves the job at work: `clipfleet jobs show ID --follow` goes on.
    """
    files = [] if kind else _files(sources)
    if files and label_from_folder:
        raise typer.BadParameter("--label-from-folder needs a folder or a bucket")
    source = None if files else _source(sources, kind, label_from_folder)
    with show.client(url, api_key) as client:
        if source is None:
            with show.err.status("sending"):
                job = client.upload(collection, files, namespace=namespace)
        else:
            job = client.index(collection, source, namespace=namespace)
        show_and_exit(client, job, wait=wait, json=json)


def _files(sources: list[str]) -> list[Path]:
    """The files to upload; none where the service is to read the source itself."""
    if all("://" in source for source in sources):
        return []
    files = [Path(source).expanduser() for source in sources]
    if len(files) == 1 and (not files[0].is_file() or kind_of(sources[0]) != "folder"):
        return []
    for file, source in zip(files, sources, strict=True):
        if "://" in source:
            raise typer.BadParameter("give URLs or files, not both at once")
        if file.is_dir():
            raise typer.BadParameter(f"{source} is a folder: give one folder, or files")
        if not file.exists():
            raise typer.BadParameter(f"there is no file {source}")
    return files


def _source(sources: list[str], kind: Kind | None, label_from_folder: bool) -> Source:
    if len(sources) > 1 and kind not in (None, "urls"):
        raise typer.BadParameter(f"give one {kind} at a time")
    given = sources[0] if len(sources) == 1 else sources
    try:
        return source_of(given, kind=kind, label_from_folder=label_from_folder)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def search(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="An image to search by: a file, or its URL. May be repeated."),
    ] = None,
    image_id: Annotated[
        list[str] | None, typer.Option("--id", help="More like this one. May be repeated.")
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option("--not", help="Rather not like this, in words. May be repeated."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="What TEXT counts beside images, which count 1.")
    ] = None,
    not_weight: Annotated[float, typer.Option(help="What each --not counts.", min=0)] = 0.5,
    collection: Collection = COLLECTION,
    top_k: Annotated[int, typer.Option(min=1, help="How many matches.")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="Matches to leave out: the next page.")] = 0,
    where: Where = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out what scores less.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="So many of each: label, or a field of the metadata.")
    ] = None,
    group_size: Annotated[int, typer.Option(min=1, help="How many of each group.")] = 1,
    collapse: Annotated[
        float | None, typer.Option(help="Leave out near-duplicates: 0.97, as a cosine.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where to look.")] = "default",
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every image, not by the index; slow.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Find images by words, by an image, by the id of one that is in, or by a mix of them.

    clipfleet search "in the snow" --image dog.jpg --not "a person"
    """
    wanted = _wanted(text, image or [], image_id or [])
    avoided = [{"text": words, "weight": -not_weight} for words in unlike or []]
    if weight is not None:
        if text is None or len(wanted) + len(avoided) == 1:
            raise typer.BadParameter("--weight is what TEXT counts beside something else")
        wanted[0]["weight"] = weight
    asked: dict[str, Any] = {"terms": wanted + avoided}
    if len(wanted) == 1 and not avoided:
        asked = wanted[0]
    with show.client(url, api_key) as client:
        found = client.search(
            collection,
            **asked,
            top_k=top_k,
            offset=offset,
            filter=show.filter_of(where),
            min_score=min_score,
            group_by=group_by,
            group_size=group_size,
            collapse=collapse,
            namespace=namespace,
            exact=exact,
        )
    show.document(found) if json else show.matches(found, first=offset + 1)


def _wanted(text: str | None, images: list[str], ids: list[str]) -> list[dict[str, Any]]:
    for image in images:
        if not image_url(image) and not Path(image).expanduser().is_file():
            raise typer.BadParameter(f"there is no file {image}")
    words = [] if text is None else [{"text": text}]
    wanted = [*words, *({"image": one} for one in images), *({"id": one} for one in ids)]
    if not wanted:
        raise typer.BadParameter("give TEXT, --image or --id, or several of them")
    return wanted
