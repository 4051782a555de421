"""`clipfleet jobs`: look at, follow, cancel, retry and delete jobs."""

import json as json_module
from typing import Annotated, get_args

import typer
from rich.markup import escape

from clipfleet.cli import complete, show
from clipfleet.cli.follow import show_and_exit
from clipfleet.cli.show import URL, ApiKey, Json, Url
from clipfleet.common.http.schemas import JobList, JobState

app = typer.Typer(help="Look at jobs, follow, cancel, retry them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="The job's id.", autocompletion=complete.job_ids)]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")]


@app.command("list")
def list_jobs(
    limit: Limit = 50,
    collection: Annotated[
        str | None,
        typer.Option(help="Only of this collection.", autocompletion=complete.collection_names),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only in this state; may be given several times.")
    ] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Jobs, newest first."""
    states = [_state(text) for text in state or ()]
    with show.client(url, api_key) as client:
        found = client.jobs(limit, collection=collection, state=states)
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
        show_and_exit(client, client.job(job_id), wait=follow, json=json)


@app.command("cancel")
def cancel_job(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Stop a job; what is in stays in."""
    with show.client(url, api_key) as client:
        found = client.cancel(job_id)
    show.document(found) if json else show.job(found)


@app.command("retry")
def retry_job(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until its end.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Start a job on the failures of another. With --wait it ends as `clipfleet index` does."""
    with show.client(url, api_key) as client:
        show_and_exit(client, client.retry(job_id), wait=wait, json=json)


@app.command("delete")
def delete_job(job_id: JobId, url: Url = URL, api_key: ApiKey = None, json: Json = False) -> None:
    """Forget a job with its failures and uploads; images that are in stay in."""
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


def _state(text: str) -> JobState:
    for known in get_args(JobState):
        if text == known:
            return text  # type: ignore[return-value]  # it is one of them
    raise typer.BadParameter(f"{text!r} is none of {', '.join(get_args(JobState))}")
