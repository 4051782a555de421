"""`clipfleet doctor`: what is wrong with a service, how fast it is, and what to change first."""

import sys
from collections.abc import Iterable, Iterator
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
MOST, MOST_BYTES = 500, 200_000_000
KINDS = (".jpg", ".jpeg", ".png", ".webp")

ImagesOption = Annotated[
    Path | None,
    typer.Option(help="A folder of images like yours for the probe.  [default: sample drawings]"),
]

ProbeOption = Annotated[bool, typer.Option("--probe/--no-probe", help="Try it, or only look.")]


def doctor(
    images: ImagesOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long the probe may index.")] = 10,
    probing: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try it, or only look.")
    ] = True,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Check a running service: its parts, versions and settings; then time it for ten seconds.

    The probe indexes sample images into a collection of its own, searches them, and removes it
    again. Ends 1 when something is wrong, 0 when nothing is or could merely do better.
    """
    chosen = _images(images) if probing else []
    with show.client(url, api_key) as client:
        fleet = client.fleet()
        if not json:
            _show_fleet(fleet, url)
        wrong = any(one.severity == "error" for one in fleet.findings)
        done = _probe(client, chosen, seconds) if probing and not wrong else None
    if json:
        print(_document(fleet, done))
    else:
        _show_probe(done)
    sys.exit(1 if wrong else 0)


def _images(folder: Path | None) -> list[Path]:
    top = folder or Path(str(files("clipfleet"))) / "samples"
    found = (path for path in sorted(top.rglob("*")) if path.suffix.lower() in KINDS)
    chosen = list(_for_one_upload(path for path in found if path.is_file()))
    if not chosen:
        raise ValueError(f"{top} has no images ({', '.join(KINDS)}) for the probe")
    return chosen


def _for_one_upload(paths: Iterable[Path]) -> Iterator[Path]:
    """As many as the probe needs and an upload may hold, no name twice."""
    names: set[str] = set()
    size = 0
    for path in paths:
        size += path.stat().st_size
        if len(names) == MOST or size > MOST_BYTES:
            return
        if path.name not in names:
            names.add(path.name)
            yield path


def _probe(client: Client, images: list[Path], seconds: float) -> doctor_probe.Probe:
    with show.err.status("probing") as status:
        return doctor_probe.probe(
            client, images, seconds, lambda text: status.update(f"probing: {text}")
        )


def _document(fleet: FleetOut, done: doctor_probe.Probe | None) -> str:
    import json

    told: dict[str, Any] = {"client": __version__, "fleet": fleet.model_dump(mode="json")}
    return json.dumps({**told, "probe": asdict(done) if done else None}, indent=2)


def _show_fleet(fleet: FleetOut, url: str) -> None:
    show.out.print(f"{escape(url)}: clipfleet {fleet.version}, {len(fleet.planners)} planners")
    if fleet.version != __version__:
        show.out.print(f"[yellow]this command is of version {__version__}[/]")
    table = Table("worker", "lanes", "device", "images/s", "model")
    for one in fleet.workers:
        rate = f"{one.rate:.0f}" if one.rate else ""
        table.add_row(one.host, " ".join(one.lanes), one.device, rate, escape(one.model))
    if fleet.workers:
        show.out.print(table)
    if fleet.work_left:
        show.out.print(f"{fleet.work_left:,} images are being indexed: the probe will be slower")
    for found in fleet.findings:
        colour = COLOURS[found.severity]
        what = escape(show.one_line(f"{found.part}: {found.what}"))
        show.out.print(f"[{colour}]{found.severity}[/] {what}")
        show.out.print(f"    {escape(show.one_line(found.advice))}")
    if not fleet.findings:
        show.out.print("[green]nothing is wrong that can be seen from here[/]")


def _show_probe(done: doctor_probe.Probe | None) -> None:
    if done is None:
        return
    show.out.print(f"probe: {done.images} images in {done.seconds:.1f} s, {done.rate:.0f} images/s")
    show.out.print(
        f"       one search takes {done.search_ms:.0f} ms (95 %: {done.search_p95_ms:.0f})"
    )
    if done.stages:
        table = Table("stage", "ms an image", "images/s if it were all")
        for stage in done.stages:
            table.add_row(stage.name, f"{stage.ms:.1f}", f"{stage.alone:.0f}")
        show.out.print(table)
    show.out.print(f"first: {escape(done.advice)}")
