"""`clipfleet collections tag`: tags stored images with words."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from clipfleet.cli import show
from clipfleet.cli.follow import show_and_exit
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url, Where
from clipfleet.results import TagsPreview

Vocabulary = Annotated[
    list[str] | None,
    typer.Option(
        "--vocabulary",
        "-v",
        metavar="FILE|WORD",
        help="A text file with one word a line, or a word or words with commas. Repeatable.",
    ),
]


def tag(
    name: Name,
    vocabulary: Vocabulary = None,
    field: Annotated[str, typer.Option(help="Metadata field that gets the words.")] = "tags",
    min_confidence: Annotated[
        float, typer.Option(help="How sure a word must be for an image, 0 to 1.")
    ] = 0.5,
    template: Annotated[
        str, typer.Option(help="Text that is embedded for a word, in place of {}.")
    ] = "a photo of a {}",
    where: Where = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the images. Default: all namespaces.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Also tag images that are indexed from now on.")
    ] = False,
    saved: Annotated[bool, typer.Option("--saved", help="Show the saved vocabulary.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Stop to tag images that are indexed.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing; show what a sample of the images would get."
        ),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Show progress until the end. Ctrl-C leaves the job running."
        ),
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Tag stored images with the words that fit them, without reading the images again."""
    if (vocabulary is not None) + saved + forget != 1:
        show.fail(ValueError("give exactly one of --vocabulary, --saved and --forget"))
    with show.client(url, api_key) as client:
        if saved:
            rules = client.saved_tags(name)
            show.document(rules) if json else print("\n".join(rules.vocabulary))
            return
        if forget:
            client.forget_tags(name)
            return
        words, chosen = _words(vocabulary or []), show.filter_of(where)
        if dry_run:
            preview = client.preview_tags(
                name, words, field=field, min_confidence=min_confidence, template=template,
                filter=chosen, namespace=namespace,
            )  # fmt: skip
            show.document(preview) if json else _show(preview)
            return
        job = client.tag(
            name, words, field=field, min_confidence=min_confidence, template=template,
            filter=chosen, namespace=namespace, save=save,
        )  # fmt: skip
        show_and_exit(client, job, wait=follow, json=json)


def _words(values: list[str]) -> list[str]:
    """The words of files and of the command line."""
    words: list[str] = []
    for text in values:
        path = Path(text)
        if path.suffix and path.is_file():
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                show.fail(ValueError(f"--vocabulary: {text} cannot be read as UTF-8 text: {error}"))
            words += [line for line in lines if line.strip()]
        else:
            words += [word for word in text.split(",") if word.strip()]
    if not words:
        show.fail(ValueError("--vocabulary has no words"))
    return words


def _show(preview: TagsPreview) -> None:
    table = Table("word", "images", "for example", box=None)
    for word in preview.words:
        examples = ", ".join(
            f"{show.one_line(image.id)} ({image.confidence:.2f})" for image in word.examples[:3]
        )
        table.add_row(escape(show.one_line(word.word)), str(word.count), escape(examples))
    show.out.print(table)
    print(
        f"{preview.untagged} of {preview.sampled} images of the sample get no word; "
        f"the job would look at {preview.total}"
    )
