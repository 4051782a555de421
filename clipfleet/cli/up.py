"""`clipfleet up`: runs the whole service on this machine."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.status import Status

from clipfleet.cli import show
from clipfleet.client._config import DEFAULT_URL

DATA = Path("clipfleet-data")
LINE_INTERVAL_S = 5.0  # between two lines about the start, where there is no terminal

DataOption = Annotated[Path, typer.Option(envvar="CLIPFLEET_DATA", help="Folder for all data.")]
HostOption = Annotated[str, typer.Option(envvar="CLIPFLEET_HOST", help="Address to listen on.")]
PortOption = Annotated[
    int, typer.Option(envvar="CLIPFLEET_PORT", min=1, max=65535, help="Port to listen on.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id or folder of a CLIP-like model, hf-hub:ID for one of open_clip, or hash:64 "
        "for tests. Default: CLIPFLEET_MODEL.",
    ),
]
AlsoOption = Annotated[
    list[str] | None,
    typer.Option(
        "--also-model",
        help="Another model, with workers of its own, for `clipfleet collections migrate`. "
        "Repeatable.",
    ),
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Number of ingest workers.")]
MetricsOption = Annotated[
    int,
    typer.Option(
        envvar="CLIPFLEET_METRICS_PORT",
        min=0,
        max=65535,
        help="Port of the planner's metrics; workers have the next ports. 0: no metrics.",
    ),
]
FlowerOption = Annotated[
    bool,
    typer.Option("--flower", help="Start Flower, a page that shows queues, workers and tasks."),
]
FlowerPortOption = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of Flower, which listens on 127.0.0.1 only.")
]


def up(
    data: DataOption = DATA,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    model: ModelOption = None,
    also_model: AlsoOption = None,
    workers: WorkersOption = 1,
    metrics_port: MetricsOption = 0,
    flower: FlowerOption = False,
    flower_port: FlowerPortOption = 5555,
) -> None:
    """Run the whole service on this machine until Ctrl-C.

    Starts Valkey and milvus-lite, unless CLIPFLEET_REDIS_URL and CLIPFLEET_MILVUS_URI are set.
    """
    stopping = threading.Event()
    if flower and find_spec("flower") is None:
        show.fail(ValueError("Flower is not installed: pip install 'clipfleet[flower]'"))
    more = {
        "metrics_port": metrics_port,
        "flower_port": flower_port if flower else 0,
        "also": tuple(also_model or ()),
    }

    def ready(url: str, folder: Path) -> None:
        announce(url, folder)
        if flower:
            show.out.print(f"Flower: http://127.0.0.1:{flower_port}")

    run_stack(data, host, port, model, workers, stopping, ready, more)


def announce(url: str, data: Path) -> None:
    """Print the address of the running service, and what to do next."""
    where = "" if url == DEFAULT_URL else f" --url {url}"
    command = f"clipfleet index FOLDER --label-from-folder{where}"
    lines = (
        f"clipfleet is ready: {url}  (data in {data}, Ctrl-C stops)",
        f"  search page: {url}/    HTTP interface: {url}/docs",
        f"  index images, in another terminal: {command}",
    )
    show.out.print("\n".join(lines), markup=False)


def run_stack(
    data: Path,
    host: str,
    port: int,
    model: str | None,
    workers: int,
    stopping: threading.Event,
    ready: Callable[[str, Path], None],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Run the stack until `stopping` is set or a signal arrives.

    Args:
        data: folder for all data.
        host: address that the gateway listens on.
        port: port of the gateway.
        model: the model. Default: CLIPFLEET_MODEL.
        workers: number of ingest workers.
        stopping: set to stop the stack.
        ready: called with the URL and the data folder once all parts answer.
        more: further fields of `clipfleet.embedded.stack.Options`.
    """
    stack_module, startup_error = _embedded()
    settings = stack_module.Settings(**({"model": model} if model else {}))
    options = stack_module.Options(data.absolute(), host, port, workers, settings, **(more or {}))
    stack = stack_module.Stack(options, stopping)
    try:
        stack.check(_report)  # before the signals: Ctrl-C ends it at once
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stopping.set())
        if warning := options.warning:
            _report(warning)
        with show.err.status("starting") as status:

            def all_ready() -> None:
                status.stop()
                ready(options.url, data)

            stack.run(_waiting(status), all_ready, _report)
    except startup_error as error:
        _report(str(error))
        sys.exit(1)


def _report(text: str) -> None:
    with suppress(OSError):  # a full disk must not end the service
        show.err.print(f"clipfleet: {text}", markup=False)


def _waiting(status: Status) -> Callable[[str, float], None]:
    """Shows which part is starting: in a terminal at once, elsewhere a line every few seconds."""
    printed_at = time.monotonic()

    def waiting(part: str, seconds: float) -> None:
        nonlocal printed_at
        text = f"starting {part} ({seconds:.0f} s)"
        status.update(escape(text))
        if not show.err.is_terminal and time.monotonic() - printed_at >= LINE_INTERVAL_S:
            printed_at = time.monotonic()
            _report(text)

    return waiting


def _embedded() -> tuple[Any, type[Exception]]:
    try:
        from clipfleet.common.errors import StartupError
        from clipfleet.embedded import stack
    except ImportError as error:
        show.err.print(
            f"clipfleet: the embedded stack needs {error.name}, which is not installed: "
            "pip install 'clipfleet[embedded]'",
            markup=False,
        )
        sys.exit(1)
    return stack, StartupError
