"""`clipfleet gateway`, `planner` and `worker`: one part each, configured by CLIPFLEET_* alone."""

import os
import sys
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated

import typer

from clipfleet.cli import show
from clipfleet.cli.up import HostOption, ModelOption, PortOption

NEEDS = {  # what each cannot do without, and the extra that brings it
    "gateway": ("fastapi", "api"),
    "planner": ("celery", "api"),
    "worker": ("torch", "worker"),
}


class Lanes(StrEnum):
    INGEST = "ingest"
    QUERY = "query"


LaneOption = Annotated[
    list[Lanes] | None, typer.Option(help="What it serves; may be repeated.  [default: both]")
]


def gateway(host: HostOption = "127.0.0.1", port: PortOption = 8000) -> None:
    """Run a gateway: HTTP in front of the Redis and the Milvus that CLIPFLEET_* names."""
    _require("gateway")
    from clipfleet.common.auth.keys import check_keys
    from clipfleet.common.auth.source_access import grant_of_service
    from clipfleet.common.errors import StartupError
    from clipfleet.common.settings import Settings
    from clipfleet.embedded import processes

    settings = Settings()
    try:
        check_keys(settings.keys_file, settings.open, grant_of_service(settings))
    except StartupError as error:
        show.fail(error)
    _become(processes.gateway(host, port))


def planner() -> None:
    """Run a planner: it reads the sources of jobs and hands out their chunks."""
    _require("planner")
    from clipfleet.embedded import processes

    _become(processes.planner())


def worker(lane: LaneOption = None, model: ModelOption = None) -> None:
    """Run a worker: it embeds images, answers searches, or both. One per GPU.

    Told to end (SIGTERM), it hands the chunk in hand back.
    """
    _require("worker")
    from clipfleet.common.http.fleet import LANES
    from clipfleet.common.settings import Settings
    from clipfleet.embedded import processes

    if model:
        os.environ["CLIPFLEET_MODEL"] = model
    lanes = [one for one in LANES if not lane or one in lane]
    name = f"worker-{'-'.join(lanes)}-{os.getpid()}"
    _become(processes.worker(name, lanes, Settings().model))


def _require(part: str) -> None:
    module, extra = NEEDS[part]
    if find_spec(module) is None:
        why = f"{module} is missing, which a {part} needs: pip install 'clipfleet[{extra}]'"
        show.fail(ValueError(why))


def _become(command: list[str]) -> None:
    """No process of ours stays in between: signals and the exit code are the part's own."""
    sys.stdout.flush()
    os.execv(command[0], command)
