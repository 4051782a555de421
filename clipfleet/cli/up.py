"""`clipfleet up`: the whole service on this machine."""

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from clipfleet.cli import show

DATA = Path("clipfleet-data")

DataOption = Annotated[
    Path, typer.Option(envvar="CLIPFLEET_DATA", help="Where everything is kept.")
]
HostOption = Annotated[str, typer.Option(envvar="CLIPFLEET_HOST", help="Address to listen on.")]
PortOption = Annotated[
    int, typer.Option(envvar="CLIPFLEET_PORT", min=1, max=65535, help="Port to listen on.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="Hub id or folder of a CLIP-like model; hash:64 for tests.")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Ingest workers.")]
MetricsOption = Annotated[
    int,
    typer.Option(
        envvar="CLIPFLEET_METRICS_PORT",
        min=0,
        max=65535,
        help="Port of the planner's metrics; each worker's has the next one. 0: none.",
    ),
]
FlowerOption = Annotated[
    bool, typer.Option("--flower", help="Start Flower, which shows queues, workers and tasks.")
]
FlowerPortOption = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of Flower, on this machine alone.")
]


def up(
    data: DataOption = DATA,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    model: ModelOption = None,
    workers: WorkersOption = 1,
    metrics_port: MetricsOption = 0,
    flower: FlowerOption = False,
    flower_port: FlowerPortOption = 5555,
) -> None:
    """Start everything on this machine and stay up until Ctrl-C.

    Valkey and milvus-lite are brought along, unless CLIPFLEET_REDIS_URL and
    CLIPFLEET_MILVUS_URI name others.
    """
    stopping = threading.Event()
    if flower and find_spec("flower") is None:
        show.fail(ValueError("Flower is not installed: pip install 'clipfleet[flower]'"))
    more = {"metrics_port": metrics_port, "flower_port": flower_port if flower else 0}

    def ready(url: str, folder: Path) -> None:
        announce(url, folder)
        if flower:
            show.out.print(f"Flower: http://127.0.0.1:{flower_port}")

    run_stack(data, host, port, model, workers, stopping, ready, more)


def announce(url: str, data: Path) -> None:
    show.out.print(f"clipfleet is ready: {url}  (data in {data}, Ctrl-C stops)")


def run_stack(
    data: Path,
    host: str,
    port: int,
    model: str | None,
    workers: int,
    stopping: threading.Event,
    ready: Callable[[str, Path], None],
    more: Mapping[str, int] | None = None,
) -> None:
    """Blocks until told to stop. `ready(url, data)` is called once everything answers.

    `more`: options of the stack that it does without.
    """
    stack_module, startup_error = _embedded()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    given = stack_module.Settings(**({"model": model} if model else {}))
    options = stack_module.Options(data.absolute(), host, port, workers, given, **(more or {}))
    stack = stack_module.Stack(options, stopping)
    if warning := options.warning:
        show.err.print(f"clipfleet: {warning}", markup=False)
    with show.err.status("starting") as status:

        def waiting(part: str, seconds: float) -> None:
            status.update(f"starting {part} ({seconds:.0f} s)")

        def all_ready() -> None:
            status.stop()
            ready(options.url, data)

        def said(text: str) -> None:
            with suppress(OSError):  # a full disk must not end what goes on beside it
                show.err.print(f"clipfleet: {text}", markup=False)

        try:
            stack.run(waiting, all_ready, said)
        except startup_error as error:
            status.stop()
            show.err.print(f"clipfleet: {error}", markup=False)
            sys.exit(1)


def _embedded() -> tuple[Any, type[Exception]]:
    try:
        from clipfleet.common.errors import StartupError
        from clipfleet.embedded import stack
    except ImportError as error:
        show.err.print(
            f"clipfleet: the embedded stack is not installed ({error.name} is missing): "
            "pip install 'clipfleet[embedded]'",
            markup=False,
        )
        sys.exit(1)
    return stack, StartupError
