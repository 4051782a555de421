"""`clipfleet demo`: starts a service, indexes images, searches them and keeps running."""

import os
import shlex
import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clipfleet.cli import show
from clipfleet.cli.follow import failures, follow
from clipfleet.cli.up import DATA, DataOption, HostOption, ModelOption, PortOption, run_stack
from clipfleet.client import Client
from clipfleet.client._config import DEFAULT_URL
from clipfleet.common.http.schemas import JobOut, MatchOut
from clipfleet.errors import NotFound, ProblemError, Unreachable

MODEL = "clipfleet-mini"
SHOWN = 5
SAMPLES = Path(str(files("clipfleet"))) / "samples"


class _DemoError(Exception):
    """The demo cannot continue. The text says what to do."""


@dataclass(frozen=True)
class _Show:
    """What the demo shows.

    Attributes:
        folder: the images to index.
        collection: the collection that they go into.
        words: texts to search by.
        example: the image to search by. Default: the first match that is a file.
    """

    folder: Path
    collection: str
    words: tuple[str, ...]
    example: Path | None = None

    def name(self, image_id: str) -> str:
        """A name for people: `red-fox` for a sample image, else the path below `folder`."""
        if self.example:
            return Path(image_id).stem
        return image_id.removeprefix(f"{self.folder}{os.sep}")


OURS = _Show(
    SAMPLES, "demo", ("a musical instrument", "a computer"), SAMPLES / "buildings" / "house.png"
)


def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder of images of your own. Default: sample drawings.")
    ] = None,
    data: DataOption = DATA,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    model: ModelOption = None,
) -> None:
    """Start a service, index sample images or your own, search them, and keep running.

    Ctrl-C stops it.
    """
    shown = _yours(images) if images else OURS
    stopping = threading.Event()
    chosen = model or os.environ.get("CLIPFLEET_MODEL") or MODEL
    tour = _Tour(shown, chosen, stopping)
    show.out.print(f"Starting clipfleet with the model {escape(chosen)}; its data is in {data}.")
    run_stack(data, host, port, chosen, 1, stopping, tour.start)
    sys.exit(1 if tour.failed else 0)


def _yours(images: Path) -> _Show:
    """The demo of a folder. ValueError if the folder has no images, before anything is started."""
    folder = Path(os.path.abspath(images.expanduser()))
    try:
        from clipfleet.common.auth.source_access import OwnPlaces, SourceAccess
        from clipfleet.common.http.source_grants import SourceGrant
        from clipfleet.common.http.sources import FolderSource
        from clipfleet.workers.sources import Folder, SourceError
    except ImportError:  # run_stack reports what to install
        return _Show(folder, "pictures", ())
    everything = SourceAccess(SourceGrant(), OwnPlaces())
    source = Folder(FolderSource(path=str(folder)), everything)
    try:
        empty = next(source.stream(""), None) is None
    except SourceError as error:
        raise ValueError(f"{error}; give a folder of images with --images") from error
    if empty:
        raise ValueError(f"{source.nothing_found()}; give another folder with --images")
    return _Show(folder, "pictures", ("a person", "a building"))


class _Tour:
    """Indexes and searches in a thread of its own, while the stack runs."""

    def __init__(self, shown: _Show, model: str, stopping: threading.Event) -> None:
        self._show, self._model, self._stopping = shown, model, stopping
        self.failed = False

    def start(self, url: str, data: Path) -> None:
        threading.Thread(target=self._run, args=(url, data), name="demo", daemon=True).start()

    def _run(self, url: str, data: Path) -> None:
        try:
            with Client(url) as client:
                self._index(client, data)
                self._search(client)
        except (ProblemError, Unreachable, OSError, _DemoError) as error:
            if not self._stopping.is_set():
                show.err.print(f"[red]clipfleet:[/] {escape(show.one_line(str(error)))}")
                self.failed = True
                self._stopping.set()
            return
        self._show_next_steps(url, data)

    def _index(self, client: Client, data: Path) -> None:
        self._require_same_model(client, data)
        show.out.print(f"Indexing the images in {escape(show.one_line(str(self._show.folder)))}")
        began = time.monotonic()
        job = client.index(self._show.collection, self._show.folder, label_from_folder=True)
        job = follow(client, job)
        failures(client, job)
        if job.failed and not job.done + job.skipped:
            raise _DemoError(
                "none of these images could be read; give another folder with --images"
            )
        if job.state in ("failed", "cancelled"):
            raise _DemoError(job.error or f"the job was {job.state}")
        show.out.print(f"{_counts(job)} ({time.monotonic() - began:.0f} s)")

    def _require_same_model(self, client: Client, data: Path) -> None:
        with suppress(NotFound):
            made_with = client.collection(self._show.collection).model
            if made_with != self._model:
                raise _DemoError(
                    f"the images in {data} were indexed with {made_with}, not {self._model}; "
                    f"add --model {made_with}, or --data with another folder"
                )

    def _search(self, client: Client) -> None:
        collection, example = self._show.collection, self._show.example
        for words in self._show.words:
            result = client.search(collection, text=words, top_k=SHOWN)
            show.out.print(f"\nsearched for [bold]{escape(words)}[/]")
            show.pictures(result, self._show.name)
            example = example or next(iter(_files(result.matches)), None)
        if example:
            result = client.search(collection, image=example, top_k=SHOWN)
            shown = escape(show.one_line(self._show.name(str(example))))
            show.out.print(f"\nsearched by the image [bold]{shown}[/]")
            show.pictures(result, self._show.name)

    def _show_next_steps(self, url: str, data: Path) -> None:
        where = "" if url == DEFAULT_URL else f" --url {url}"
        command = f"{_script()} search 'a truck' --collection {self._show.collection}{where}"
        lines = [
            f"\nLook at them all in a browser: {url}",
            "Try your own words, there or in another terminal:",
            f"  {command}",
            f"The HTTP interface, to try out: {url}/docs",
        ]
        if self._model == MODEL:
            lines.append("The carried model is small; --model names a real CLIP (see README.md).")
        lines.append(f"clipfleet is up at {url} with its data in {data}. Ctrl-C stops it.")
        show.out.print(escape("\n".join(lines)))


def _counts(job: JobOut) -> str:
    if not job.done and not job.failed:
        return f"all {job.skipped} images were indexed before"
    more = f", {job.skipped} were indexed before" if job.skipped else ""
    bad = f", {job.failed} could not be read" if job.failed else ""
    return f"{job.done} images indexed{more}{bad}"


def _files(matches: list[MatchOut]) -> list[Path]:
    """The matches that are files. An id with escapes for bytes that are not UTF-8 is no path."""
    return [path for path in (Path(match.id) for match in matches) if path.is_file()]


def _script() -> str:
    """The command to type: `make demo` does not put `clipfleet` on the PATH."""
    return "clipfleet" if shutil.which("clipfleet") else shlex.quote(sys.argv[0])
