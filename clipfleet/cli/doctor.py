"""`clipfleet doctor`: finds faults of a running service, measures it and says what to change."""

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from clipfleet._version import __version__
from clipfleet.cli import doctor_probe, show
from clipfleet.cli.show import URL, ApiKey, Json, Url
from clipfleet.client import Client
from clipfleet.common.http.fleet import FleetOut

COLOURS = {"error": "red", "warning": "yellow"}
MAX_IMAGES, MAX_BYTES = 500, 200_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Folder of images for the probe. Default: sample drawings."),
]


def doctor(
    images: ImagesOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds that the probe may index.")] = 10,
    probing: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Measure the service, or only check it.")
    ] = True,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Check the parts, versions and settings of a running service, then measure its speed.

    The probe indexes images into a collection of its own, searches them, and deletes the
    collection and its job, also after Ctrl-C. Needs a key with scope admin. The exit code is 1 if
    an error was found, else 0.
    """
    chosen = _images(images) if probing else []
    with _interrupted_by_sigterm(), show.client(url, api_key) as client:
        fleet = client.fleet()
        if not json:
            _show_fleet(fleet, url)
        has_errors = any(finding.severity == "error" for finding in fleet.findings)
        result = _probe(client, chosen, seconds) if probing and not has_errors else None
    if json:
        print(_document(fleet, result))
    else:
        _show_probe(result)
    sys.exit(1 if has_errors else 0)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that the probe cleans up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _images(folder: Path | None) -> list[Path]:
    top = folder or Path(str(files("clipfleet"))) / "samples"
    paths = (path for path in sorted(top.rglob("*")) if path.suffix.lower() in SUFFIXES)
    chosen = list(_for_one_upload(path for path in paths if path.is_file()))
    if not chosen:
        raise ValueError(f"{top} has no images ({', '.join(SUFFIXES)}) for the probe")
    return chosen


def _for_one_upload(paths: Iterable[Path]) -> Iterator[Path]:
    """At most MAX_IMAGES and MAX_BYTES of the images, each with a name of its own."""
    names: set[str] = set()
    size = 0
    for path in paths:
        size += path.stat().st_size
        if len(names) == MAX_IMAGES or size > MAX_BYTES:
            return
        if path.name not in names:
            names.add(path.name)
            yield path


def _probe(client: Client, images: list[Path], seconds: float) -> doctor_probe.Probe:
    with show.err.status("probing") as status:
        return doctor_probe.probe(
            client, images, seconds, lambda text: status.update(f"probing: {text}")
        )


def _document(fleet: FleetOut, result: doctor_probe.Probe | None) -> str:
    import json

    document: dict[str, Any] = {"client": __version__, "fleet": fleet.model_dump(mode="json")}
    return json.dumps({**document, "probe": asdict(result) if result else None}, indent=2)


def _show_fleet(fleet: FleetOut, url: str) -> None:
    show.out.print(f"{escape(url)}: clipfleet {fleet.version}, {len(fleet.planners)} planners")
    if fleet.version != __version__:
        show.out.print(f"[yellow]this command has version {__version__}[/]")
    table = Table("worker", "lanes", "device", "images/s", "model")
    for worker in fleet.workers:
        rate = f"{worker.rate:.0f}" if worker.rate else ""
        table.add_row(
            worker.host, " ".join(worker.lanes), worker.device, rate, escape(worker.model)
        )
    if fleet.workers:
        show.out.print(table)
    if fleet.work_left:
        show.out.print(
            f"{fleet.work_left:,} images of jobs are not indexed yet: they slow the probe down"
        )
    for finding in fleet.findings:
        colour = COLOURS[finding.severity]
        what = escape(show.one_line(f"{finding.part}: {finding.what}"))
        show.out.print(f"[{colour}]{finding.severity}[/] {what}")
        show.out.print(f"    {escape(show.one_line(finding.advice))}")
    if not fleet.findings:
        show.out.print("[green]no faults found[/]")


def _show_probe(result: doctor_probe.Probe | None) -> None:
    if result is None:
        return
    show.out.print(
        f"probe: {result.images} images in {result.seconds:.1f} s, {result.rate:.0f} images/s"
    )
    show.out.print(
        f"       one search takes {result.search_ms:.0f} ms (95 %: {result.search_p95_ms:.0f})"
    )
    if result.stages:
        table = Table("stage", "ms an image", "images/s of this stage alone")
        for stage in result.stages:
            parts = ", ".join(f"{part} {ms:.1f}" for part, ms in stage.parts.items())
            shown = f"{stage.ms:.1f} ({parts})" if len(stage.parts) > 1 else f"{stage.ms:.1f}"
            table.add_row(stage.name, shown, f"{stage.alone:.0f}")
        show.out.print(table)
    show.out.print(f"advice: {escape(result.advice)}")
