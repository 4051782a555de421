"""How a job is getting on, for people: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from clipfleet.results import Job

if TYPE_CHECKING:  # rich takes a while to import, and most programs show nothing
    from rich.console import Console

LINE_S = 5.0

Listener = Callable[[Job], None]
Progress = bool | Listener


@contextmanager
def listening(progress: Progress, console: "Console | None" = None) -> Iterator[Listener]:
    """Whom to tell of a job's every state. True: people, on standard error."""
    if callable(progress):
        yield progress
    elif not progress:
        yield _nobody
    else:
        console = console or _standard_error()
        if console.is_terminal and not console.is_dumb_terminal:  # rich shows no bar in such a one
            with _bar(console) as listener:
                yield listener
        else:
            yield lines(console)


def _nobody(_: Job) -> None:
    pass


def lines(console: "Console", clock: Callable[[], float] = time.monotonic) -> Listener:
    """A line when the job has something new to say, and every few seconds otherwise."""
    said_at, said_what = -LINE_S, ""

    def tell(job: Job) -> None:
        nonlocal said_at, said_what
        if clock() - said_at >= LINE_S or said_what != what(job):
            said_at, said_what = clock(), what(job)
            console.print(f"{job.id}: {line(job)}", markup=False)

    return tell


@contextmanager
def _bar(console: "Console") -> Iterator[Listener]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("waiting", total=None, pace="")
        waited_for = ""

        def tell(job: Job) -> None:
            nonlocal waited_for
            if job.waiting and waited_for != job.waiting:  # a sentence, too long to be in the bar
                waited_for = job.waiting
                bars.console.print(f"waiting: {what(job)}", markup=False)
            bars.update(
                bar,
                completed=finished(job),
                total=job.total or None,  # none yet: the bar swings to and fro
                description="waiting" if job.waiting else job.state,
                pace=pace(job),
            )

        yield tell


def line(job: Job) -> str:
    """`running, 120 of 1,000 images, 45/s, 0:00:20 left`"""
    counted = f"{finished(job):,} of {job.total:,} images" if job.total else ""
    failed = f"{job.failed:,} failed" if job.failed else ""
    return ", ".join(part for part in (what(job), counted, failed, pace(job)) if part)


def what(job: Job) -> str:
    """What it does or waits for. Names come from outside: no control character gets through."""
    said = job.waiting or job.state
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in said)


def pace(job: Job) -> str:
    """The service's own rate and estimate: `45/s, 0:00:20 left`."""
    rate = f"{job.rate:.3g}/s" if job.rate and job.rate < 10 else f"{job.rate or 0:,.0f}/s"
    left = "" if job.eta_s is None else f"{timedelta(seconds=round(job.eta_s))} left"
    return ", ".join(part for part in (rate if job.rate else "", left) if part)


def finished(job: Job) -> int:
    return job.done + job.failed + job.skipped


def _standard_error() -> "Console":
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, emoji=False, highlight=False)
    if console.is_jupyter:  # lines: for a bar there, Rich wants packages that few have
        return Console(stderr=True, soft_wrap=True, force_jupyter=False, force_terminal=False)
    return console
