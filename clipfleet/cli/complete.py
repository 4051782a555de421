"""Shell completion from the running service. Empty if the service does not answer."""

import os
from contextlib import suppress

import typer

from clipfleet.client import Client
from clipfleet.errors import Error

TIMEOUT_S = 2.0


def collection_names(context: typer.Context) -> list[str]:
    """Names of all collections."""
    with suppress(Error), _client(context) as client:
        return [collection.name for collection in client.collections()]
    return []


def alias_names(context: typer.Context) -> list[str]:
    """Names of all aliases."""
    with suppress(Error), _client(context) as client:
        return [alias.name for alias in client.aliases()]
    return []


def job_ids(context: typer.Context) -> list[tuple[str, str]]:
    """Ids of jobs, newest first, each with its state as the description."""
    with suppress(Error), _client(context) as client:
        return [(job.id, f"{job.state} in {job.collection}") for job in client.jobs()]
    return []


def _client(context: typer.Context) -> Client:
    url = context.params.get("url") or os.environ.get("CLIPFLEET_URL")
    return Client(url, api_key=context.params.get("api_key"), timeout_s=TIMEOUT_S, retries=0)
