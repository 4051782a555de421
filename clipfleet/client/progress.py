"""Shows the progress of a job: a bar in a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from clipfleet.client.folder_upload import Sent
from clipfleet.results import Job

if TYPE_CHECKING:  # rich takes long to import, and most programs show no progress
    from rich.console import Console

LINE_INTERVAL_S = 5.0  # between two lines of a job whose state does not change

Listener = Callable[[Job], None]
Progress = bool | Listener


@contextmanager
def listening(progress: Progress, console: "Console | None" = None) -> Iterator[Listener]:
    """Yield a function to call with a job at every look.

    Args:
        progress: False shows nothing, True shows progress, a function is used as it is.
        console: where to show it. Default: standard error.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield _ignore
    else:
        console = console or _standard_error()
        if console.is_terminal and not console.is_dumb_terminal:  # rich shows no bar in a dumb one
            with _bar(console) as listener:
                yield listener
        else:
            yield lines(console)


@contextmanager
def sending(
    shows: bool, listener: Callable[[Sent], None] | None = None, console: "Console | None" = None
) -> Iterator[Callable[[Sent], None]]:
    """Yield a function to call with the progress of an upload.

    Args:
        shows: whether to show it.
        listener: called with it as well.
        console: where to show it. Default: standard error.
    """
    also = listener or _ignore_sent
    if not shows:
        yield also
        return
    console = console or _standard_error()
    if not console.is_terminal or console.is_dumb_terminal:
        print_line = _sent_lines(console)

        def tell(sent: Sent) -> None:
            print_line(sent)
            also(sent)

        yield tell
        return
    with _sent_bar(console) as update:

        def tell_bar(sent: Sent) -> None:
            update(sent)
            also(sent)

        yield tell_bar


@contextmanager
def _sent_bar(console: "Console") -> Iterator[Callable[[Sent], None]]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("sending", total=None)
        yield lambda sent: bars.update(
            bar,
            completed=sent.done_bytes,
            total=max(sent.bytes, 1),
            description=f"sending, {sent.done:,} of {sent.images:,} images",
        )


def _sent_lines(
    console: "Console", clock: Callable[[], float] = time.monotonic
) -> Callable[[Sent], None]:
    """Print a line every LINE_INTERVAL_S, and one at the end."""
    printed_at, printed = -LINE_INTERVAL_S, -1

    def tell(sent: Sent) -> None:
        nonlocal printed_at, printed
        is_end = sent.done == sent.images and printed != sent.done
        if is_end or clock() - printed_at >= LINE_INTERVAL_S:
            printed_at, printed = clock(), sent.done
            console.print(sent_line(sent), markup=False)

    return tell


def sent_line(sent: Sent) -> str:
    """`sending, 120 of 1,000 images (80 the service had, 1 failed)`"""
    had = f"{sent.had:,} the service had" if sent.had else ""
    failed = f"{sent.failed:,} failed" if sent.failed else ""
    more = ", ".join(part for part in (had, failed) if part)
    counted = f"sending, {sent.done:,} of {sent.images:,} images"
    return f"{counted} ({more})" if more else counted


def _ignore_sent(_: Sent) -> None:
    pass


def _ignore(_: Job) -> None:
    pass


def lines(console: "Console", clock: Callable[[], float] = time.monotonic) -> Listener:
    """Print a line when the job's state changes, and every LINE_INTERVAL_S otherwise."""
    printed_at, printed_status = -LINE_INTERVAL_S, ""

    def tell(job: Job) -> None:
        nonlocal printed_at, printed_status
        if clock() - printed_at >= LINE_INTERVAL_S or printed_status != status(job):
            printed_at, printed_status = clock(), status(job)
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
            if job.waiting and waited_for != job.waiting:  # a sentence is too long for the bar
                waited_for = job.waiting
                bars.console.print(f"waiting: {status(job)}", markup=False)
            bars.update(
                bar,
                completed=finished(job),
                total=job.total or None,  # None: the bar moves to and fro
                description="waiting" if job.waiting else job.state,
                pace=pace(job),
            )

        yield tell


def line(job: Job) -> str:
    """`running, 120 of 1,000 images, 45/s, 0:00:20 left`"""
    counted = f"{finished(job):,} of {job.total:,} images" if job.total else ""
    failed = f"{job.failed:,} failed" if job.failed else ""
    return ", ".join(part for part in (status(job), counted, failed, pace(job)) if part)


def status(job: Job) -> str:
    """What the job waits for, or its state. Control characters are escaped: names can hold them."""
    text = job.waiting or job.state
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def pace(job: Job) -> str:
    """The rate and the remaining time that the service estimates: `45/s, 0:00:20 left`."""
    rate = f"{job.rate:.3g}/s" if job.rate and job.rate < 10 else f"{job.rate or 0:,.0f}/s"
    remaining = "" if job.eta_s is None else f"{timedelta(seconds=round(job.eta_s))} left"
    return ", ".join(part for part in (rate if job.rate else "", remaining) if part)


def finished(job: Job) -> int:
    """Images that are done, failed or skipped."""
    return job.done + job.failed + job.skipped


def _standard_error() -> "Console":
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, emoji=False, highlight=False)
    if console.is_jupyter:  # print lines there: a bar would need further packages
        return Console(stderr=True, soft_wrap=True, force_jupyter=False, force_terminal=False)
    return console
