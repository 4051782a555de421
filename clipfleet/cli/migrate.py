"""`clipfleet collections migrate`: gives a collection another model while it is searched."""

import sys
import time
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clipfleet.cli import show
from clipfleet.cli.follow import INTERRUPTED
from clipfleet.cli.show import URL, ApiKey, Json, Name, Url
from clipfleet.client import Client
from clipfleet.results import Migration

POLL_S = 1.0
LINE_INTERVAL_S = 5.0  # between two lines of progress, where there is no terminal
SHOWN_UNREADABLE = 20

Step = Literal["pause", "resume", "swap", "rollback", "finish", "cancel"]
STEPS: tuple[Step, ...] = ("pause", "resume", "swap", "rollback", "finish", "cancel")


def migrate(
    name: Name,
    model: Annotated[
        str | None,
        typer.Option(help="Start a migration to this model, which workers must serve."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Show progress until all images are copied. Ctrl-C leaves it running."
        ),
    ] = False,
    swap: Annotated[
        bool, typer.Option("--swap", help="Answer searches with the new model from now on.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Answer searches with the old model again.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Delete the old generation; there is no way back.")
    ] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Stop to copy images.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on, and try images again that could not be read."),
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Give up, and delete the new generation.")
    ] = False,
    unreadable: Annotated[
        bool, typer.Option("--unreadable", help="List all images that cannot be read any more.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Swap, go back or finish although images are missing."),
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Give a collection another model while it is searched.

    Without an option, shows the migration. With --model, starts one: images are read again and
    embedded with the other model in the background. --swap lets the collection have the new model,
    --rollback the old one; --finish ends it.
    """
    flags = dict(zip(STEPS, (pause, resume, swap, rollback, finish, cancel), strict=True))
    chosen = [step for step in STEPS if flags[step]]
    if len(chosen) + (model is not None) + unreadable > 1:
        names = [f"--{step}" for step in chosen] + ["--model"] * (model is not None)
        names += ["--unreadable"] * unreadable
        show.fail(ValueError(f"{' and '.join(names)} cannot be used together"))
    if force and not {"swap", "rollback", "finish"} & {*chosen}:
        show.fail(ValueError("--force goes with --swap, --rollback or --finish"))
    with show.client(url, api_key) as client:
        if unreadable:
            _list_unreadable(client, name, json=json)
            return
        if model is not None:
            migration = client.start_migration(name, model)
        elif chosen:
            migration = _change(client, name, chosen[0], force=force)
        else:
            migration = client.migration(name)
        if follow:
            migration = _follow(client, migration, json=json)
        if json:
            show.document(migration)
        else:
            _show(client, migration)
    is_wanted = {"paused": pause, "cancelled": cancel}.get(migration.state, False)
    if follow and migration.state in ("paused", "cancelled", "failed") and not is_wanted:
        sys.exit(1)


def _change(client: Client, name: str, step: Step, *, force: bool) -> Migration:
    match step:
        case "pause":
            return client.pause_migration(name)
        case "resume":
            return client.resume_migration(name)
        case "swap":
            return client.swap_migration(name, force=force)
        case "rollback":
            return client.roll_back_migration(name, force=force)
        case "finish":
            return client.finish_migration(name, force=force)
        case "cancel":
            return client.cancel_migration(name)


def _follow(client: Client, migration: Migration, *, json: bool) -> Migration:
    """Show progress until all images are copied and compared, or the migration stops."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    printed_at = 0.0
    try:
        with Progress(*columns, console=show.err, transient=True) as progress:
            task = progress.add_task("copying", total=None)
            while not _is_done(migration):
                total = _images(migration)
                progress.update(
                    task, description=_progress(migration), total=total,
                    completed=max(0, total - migration.missing),
                )  # fmt: skip
                if not show.err.is_terminal and time.monotonic() - printed_at >= LINE_INTERVAL_S:
                    printed_at = time.monotonic()
                    show.err.print(_progress(migration), markup=False)
                time.sleep(POLL_S)
                migration = client.migration(migration.collection)
    except KeyboardInterrupt:
        command = f"clipfleet collections migrate {migration.collection} --follow"
        show.err.print(f"The migration continues. Follow it with: {escape(command)}")
        if json:
            show.document(migration)
        sys.exit(INTERRUPTED)
    return migration


def _is_done(migration: Migration) -> bool:
    """Whether there is nothing to wait for: all is copied and compared, or it has stopped."""
    if migration.state not in ("building", "ready"):
        return True
    is_copied = migration.state == "ready" and not migration.missing and not migration.jobs
    answers = migration.old.images - migration.unreadable
    return is_copied and (migration.comparison is not None or answers < 2)


def _images(migration: Migration) -> int:
    return migration.old.images if migration.old.answers else migration.new.images


def _progress(migration: Migration) -> str:
    """Where the migration is, in one line."""
    total = _images(migration)
    parts = [f"{total - migration.missing:,} of {total:,} images"]
    if migration.images_per_second:
        parts.append(f"{migration.images_per_second:,.1f} images/s")
    if migration.eta_s is not None:
        parts.append(f"{_duration(migration.eta_s)} left")
    if migration.unreadable:
        parts.append(f"{migration.unreadable:,} cannot be read")
    if migration.waiting:
        parts.append(f"waiting: {migration.waiting}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _show(client: Client, migration: Migration) -> None:
    """Print a migration, the first images that cannot be read, and the command for what is next."""
    name = migration.collection
    lines = [f"{name}: {migration.old.model} → {migration.new.model}, {migration.state}"]
    if migration.error:
        lines.append(f"  {migration.error}")
    lines += [
        f"  {side.model}: {side.images:,} images of {side.dim} numbers"
        + (", answers searches" if side.answers else "")
        for side in (migration.old, migration.new)
    ]
    is_over = migration.state in ("finished", "cancelled", "failed")
    if not is_over:
        lines.append(f"  {_progress(migration)}")
    if (compared := migration.comparison) and compared.queries:
        lines.append(
            f"  {compared.overlap_at_10:.0%} of the ten nearest images are the same "
            f"({compared.queries} queries)"
        )
        if compared.precision_at_10_old is not None and compared.precision_at_10_new is not None:
            lines.append(
                f"  same label among the ten nearest: {compared.precision_at_10_old:.1%} before, "
                f"{compared.precision_at_10_new:.1%} after ({compared.labelled} queries)"
            )
    show.out.print("\n".join(lines), markup=False)
    if migration.unreadable and not is_over:
        for image in client.unreadable(name, SHOWN_UNREADABLE).images:
            shown = f"{show.one_line(image.id)}: {show.one_line(image.reason)}"
            show.err.print(f"[red]cannot be read[/] {escape(shown)}")
        if migration.unreadable > SHOWN_UNREADABLE:
            show.err.print(f"… all of them: clipfleet collections migrate {name} --unreadable")
    if following := _next(migration):
        show.out.print(following, markup=False)


def _next(migration: Migration) -> str:
    """The command for what comes next; "" when there is none."""
    command = f"clipfleet collections migrate {migration.collection}"
    match migration.state:
        case "ready" if not migration.missing:
            force = " --force" if migration.unreadable else ""
            return f"next: {command} --swap{force}"
        case "building" | "ready":
            return f"follow it: {command} --follow"
        case "paused":
            return f"go on: {command} --resume"
        case "swapped":
            return f"next: {command} --finish    (or back: {command} --rollback)"
    return ""


def _list_unreadable(client: Client, name: str, *, json: bool) -> None:
    """List all images that cannot be read any more, as lines or as lines of JSON."""
    cursor: str | None = ""
    while cursor is not None:
        page = client.unreadable(name, 1_000, cursor=cursor)
        for image in page.images:
            if json:
                print(image.model_dump_json())
            else:
                print(f"{show.one_line(image.id)}\t{show.one_line(image.reason)}")
        cursor = page.next
