"""`clipfleet evaluate`: measures a model on images of your own."""

import json as json_module
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from clipfleet.cli import show
from clipfleet.cli.show import Json


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with one folder per label, or a CSV file with the columns image,caption."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="Hub id or folder of a CLIP-like model, hf-hub:ID, or clipfleet-mini."),
    ] = "clipfleet-mini",
    prompt: Annotated[
        str, typer.Option(help="Text that a label's name is put into.")
    ] = "a photo of a {name}",
    names: Annotated[
        Path | None,
        typer.Option(help="CSV file with the columns label,name: words for labels.", exists=True),
    ] = None,
    gallery: Annotated[
        int, typer.Option(min=0, help="Images that a caption is searched among; 0: all.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Images to use; 0: all.")] = 0,
    json: Json = False,
) -> None:
    """Measure a model: classification and nearest neighbours by label, or search by caption.

    Needs no running service. If the labels are codes, such as n01440764, give --names.
    """
    with _installed():
        from clipfleet.cli.evaluation import MEANINGS
        from clipfleet.common.errors import ClipfleetError
    try:
        report = _measure(source, model, prompt, _names(names), gallery, limit)
    except ClipfleetError as error:
        show.fail(error)
    if json:
        print(json_module.dumps(report, indent=2))
        return
    table = Table(box=None)
    for name, value in report.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else escape(str(value)))
    show.out.print(table)
    for name, meaning in MEANINGS.items():
        if name in report:
            show.err.print(f"[dim]{name}: {meaning}[/]")


@contextmanager
def _installed() -> Iterator[None]:
    """Report a missing module as one that the extra `worker` installs."""
    try:
        yield
    except ImportError as error:
        raise typer.BadParameter(
            f"{error.name} is not installed: pip install 'clipfleet[worker]'"
        ) from error


def _measure(
    source: Path,
    model: str,
    prompt: str,
    names: dict[str, str],
    gallery: int,
    limit: int,
) -> dict[str, Any]:
    from clipfleet.cli import evaluation as metrics
    from clipfleet.common.errors import InvalidRequest
    from clipfleet.common.settings import Settings

    if not source.exists():
        raise InvalidRequest(f"{source} does not exist")
    if "{name}" not in prompt:
        raise InvalidRequest("--prompt has to contain {name}")
    settings = Settings(model=model)
    if source.is_dir():
        labelled = _spread(metrics.labelled_images(source), limit)
        _warn_of_codes(metrics.unnamed_codes([label for _, label in labelled], names), bool(names))
        seen, embedder = _embedded([path for path, _ in labelled], settings)
        truth = [labelled[n][1] for n in seen.kept]
        scores = metrics.classify(seen.rows, truth, names, prompt, embedder)
        scores |= metrics.neighbours(seen.rows, truth)
        return {
            "model": model,
            "images": len(truth),
            "unreadable": len(labelled) - len(truth),
        } | scores
    paths, captions = metrics.captioned_images(source)
    paths = paths[: limit or None]
    seen, embedder = _embedded(paths, settings)
    row = {n: row for row, n in enumerate(seen.kept)}
    used = [(row[n], text) for n, text in captions if n in row]
    texts = embedder.embed_texts([text for _, text in used])
    scores = metrics.retrieve(texts, seen.rows, [owner for owner, _ in used], gallery)
    return {"model": model, "images": len(row), "unreadable": len(paths) - len(row)} | scores


def _embedded(paths: list[Path], settings: Any) -> tuple[Any, Any]:
    """Embeddings of the images, and the model. Shows a progress bar."""
    from clipfleet.cli.evaluation import embed_images

    with _installed():  # torch takes seconds to import, so input is checked before
        from clipfleet.workers.embedding.load import load_embedder
    with show.err.status("loading the model (the first time it is converted for OpenVINO)"):
        embedder = load_embedder(settings)
    with Progress(console=show.err, transient=True) as progress:
        bar = progress.add_task("embedding images", total=len(paths))
        seen = embed_images(
            paths, embedder, settings, lambda done, _: progress.update(bar, completed=done)
        )
    return seen, embedder


def _warn_of_codes(codes: list[str], has_names: bool) -> None:
    if not codes:
        return
    few = ", ".join(codes[:3]) + (", ..." if len(codes) > 3 else "")
    file = "a CSV file with the columns label,name"
    advice = "--names has no words for them" if has_names else f"give --names, {file}"
    text = f"the labels look like codes: {advice} ({few})"
    show.err.print(f"[yellow]Hint:[/] {escape(show.one_line(text))}")


def _spread(labelled: list[tuple[Path, str]], limit: int) -> list[tuple[Path, str]]:
    """At most `limit` images, spread evenly so that every label keeps its share."""
    step = max(1, len(labelled) // limit) if limit else 1
    return labelled[::step][: limit or None]


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    from clipfleet.cli.evaluation import table_rows
    from clipfleet.common.errors import InvalidRequest

    rows = table_rows(path)
    if not rows or not {"label", "name"} <= rows[0].keys():
        raise InvalidRequest(f"{path} needs the columns label and name")
    return {row["label"]: row["name"] for row in rows}
