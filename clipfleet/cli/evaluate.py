"""`clipfleet evaluate`: numbers for any model on your own images."""

import csv
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
        Path, typer.Argument(help="A folder with a folder per label, or a CSV image,caption.")
    ],
    model: Annotated[
        str, typer.Option(help="Hub id, folder or clipfleet-mini.")
    ] = "clipfleet-mini",
    prompt: Annotated[str, typer.Option(help="Around a label's name.")] = "a photo of a {name}",
    names: Annotated[
        Path | None, typer.Option(help="CSV label,name: words for the labels.", exists=True)
    ] = None,
    gallery: Annotated[
        int, typer.Option(min=0, help="Captions: search among so many images; 0: all.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, help="At most so many images; 0: all.")] = 0,
    json: Json = False,
) -> None:
    """Measure a model: naming images by their label, nearest neighbours, finding by caption.

    Needs no running service.
    """
    with _installed():
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


@contextmanager
def _installed() -> Iterator[None]:
    """What is imported here comes with the extra `worker`."""
    try:
        yield
    except ImportError as error:
        raise typer.BadParameter(
            f"{error.name} is missing: pip install 'clipfleet[worker]'"
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
        raise InvalidRequest(f"there is no {source}")
    if "{name}" not in prompt:
        raise InvalidRequest("the prompt needs {name} in it")
    settings = Settings(model=model)
    if source.is_dir():
        labelled = _spread(metrics.labelled_images(source), limit)
        seen, embedder = _embedded([path for path, _ in labelled], settings)
        truth = [labelled[n][1] for n in seen.kept]
        found = metrics.classify(seen.rows, truth, names, prompt, embedder)
        found |= metrics.neighbours(seen.rows, truth)
        return {
            "model": model,
            "images": len(truth),
            "unreadable": len(labelled) - len(truth),
        } | found
    paths, captions = metrics.captioned_images(source)
    paths = paths[: limit or None]
    seen, embedder = _embedded(paths, settings)
    row = {n: row for row, n in enumerate(seen.kept)}
    used = [(row[n], text) for n, text in captions if n in row]
    texts = embedder.embed_texts([text for _, text in used])
    found = metrics.retrieve(texts, seen.rows, [owner for owner, _ in used], gallery)
    return {"model": model, "images": len(row), "unreadable": len(paths) - len(row)} | found


def _embedded(paths: list[Path], settings: Any) -> tuple[Any, Any]:
    """The images' embeddings, with a progress bar, and the model that made them."""
    from clipfleet.cli.evaluation import embed_images

    with _installed():  # torch takes seconds to import: what is wrong with the input comes first
        from clipfleet.workers.embedding.clip import ClipEmbedder
    embedder = ClipEmbedder(settings)
    with Progress(console=show.err, transient=True) as progress:
        bar = progress.add_task("embedding images", total=len(paths))
        seen = embed_images(
            paths, embedder, settings, lambda done, _: progress.update(bar, completed=done)
        )
    return seen, embedder


def _spread(labelled: list[tuple[Path, str]], limit: int) -> list[tuple[Path, str]]:
    """Evenly over the list, so that every label keeps its share."""
    step = max(1, len(labelled) // limit) if limit else 1
    return labelled[::step][: limit or None]


def _names(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    with path.open(newline="", encoding="utf-8") as lines:
        return {row["label"]: row["name"] for row in csv.DictReader(lines)}
