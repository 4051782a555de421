"""What the shell offers at TAB from the running service: nothing, when it does not answer."""

import os
from contextlib import suppress

import typer

from clipfleet.client import Client
from clipfleet.errors import Error

QUICK_S = 2.0


def collection_names(context: typer.Context) -> list[str]:
    with suppress(Error), _client(context) as client:
        return [one.name for one in client.collections()]
    return []


def job_ids(context: typer.Context) -> list[tuple[str, str]]:
    """Newest first; shells that can, show the state too."""
    with suppress(Error), _client(context) as client:
        return [(job.id, f"{job.state} in {job.collection}") for job in client.jobs()]
    return []


def _client(context: typer.Context) -> Client:
    url = context.params.get("url") or os.environ.get("CLIPFLEET_URL")
    return Client(url, api_key=context.params.get("api_key"), timeout_s=QUICK_S, retries=0)
