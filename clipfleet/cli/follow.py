"""Follows a job until it ends, and prints its result."""

import os
import shlex
import sys
from typing import NoReturn

from rich.markup import escape

from clipfleet.cli import show
from clipfleet.client import Client
from clipfleet.client._config import DEFAULT_URL
from clipfleet.client.progress import listening
from clipfleet.errors import JobFailed
from clipfleet.results import Job

INTERRUPTED = 130  # exit code of shells after Ctrl-C
EXIT = {"succeeded": 0, "partial": 3}
SHOWN_FAILURES = 5
SHOWN_MISSING = 20


def exit_code(job: Job) -> int:
    """0 if all images were indexed, 3 if some failed, 1 if the job failed or was cancelled."""
    return EXIT.get(job.state, 1)


def show_and_exit(client: Client, job: Job, *, wait: bool, json: bool) -> NoReturn:
    """Print the job and exit.

    Args:
        client: the client that started or fetched the job.
        job: the job.
        wait: wait until the job has ended, and exit with `exit_code`. Otherwise exit with 0.
        json: print the job as JSON.
    """
    if wait:
        job = follow(client, job, json=json)
        failures(client, job)
    show.document(job) if json else show.job(job)
    if wait and not json:
        missing(client, job)
    sys.exit(exit_code(job) if wait else 0)


def follow(client: Client, job: Job, *, json: bool = False) -> Job:
    """Show progress until the job has ended, and return the job as it is then.

    Ctrl-C ends the program, not the job.
    """
    seen = job
    try:
        with listening(True, show.err) as listener:

            def listen(now: Job) -> None:
                nonlocal seen
                seen = now
                listener(now)

            return client.wait(job, progress=listen)
    except JobFailed as failed:
        return failed.job
    except KeyboardInterrupt:
        show.err.print(f"The job continues. Follow it with: {escape(_command(client, job))}")
        if json:
            show.document(seen)
        sys.exit(INTERRUPTED)


def failures(client: Client, job: Job) -> None:
    """Print the first failures of a job on standard error."""
    if not job.failed:
        return
    page = client.failures(job, SHOWN_FAILURES)
    for failure in page.failures:
        name, reason = escape(show.one_line(failure.id)), escape(show.one_line(failure.reason))
        show.err.print(f"[red]failed[/] {name}: {reason}")
    if job.failed > len(page.failures):
        show.err.print(f"… {job.failed} in all: clipfleet jobs failures {job.id}")


def missing(client: Client, job: Job) -> None:
    """Print the first images that are gone from the source of a mirror on standard error."""
    if not job.mirror or not job.mirror.gone:
        return
    word = "deleted" if job.mirror.deleted else "gone"
    page = client.missing(job, SHOWN_MISSING)
    for image_id in page.ids:
        show.err.print(f"[yellow]{word}[/] {escape(show.one_line(image_id))}")
    if page.next is not None:
        show.err.print(f"… {page.total} in all: clipfleet jobs missing {job.id}")


def _command(client: Client, job: Job) -> str:
    """The command that follows the job, to be pasted into this shell."""
    command = f"clipfleet jobs show {job.id} --follow"
    if client.url == (os.environ.get("CLIPFLEET_URL") or DEFAULT_URL):
        return command
    return f"{command} --url {shlex.quote(client.url)}"
