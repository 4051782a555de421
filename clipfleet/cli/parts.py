"""`clipfleet gateway`, `planner` and `worker`: each runs one part, configured by CLIPFLEET_*."""

import os
import sys
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated

import typer

from clipfleet.cli import show
from clipfleet.cli.up import HostOption, ModelOption, PortOption

REQUIREMENTS = {  # part: (module that it imports, extra that installs the module)
    "gateway": ("fastapi", "api"),
    "planner": ("celery", "api"),
    "worker": ("torch", "worker"),
}


class Lanes(StrEnum):
    INGEST = "ingest"
    QUERY = "query"


LaneOption = Annotated[
    list[Lanes] | None, typer.Option(help="Kind of work to take. Repeatable. Default: both.")
]


def gateway(host: HostOption = "127.0.0.1", port: PortOption = 8000) -> None:
    """Run a gateway, which serves the HTTP API.

    It connects to CLIPFLEET_REDIS_URL and CLIPFLEET_MILVUS_URI.
    """
    _require_installed("gateway")
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
    _replace_process(processes.gateway(host, port))


def planner() -> None:
    """Run a planner, which reads the sources of jobs and divides them into chunks for workers."""
    _require_installed("planner")
    from clipfleet.embedded import processes

    _replace_process(processes.planner())


def worker(lane: LaneOption = None, model: ModelOption = None) -> None:
    """Run a worker, which embeds images, answers searches, or both. Run one per GPU.

    At SIGTERM it returns the chunk that it works on, and another worker takes it.
    """
    _require_installed("worker")
    from clipfleet.common.http.fleet import LANES
    from clipfleet.common.settings import Settings
    from clipfleet.embedded import processes

    if model:
        os.environ["CLIPFLEET_MODEL"] = model
    lanes = [known for known in LANES if not lane or known in lane]
    name = f"worker-{'-'.join(lanes)}-{os.getpid()}"
    _replace_process(processes.worker(name, lanes, Settings().model))


def _require_installed(part: str) -> None:
    module, extra = REQUIREMENTS[part]
    if find_spec(module) is None:
        message = f"a {part} needs {module}, which is not installed: "
        show.fail(ValueError(f"{message}pip install 'clipfleet[{extra}]'"))


def _replace_process(command: list[str]) -> None:
    """Run the part in place of this process, so that it gets signals and gives the exit code."""
    sys.stdout.flush()
    os.execv(command[0], command)
