"""`clipfleet jobs`: look at, follow and cancel jobs."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from clipfleet.cli import complete, show
from clipfleet.cli.follow import exit_code
from clipfleet.cli.follow import failures as first_failures
from clipfleet.cli.follow import follow as follow_job
from clipfleet.cli.show import URL, ApiKey, Json, Url
from clipfleet.common.schemas import JobList

app = typer.Typer(help="Look at jobs, follow and cancel them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id.", autocompletion=complete.job_ids)]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")]


@app.command("list")
def list_jobs(
    limit: Limit = 50, url: Url = URL, api_key: ApiKey = None, json: Json = False
) -> None:
    """Jobs, newest first."""
    with show.client(url, api_key) as client:
        found = client.jobs(limit)
    if json:
        show.document(JobList(jobs=found))
    else:
        show.jobs(found)


@app.command("show")
def show_job(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay until its end, with progress.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """One job. With --follow it ends as `clipfleet index` does: 0, 3 or 1."""
    with show.client(url, api_key) as client:
        found = client.job(job_id)
        if follow:
            found = follow_job(client, found, json=json)
            first_failures(client, found)
    show.document(found) if json else show.job(found)
    sys.exit(exit_code(found) if follow else 0)


@app.command("cancel")
def cancel_job(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Stop a job; what is in stays in."""
    with show.client(url, api_key) as client:
        found = client.cancel(job_id)
    show.document(found) if json else show.job(found)


@app.command("failures")
def failures(
    job_id: JobId,
    limit: Limit = 100,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Which images failed, and why."""
    with show.client(url, api_key) as client:
        found = client.failures(job_id, limit)
    if json:
        show.document(found)
        return
    for one in found.failures:
        name, reason = escape(show.one_line(one.id)), escape(show.one_line(one.reason))
        show.out.print(f"{name}  [dim]{one.stage}:[/] {reason}")
    show.err.print(f"[dim]{len(found.failures)} of {found.total} failures[/]")
