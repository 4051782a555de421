"""`clipfleet demo`: start everything, index images, search them, stay up."""

import os
import threading
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from clipfleet.cli import show
from clipfleet.cli.follow import failures, follow
from clipfleet.cli.up import DATA, DataOption, HostOption, ModelOption, PortOption, run_stack
from clipfleet.client import Client
from clipfleet.common.schemas import JobOut
from clipfleet.errors import ProblemError, Unreachable

MODEL = "clipfleet-mini"
COLLECTION = "demo"
SHOWN = 5
SAMPLE_WORDS = ("a musical instrument", "something sweet to eat")
OTHER_WORDS = ("a person", "a building")


def demo(
    images: Annotated[Path | None, typer.Option(help="A folder of your own images.")] = None,
    data: DataOption = DATA,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    model: ModelOption = None,
) -> None:
    """See it work: index sample images (or yours), search them by words and by image."""
    if images is not None and not images.expanduser().is_dir():
        raise typer.BadParameter(f"there is no folder {images}")
    stopping = threading.Event()

    def ready(url: str, folder: Path) -> None:
        tour = _Tour(url, folder, images and images.expanduser(), stopping)
        threading.Thread(target=tour.run, name="demo", daemon=True).start()

    chosen = model or os.environ.get("CLIPFLEET_MODEL") or MODEL
    run_stack(data, host, port, chosen, 1, stopping, ready)


class _Tour:
    def __init__(
        self, url: str, data: Path, images: Path | None, stopping: threading.Event
    ) -> None:
        self._url, self._data, self._stopping = url, data, stopping
        self._words = SAMPLE_WORDS if images is None else OTHER_WORDS
        self._images = (images or Path(str(files("clipfleet"))) / "samples").absolute()

    def run(self) -> None:
        try:
            with Client(self._url) as client:
                self._show(client)
        except (ProblemError, Unreachable) as error:
            if not self._stopping.is_set():
                show.err.print(f"[red]clipfleet:[/] {escape(str(error))}")
                self._stopping.set()

    def _show(self, client: Client) -> None:
        job = self._index(client)
        if job.state in ("failed", "cancelled"):
            show.err.print(f"[red]clipfleet:[/] {escape(job.error or job.state)}")
            self._stopping.set()
            return
        for words in self._words:
            show.out.print(f"\n[bold]{words}[/]")
            show.matches(client.search(COLLECTION, text=words, top_k=SHOWN))
        example = client.search(COLLECTION, text=self._words[0], top_k=1).matches
        if example:
            show.out.print(f"\n[bold]like the image {escape(show.one_line(example[0].id))}[/]")
            show.matches(client.search(COLLECTION, image=example[0].id, top_k=SHOWN))
        self._what_now()

    def _index(self, client: Client) -> JobOut:
        show.out.print(f"indexing {self._images}")
        job = client.index(self._images, COLLECTION, label_from_folder=True)
        job = follow(client, job)
        show.out.print(f"{job.done} images indexed, {job.skipped} were in already")
        failures(client, job)
        return job

    def _what_now(self) -> None:
        show.out.print(
            f"\nclipfleet is up at [bold]{self._url}[/] (API: {self._url}/docs), "
            f"data in {self._data}."
            f"\nIn another terminal:  clipfleet search 'a red fruit' --collection {COLLECTION}"
            f" --url {self._url}"
            "\nThe carried model is small; CLIPFLEET_MODEL names a real CLIP. Ctrl-C stops."
        )
