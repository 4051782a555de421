"""`clipfleet jobs`: list, follow, cancel, retry and delete jobs."""

import json as json_module
from typing import Annotated, get_args

import typer
from rich.markup import escape

from clipfleet.cli import complete, show
from clipfleet.cli.follow import show_and_exit
from clipfleet.cli.show import URL, ApiKey, Json, Url
from clipfleet.common.http.schemas import JobList, JobState

app = typer.Typer(help="List, follow, cancel, retry and delete jobs.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="Id of the job.", autocompletion=complete.job_ids)]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Rows to print.")]


@app.command("list")
def list_jobs(
    limit: Limit = 50,
    collection: Annotated[
        str | None,
        typer.Option(
            help="Only jobs of this collection.", autocompletion=complete.collection_names
        ),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state. Repeatable.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    states = [_state(text) for text in state or ()]
    with show.client(url, api_key) as client:
        jobs = client.jobs(limit, collection=collection, state=states)
    if json:
        show.document(JobList(jobs=jobs))
    else:
        show.jobs(jobs)


@app.command("show")
def show_job(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show progress until the job has ended.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Show one job. With --follow the exit codes are those of `clipfleet index`: 0, 3 or 1."""
    with show.client(url, api_key) as client:
        show_and_exit(client, client.job(job_id), wait=follow, json=json)


@app.command("cancel")
def cancel_job(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Stop a job. Images that are indexed stay in the collection."""
    with show.client(url, api_key) as client:
        was_over = client.job(job_id).finished_at is not None
        job = client.cancel(job_id)
    show.document(job) if json else show.job(job)
    if was_over:
        show.err.print(f"The job had ended before ({job.state}); nothing was cancelled.")


@app.command("retry")
def retry_job(
    job_id: JobId,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until the new job has ended.")
    ] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Start a job on the images that failed in another.

    With --wait the exit codes are those of `clipfleet index`: 0, 3 or 1.
    """
    with show.client(url, api_key) as client:
        show_and_exit(client, client.retry(job_id), wait=wait, json=json)


@app.command("delete")
def delete_job(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Delete a job with its failures and uploads. Images that are indexed stay."""
    with show.client(url, api_key) as client:
        client.delete_job(job_id)
    print(json_module.dumps({"deleted": job_id}) if json else f"deleted {job_id}")


@app.command("failures")
def failures(
    job_id: JobId,
    limit: Limit = 100,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """List the images that failed, with the reasons."""
    with show.client(url, api_key) as client:
        page = client.failures(job_id, limit)
    if json:
        show.document(page)
        return
    for failure in page.failures:
        name, reason = escape(show.one_line(failure.id)), escape(show.one_line(failure.reason))
        show.out.print(f"{name}  [dim]{failure.stage}:[/] {reason}")
    show.err.print(f"[dim]{len(page.failures)} of {page.total} failures[/]")


@app.command("missing")
def missing(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """List the images that are gone from the source of a mirror, one id a line."""
    with show.client(url, api_key) as client:
        client.job(job_id)
        ids = client.iter_missing(job_id)
        if json:
            print(json_module.dumps({"ids": list(ids)}))
            return
        for image_id in ids:
            show.out.print(escape(show.one_line(image_id)), soft_wrap=True)


def _state(text: str) -> JobState:
    for known in get_args(JobState):
        if text == known:
            return text  # type: ignore[return-value]  # it is one of them
    raise typer.BadParameter(f"{text!r} is not one of {', '.join(get_args(JobState))}")
