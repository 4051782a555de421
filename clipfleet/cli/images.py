"""`clipfleet index` and `clipfleet search`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from clipfleet.cli import show
from clipfleet.cli.follow import INTERRUPTED, show_and_exit
from clipfleet.cli.show import COLLECTION, URL, ApiKey, Collection, Json, Url, Where
from clipfleet.client import Client
from clipfleet.client.payloads import image_url
from clipfleet.client.progress import sending
from clipfleet.client.source_detection import Kind, kind_of, source_of
from clipfleet.common.http.mirror import OnMissing, limit_of
from clipfleet.common.http.patterns import Pattern
from clipfleet.common.http.sources import Source
from clipfleet.common.http.suffixes import SUFFIXES, ending_of
from clipfleet.common.http.webhooks import key_of
from clipfleet.errors import ProblemError, Unreachable
from clipfleet.results import Job

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Folders, image files, manifests (.jsonl .csv .tsv .parquet .txt), archives "
        "(.tar .tar.gz .tar.xz .tar.bz2 .tar.zst .zip), image URLs, or buckets (s3://...). "
        "Several are one job. In quotes, a pattern: 'shards/{000..999}.tar', 'photos/**/*.jpg'.",
    ),
]
TargetNamespace = Annotated[
    str, typer.Option(help="Namespace of the images. The same id may exist in several.")
]
LabelFromFolder = Annotated[
    bool,
    typer.Option("--label-from-folder", help="Use the name of an image's folder as its label."),
]
SourceKind = Annotated[
    Kind | None, typer.Option("--type", help="Kind of SOURCE. Default: guessed from its name.")
]
Exif = Annotated[
    bool,
    typer.Option(
        "--exif",
        help="Add to the metadata what EXIF says: taken_at, camera, latitude, longitude, altitude.",
    ),
]
Mirror = Annotated[
    bool,
    typer.Option(
        "--mirror",
        help="Delete images that this source had before and has no more. Files that have not "
        "changed are not read.",
    ),
]
OnMissingOption = Annotated[
    OnMissing | None,
    typer.Option(
        "--missing",
        help="With --mirror: what happens to images that are gone from the source. "
        "Default: delete.",
    ),
]
MaxDelete = Annotated[
    str | None,
    typer.Option(
        help="With --mirror: delete nothing if more images than this are gone: a share such as "
        "0.1 or 10%, or a number of images. Default: 0.1.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="With --mirror: only list and compare; nothing is indexed or deleted."
    ),
]
WebhookUrl = Annotated[
    str | None,
    typer.Option("--webhook", help="Address to which the service sends the end of the job."),
]
WebhookSecret = Annotated[
    str | None,
    typer.Option(
        envvar="CLIPFLEET_WEBHOOK_SECRET",
        help="Secret that signs the webhook (whsec_...). Default: that of the service.",
        show_envvar=True,
    ),
]
FileIds = Annotated[
    list[str] | None,
    typer.Option("--id", help="Id of a file, one for each. Default: its path. Repeatable."),
]
UploadFlag = Annotated[
    bool,
    typer.Option(
        "--upload",
        help="Send folders and files of this machine, which the service need not be able to read.",
    ),
]
Wait = Annotated[bool, typer.Option(help="Show progress until the job has ended.")]

Text = Annotated[str | None, typer.Argument(help="Words to search by.")]
Images = Annotated[
    list[str] | None, typer.Option(help="Image to search by: a file or a URL. Repeatable.")
]
ImageIds = Annotated[
    list[str] | None,
    typer.Option("--id", help="Id of an indexed image to search by. Repeatable."),
]
Unlike = Annotated[
    list[str] | None,
    typer.Option("--not", help="Words that matches should not resemble. Repeatable."),
]
Weight = Annotated[
    float | None, typer.Option(help="Weight of TEXT; an image has weight 1. Default: 1.")
]
NotWeight = Annotated[float, typer.Option(help="Weight of each --not.", min=0)]
TopK = Annotated[int, typer.Option(min=1, help="Number of matches.")]
Offset = Annotated[int, typer.Option(min=0, help="Matches to skip, for later pages.")]
MinScore = Annotated[
    float | None, typer.Option(help="Leave out matches with a lower score. Default: none.")
]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Limit matches that share this field: label or metadata. Default: no limit."),
]
GroupSize = Annotated[
    int, typer.Option(min=1, help="Matches with the same --group-by value at most.")
]
Collapse = Annotated[
    float | None,
    typer.Option(
        help="Leave out matches with this cosine or more to a better match, such as 0.97."
    ),
]
SearchedNamespace = Annotated[str, typer.Option(help="Namespace to search.")]
ShowTiming = Annotated[
    bool, typer.Option("--timing", help="Show where the service's time went, in milliseconds.")
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Compare with every image instead of using the index. Slow."),
]


def checked_webhook_secret(text: str | None) -> str | None:
    """The value of --webhook-secret. BadParameter, without the value, if it is not a secret."""
    try:
        if text:
            key_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"--webhook-secret: {error}") from None
    return text or None


@contextmanager
def naming_webhook_options() -> Iterator[None]:
    """Name the options in place of the fields of the request in an error about the webhook."""
    try:
        yield
    except ProblemError as error:
        for field, option in (("webhook.url", "--webhook"), ("webhook.secret", "--webhook-secret")):
            if error.detail.startswith(field):
                raise typer.BadParameter(error.detail.replace(field, option, 1)) from error
        raise


def mirror_options(
    mirror: bool, missing: OnMissing | None, max_delete: str | None, dry_run: bool
) -> bool | dict[str, Any]:
    """The value of `mirror` for the client; BadParameter for options that are not valid."""
    options: dict[str, Any] = {"missing": missing, "max_delete": max_delete, "dry_run": dry_run}
    options = {name: value for name, value in options.items() if value}
    if options and not mirror:
        name = next(iter(options)).replace("_", "-")
        raise typer.BadParameter(f"--{name} needs --mirror")
    if max_delete is not None:
        try:
            options["max_delete"] = limit_of(_number(max_delete))
        except ValueError as error:
            raise typer.BadParameter(str(error).replace("max_delete", "--max-delete")) from error
    return options or mirror


def _number(text: str) -> int | float | str:
    """The number that a text is; the text if it is none."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def index(
    sources: Sources,
    collection: Collection = COLLECTION,
    namespace: TargetNamespace = "default",
    label_from_folder: LabelFromFolder = False,
    kind: SourceKind = None,
    exif: Exif = False,
    image_id: FileIds = None,
    upload: UploadFlag = False,
    mirror: Mirror = False,
    missing: OnMissingOption = None,
    max_delete: MaxDelete = None,
    dry_run: DryRun = False,
    webhook: WebhookUrl = None,
    webhook_secret: WebhookSecret = None,
    wait: Wait = True,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Index images: a source that the service can read, or image files of this machine.

    The id of a file of this machine is its path as given: holiday/1.jpg and rome/1.jpg are two
    images. With --upload, that of an image in a folder is its path below the folder. An upload that
    stopped goes on with the same command: only what the service does not have is sent.

    With --mirror, the collection follows the source: see docs/sources.md.

    The exit code is 0 if all images were indexed, 3 if some failed, 1 if the job failed.

    Ctrl-C does not stop the job. `clipfleet jobs show ID --follow` shows its progress again.
    """
    secret = checked_webhook_secret(webhook_secret) if webhook else None
    mirrored = mirror_options(mirror, missing, max_delete, dry_run)
    if mirrored and (upload or (not kind and _files(sources))):
        raise typer.BadParameter(
            "--mirror is for sources that the service reads, not for files that are sent"
        )
    if upload and (folders := _folders(sources, kind)):
        if image_id:
            raise typer.BadParameter("--id is for files; in a folder, the id is the path")
        with show.client(url, api_key) as client, naming_webhook_options():
            job = _upload_folders(
                client,
                collection,
                folders,
                namespace=namespace,
                label_from_folder=label_from_folder,
                exif=exif,
                webhook=webhook,
                webhook_secret=secret,
            )
            show_and_exit(client, job, wait=wait, json=json)
    files = [] if kind else _files(sources)
    if image_id and len(image_id) != len(files):
        raise typer.BadParameter(f"give one --id for each file: {len(files)} files")
    source = None if files else source_from(sources, kind, label_from_folder)
    with show.client(url, api_key) as client, naming_webhook_options():
        if source is None:
            with show.err.status("sending"):
                try:
                    ids = image_id or [_id_of(source) for source in sources]
                    labels = [_folder_name(file) for file in files] if label_from_folder else None
                    with naming_webhook_options():
                        job = client.upload(
                            collection,
                            files,
                            ids=ids,
                            labels=labels,
                            namespace=namespace,
                            exif=exif,
                            webhook=webhook,
                            webhook_secret=secret,
                        )
                except ValueError as error:
                    raise typer.BadParameter(str(error)) from error
        else:
            job = client.index(
                collection,
                source,
                namespace=namespace,
                exif=exif,
                mirror=mirrored,
                webhook=webhook,
                webhook_secret=secret,
            )
        show_and_exit(client, job, wait=wait, json=json)


def _folders(sources: list[str], kind: Kind | None) -> list[Path]:
    """The folders and files to upload; empty if they are files alone."""
    if kind not in (None, "folder"):
        raise typer.BadParameter(f"--upload sends folders and image files, not a source of {kind}")
    paths = [Path(source).expanduser() for source in sources]
    for path, source in zip(paths, sources, strict=True):
        if "://" in source:
            raise typer.BadParameter(f"--upload sends files of this machine, and {source} is a URL")
        if not path.exists():
            raise typer.BadParameter(f"there is no file or folder {source} on this machine")
        if path.is_file() and kind_of(source) != "folder":
            raise typer.BadParameter(f"--upload sends folders and image files: {source} is neither")
    return paths if any(path.is_dir() for path in paths) else []


def _upload_folders(client: Client, collection: str, folders: list[Path], **options: Any) -> Job:
    """Send the folders with a progress bar. Ctrl-C exits, and so does an error."""
    again = "The same command goes on where the upload stopped."
    paths = folders if len(folders) > 1 else folders[0]
    try:
        with sending(True, console=show.err) as tell:
            return client.upload_folder(collection, paths, sent=tell, **options)
    except KeyboardInterrupt:
        show.err.print(again)
        sys.exit(INTERRUPTED)
    except Unreachable:
        show.err.print(again)
        raise


def _folder_name(file: Path) -> str:
    return file.expanduser().absolute().parent.name


def _id_of(path: str) -> str:
    """The path of a file as it was given, without `./`."""
    return os.path.normpath(path).replace(os.sep, "/")


def _files(sources: list[str]) -> list[Path]:
    """The files to upload. Empty if the service is to read the sources itself."""
    files = [source for source in sources if _is_image_file(source)]
    if len(files) == len(sources):
        return [Path(source).expanduser() for source in files]
    for source in sources if len(sources) > 1 else ():
        if "://" in source or Path(source).expanduser().exists() or Pattern(source).is_pattern:
            continue
        if ending_of(source) in SUFFIXES:
            raise typer.BadParameter(f"there is no file {source}")
    if files:
        others = [source for source in sources if source not in files]
        raise typer.BadParameter(
            f"{files[0]} is an image file of this machine, and {others[0]} is not: give files, or "
            "sources that the service reads. --upload sends files and folders of this machine"
        )
    return []


def _is_image_file(source: str) -> bool:
    is_file = "://" not in source and Path(source).expanduser().is_file()
    return is_file and kind_of(source) == "folder"


def source_from(sources: list[str], kind: Kind | None, label_from_folder: bool) -> Source:
    """The source of the arguments; BadParameter if there is none of these names and this kind."""
    value = sources[0] if len(sources) == 1 else sources
    try:
        return source_of(value, kind=kind, label_from_folder=label_from_folder)
    except ValueError as error:
        message = str(error).replace("label_from_folder", "--label-from-folder")
        raise typer.BadParameter(message) from error


def search(
    text: Text = None,
    image: Images = None,
    image_id: ImageIds = None,
    unlike: Unlike = None,
    weight: Weight = None,
    not_weight: NotWeight = 0.5,
    collection: Collection = COLLECTION,
    top_k: TopK = 10,
    offset: Offset = 0,
    where: Where = None,
    min_score: MinScore = None,
    group_by: GroupBy = None,
    group_size: GroupSize = 1,
    collapse: Collapse = None,
    namespace: SearchedNamespace = "default",
    exact: Exact = False,
    timing: ShowTiming = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Find images by words, by an image, by the id of an indexed image, or by a mix of them.

    Example: clipfleet search "in the snow" --image dog.jpg --not "a person"
    """
    positive = _positive_terms(text, image or [], image_id or [])
    if weight is not None:
        if text is None or len(positive) + len(unlike or []) == 1:
            raise typer.BadParameter("--weight needs TEXT and another term: --image, --id or --not")
        positive[0]["weight"] = weight
    negative = [{"text": words, "weight": -not_weight} for words in unlike or []]
    is_single = len(positive) == 1 and not negative
    query: dict[str, Any] = positive[0] if is_single else {"terms": positive + negative}
    with show.client(url, api_key) as client:
        result = client.search(
            collection,
            **query,
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
        show.document(result) if json else show.matches(result, first=offset + 1)
        if not result.matches and not json:
            limits = (where, min_score, offset, namespace != "default")
            show.no_matches(client, collection, filtered=any(map(bool, limits)))
    if timing:
        show.timing(result.timing)


def _positive_terms(text: str | None, images: list[str], ids: list[str]) -> list[dict[str, Any]]:
    """The positive terms of a query."""
    for image in images:
        if not image_url(image) and not Path(image).expanduser().is_file():
            raise typer.BadParameter(f"there is no file {image}")
    words = [] if text is None else [{"text": text}]
    terms = [*words, *({"image": image} for image in images), *({"id": name} for name in ids)]
    if not terms:
        raise typer.BadParameter("give at least one of TEXT, --image and --id")
    return terms
