"""`clipfleet collections map`: a place in two dimensions for each image of a collection."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.cli import show
from clipfleet.cli.follow import exit_code, failures, follow
from clipfleet.cli.show import URL, ApiKey, Json, Name, Namespace, Url
from clipfleet.client import Client
from clipfleet.common.http.maps import MapMethod
from clipfleet.common.identity import DEFAULT_NAMESPACE
from clipfleet.results import Map


def map_(
    name: Name,
    method: Annotated[
        MapMethod | None,
        typer.Option(
            help="Make a new map: pca, pacmap (workers need the extra `map`), or auto, which is "
            "pacmap where workers have it."
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(help="Field to colour by: of a new map, and the column of --out."),
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of a new map's layout.")
    ] = 0,
    follow_: Annotated[
        bool, typer.Option("--follow", help="Wait until a new map is made. Ctrl-C leaves it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write with the id, x, y and value of each point."),
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Show the map of a collection, or make a new one.

    Without --method, shows the map. With it, starts a job that gives each image a place in two
    dimensions, near ones beside each other. The page shows the map.
    """
    with show.client(url, api_key) as client:
        if method is not None:
            job = client.make_map(name, method, field=field, namespace=namespace, seed=seed)
            if not (follow_ or out):
                show.document(job) if json else show.job(job)
                return
            job = follow(client, job, json=json)
            if job.state != "succeeded":
                failures(client, job)
                show.document(job) if json else show.job(job)
                sys.exit(exit_code(job))
        known = client.map_of(name, namespace)
        if out is not None:
            if known.state != "made":
                show.fail(ValueError(f"{name} has no map yet; make one with --method auto"))
            _write(client, name, known, field, out)
        show.document(known) if json else _show(name, known)


def _write(client: Client, name: str, known: Map, field: str | None, out: Path) -> None:
    """Write the points as CSV; the file is there as a whole or not at all."""
    partial = out.with_name(f"{out.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "x", "y", *([field] if field else [])])
            page: int | None = 0
            while page is not None and known.points:
                points = client.map_points(name, namespace=known.namespace, field=field, page=page)
                if points.map_id != known.map_id:
                    show.fail(ValueError("the map was replaced meanwhile; run the command again"))
                values = known.fields[field].values if field else []
                codes = points.codes or [-2] * len(points.ids)
                for image_id, x, y, code in zip(points.ids, points.x, points.y, codes, strict=True):
                    value = values[code] if code >= 0 else "other" if code == -1 else ""
                    rows.writerow([image_id, x, y, *([value] if field else [])])
                page = points.next
        partial.replace(out)
    except OSError as error:
        show.fail(error)
    finally:
        partial.unlink(missing_ok=True)


def _show(name: str, known: Map) -> None:
    if known.state != "made" or known.made_at is None:
        state = "a job makes its first map" if known.job else "it has no map"
        follow_it = f"clipfleet collections map {name} --method auto --follow"
        show.out.print(f"{name}: {state}" + ("" if known.job else f"; {follow_it}"), markup=False)
        return
    lines = [
        f"{name}: {known.points:,} points by {known.method}, made {show.moment(known.made_at)}"
    ]
    if known.sampled and known.sampled < known.points:
        lines.append(f"  {known.sampled:,} of them placed by PaCMAP, the others by neighbours")
    if known.not_on_map:
        lines.append(f"  {known.not_on_map:,} images are newer than the map")
    lines.append(f"  coloured by {', '.join(known.fields)}")
    if known.job:
        lines.append(f"  job {known.job.id} makes a new map")
    show.out.print("\n".join(lines), markup=False)
