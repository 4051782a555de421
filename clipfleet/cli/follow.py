"""Staying with a job until its end, and what is said about it then."""

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

INTERRUPTED = 130  # as shells have it for Ctrl-C
EXIT = {"succeeded": 0, "partial": 3}
SHOWN_FAILURES = 5


def exit_code(job: Job) -> int:
    return EXIT.get(job.state, 1)


def show_and_exit(client: Client, job: Job, *, wait: bool, json: bool) -> NoReturn:
    """Shows the job: as it is now, with 0, or once it has ended, with 0, 3 or 1 as its state is."""
    if wait:
        job = follow(client, job, json=json)
        failures(client, job)
    show.document(job) if json else show.job(job)
    sys.exit(exit_code(job) if wait else 0)


def follow(client: Client, job: Job, *, json: bool = False) -> Job:
    """The job once it has ended, with its progress. Ctrl-C leaves the job at work."""
    seen = job
    try:
        with listening(True, show.err) as tell:

            def heard(now: Job) -> None:
                nonlocal seen
                seen = now
                tell(now)

            return client.wait(job, progress=heard)
    except JobFailed as failed:
        return failed.job
    except KeyboardInterrupt:
        show.err.print(f"The job goes on. Follow it with: {escape(_command(client, job))}")
        if json:
            show.document(seen)
        sys.exit(INTERRUPTED)


def failures(client: Client, job: Job) -> None:
    """The first few, on standard error."""
    if not job.failed:
        return
    some = client.failures(job, SHOWN_FAILURES)
    for one in some.failures:
        name, reason = escape(show.one_line(one.id)), escape(show.one_line(one.reason))
        show.err.print(f"[red]failed[/] {name}: {reason}")
    if job.failed > len(some.failures):
        show.err.print(f"… {job.failed} in all: clipfleet jobs failures {job.id}")


def _command(client: Client, job: Job) -> str:
    """To be pasted into this shell."""
    command = f"clipfleet jobs show {job.id} --follow"
    if client.url == (os.environ.get("CLIPFLEET_URL") or DEFAULT_URL):
        return command
    return f"{command} --url {shlex.quote(client.url)}"
