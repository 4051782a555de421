"""Runs the whole service on one machine, as `clipfleet up` does."""

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import redis
from pydantic import BaseModel

from clipfleet.common.auth.keys import check_keys
from clipfleet.common.auth.source_access import grant_of_service
from clipfleet.common.errors import StartupError, Unavailable, reason_of
from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.process.checks import NO_ADDRESS
from clipfleet.common.process.machine import cores, shares
from clipfleet.common.process.probe import RedisProbe
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import LOOPBACK_NAMES, Settings
from clipfleet.embedded import commands, processes
from clipfleet.embedded.supervisor import Part, Supervisor, bulk_niceness, end_leftovers
from clipfleet.workers.embedding import hub

# Users of `up` do not need the log lines of the checks whether a part has started.
logging.getLogger("clipfleet").addHandler(logging.NullHandler())

QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Options:
    """Options of `clipfleet up`.

    Attributes:
        data: folder for all data.
        host: address that the gateway listens on.
        port: port of the gateway.
        workers: number of ingest workers.
        settings: settings of the environment, which have precedence over those of the stack.
        metrics_port: port of the planner's metrics. Each worker has the next one. 0: no metrics.
        flower_port: port of Flower on loopback, whatever `host` is. 0: no Flower.
        also: further models, each with an ingest worker and a query worker.
    """

    data: Path
    host: str
    port: int
    workers: int
    settings: Settings
    metrics_port: int = 0
    flower_port: int = 0
    also: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Address of the gateway for clients on this machine."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else shown}:{self.port}"

    @property
    def metrics_ports(self) -> list[int]:
        """Ports of the metrics of the planner, the ingest workers and the query workers."""
        parts = self.workers + 2 + 2 * len(self.also)
        first = self.metrics_port
        return list(range(first, first + parts)) if first else [0] * parts

    @property
    def on_loopback(self) -> bool:
        """Whether only clients on this machine reach the gateway."""
        return self.host in LOOPBACK_NAMES

    @property
    def warning(self) -> str:
        """What the user should know about access with these options. Empty: nothing."""
        if self.on_loopback or self.settings.keys_file:
            return ""
        if self.settings.open:
            return (
                f"all clients that reach {self.host}:{self.port} may do anything (CLIPFLEET_OPEN)"
            )
        return (
            "there are no API keys, so only clients on this machine are answered; set "
            "CLIPFLEET_KEYS_FILE (`clipfleet keys create`), or CLIPFLEET_OPEN=true for all clients"
        )


class Stack:
    """All parts of the service as child processes. One stack can use a data folder at a time.

    Args:
        options: what to run, and where.
        stopping: set to stop the stack.
    """

    def __init__(self, options: Options, stopping: threading.Event) -> None:
        self._options, self._stopping = options, stopping
        self._settings = options.settings
        self._brings_redis = "redis_url" not in options.settings.model_fields_set
        self._brings_milvus = "milvus_uri" not in options.settings.model_fields_set
        self._downloads = False

    def check(self, report: Callable[[str], None]) -> None:
        """Check the keys and the model before anything is started.

        Args:
            report: called with a sentence when the hub is asked for the model.

        Raises:
            StartupError: the keys are not valid, there is no such model, or the hub does not
                answer within ten seconds.
        """
        settings = self._options.settings
        service = grant_of_service(self.complete("", ""))
        check_keys(settings.keys_file, settings.open, service)
        hub.require_library(settings.model)
        self._downloads = hub.is_remote(settings.model)
        for model in (settings.model, *self._options.also):
            if hub.is_remote(model):
                report(f"asking {hub.hub_url()} for the model {model}")
            hub.require_model(model)

    def run(
        self,
        waiting: Callable[[str, float], None],
        ready: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        """Run the parts until `stopping` is set. `check` comes first.

        Args:
            waiting: called while parts start, with the part and the seconds since its start.
            ready: called once, when all parts answer.
            report: called with a sentence when a part has ended and starts again, and when the
                parts are told to end.

        Raises:
            StartupError: a part cannot start, or keeps ending.
        """
        folder = self._options.data
        _make_folder(folder)
        with _locked(folder, self._options.url):
            end_leftovers(folder)
            self._require_free_ports()
            supervisor = Supervisor(folder, self._stopping)
            try:
                if self._start(supervisor, waiting):
                    ready()
                    supervisor.watch(report)
                report("stopping; the data is kept for the next start")
            finally:
                supervisor.stop()

    def _require_free_ports(self) -> None:
        _require_free(self._options.host, self._options.port, "--port")
        host = self.complete("", "").metrics_host
        for port in filter(None, self._options.metrics_ports):
            _require_free(host, port, "--metrics-port")
        if self._options.flower_port:
            _require_free(commands.LOOPBACK, self._options.flower_port, "--flower-port")

    def _start(self, supervisor: Supervisor, waiting: Callable[[str, float], None]) -> bool:
        """Start Redis first, which all parts need at once, then Milvus together with the others.

        False if `stopping` was set meanwhile.
        """
        folder = self._options.data
        redis_url, milvus_uri = self._settings.redis_url, self._settings.milvus_uri
        if self._brings_redis:
            port, password = commands.free_port(), secrets.token_hex(16)
            redis_url = commands.valkey_url(port, password)
            command = commands.valkey(folder / "valkey", port, password)
            supervisor.start([Part("valkey", command, {}, lambda _: _redis_answers(redis_url))])
            if not supervisor.wait(waiting):
                return False
        if self._brings_milvus:
            port = commands.free_port()
            milvus_uri = commands.milvus_uri(port)
            command = commands.milvus_lite(folder / "milvus", port)
            env = commands.MILVUS_LITE_ENVIRONMENT
            supervisor.start([Part("milvus", command, env, lambda _: _listens(port))])
        self._settings = self.complete(redis_url, milvus_uri)
        supervisor.start(self.own_parts())
        return supervisor.wait(waiting)

    def complete(self, redis_url: str, milvus_uri: str) -> Settings:
        """The settings of the parts: the given ones, and defaults for one machine."""
        gaps: dict[str, object] = {
            "redis_url": redis_url,
            "milvus_uri": milvus_uri,
            "blobs": str(self._options.data / "blobs"),
        }
        set_fields = self._settings.model_fields_set
        if self._options.on_loopback:
            if not (self._settings.keys_file or self._settings.open):
                gaps["source_roots"] = (Path("/"),)  # only local clients are answered
            gaps["allowed_hosts"] = LOOPBACK_NAMES
            gaps["metrics_host"] = commands.LOOPBACK
        filled = {name: value for name, value in gaps.items() if name not in set_fields}
        private = (*self._settings.private_paths, self._options.data)
        return self._settings.model_copy(update={**filled, "private_paths": private})

    def own_parts(self) -> list[Part]:
        """The parts of clipfleet itself: planner, workers, gateway, and Flower if it is wanted."""
        env = {**environment_of(self._settings), **QUIET_LIBRARIES}
        try:
            client = make_redis(self._settings)
        except ValueError as error:
            raise StartupError(str(NO_ADDRESS)) from error
        fleet, probe = RedisFleet(client), RedisProbe(client, self._settings)
        ports = iter(self._options.metrics_ports)

        def with_metrics_port() -> dict[str, str]:
            """The environment of a part with metrics: each has the next port."""
            return {**env, "CLIPFLEET_METRICS_PORT": str(next(ports))}

        def worker(
            name: str,
            lane: Lane,
            share: Mapping[str, str],
            niceness: int = 0,
            model: str = self._settings.model,
        ) -> Part:
            task_events = bool(self._options.flower_port)
            command = processes.worker(name, [lane], model, task_events=task_events)
            return Part(
                name,
                command,
                {**with_metrics_port(), **share, "CLIPFLEET_MODEL": model},
                lambda pid: _serves(fleet, probe, pid) or self._is_downloaded(),
                niceness,
            )

        bulk = shares(cores(), self._options.workers)
        niceness = bulk_niceness(len(bulk) + len(self._options.also))
        one_core = share_variables(1, self._settings)
        gateway = processes.gateway(self._options.host, self._options.port)
        return [
            Part(
                "planner",
                processes.planner(),
                with_metrics_port(),
                lambda pid: _plans(fleet, probe, pid),
            ),
            *[
                worker(
                    f"worker-ingest-{number}",
                    LANES[0],
                    share_variables(share, self._settings),
                    niceness,
                )
                for number, share in enumerate(bulk, 1)
            ],
            worker("worker-query", LANES[1], {}),
            *[
                worker(f"worker-{kind}-also-{number}", lane, share, nice, model)
                for number, model in enumerate(self._options.also, 1)
                for kind, lane, share, nice in (
                    ("ingest", LANES[0], one_core, niceness),
                    ("query", LANES[1], {}, 0),
                )
            ],
            Part("gateway", gateway, env, lambda _: _answers(f"{self._options.url}/healthz")),
            *self._flower(env),
        ]

    def _is_downloaded(self) -> bool:
        """False: a worker does not answer yet. Unavailable says so while it downloads its model."""
        if self._downloads and (size := hub.downloaded_bytes(self._settings.model)):
            raise Unavailable(f"loading {self._settings.model}, {size // 1_000_000:,} MB are here")
        return False

    def _flower(self, env: Mapping[str, str]) -> list[Part]:
        if not (port := self._options.flower_port):
            return []
        health = f"http://{commands.LOOPBACK}:{port}/healthcheck"
        command = processes.flower(commands.LOOPBACK, port)
        return [Part("flower", command, env, lambda _: _answers(health))]


def share_variables(share: int, settings: Settings) -> dict[str, str]:
    """Variables with which an ingest worker uses so many cores, where the user has set none."""
    variables = {}
    if not os.environ.get("OMP_NUM_THREADS"):
        variables["OMP_NUM_THREADS"] = str(share)
    if not settings.feeders:
        variables["CLIPFLEET_FEEDERS"] = str(max(1, share - 1))
    return variables


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings that differ from the defaults, as environment variables of the parts.

    Nested settings are inherited from the environment of this process.
    """
    nested = {name for name, value in settings if isinstance(value, BaseModel)}
    plain = settings.model_dump(mode="json", exclude_defaults=True, exclude=nested)
    plain["model"] = settings.model  # also the default: it has precedence over the environment
    return {
        f"CLIPFLEET_{name.upper()}": json.dumps(value) if isinstance(value, list) else str(value)
        for name, value in plain.items()
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"the data folder {folder} cannot be written: {reason_of(error)}"
        ) from error


@contextmanager
def _locked(folder: Path, url: str) -> Iterator[IO[str]]:
    """Lock the data folder. The kernel releases the lock when its holder ends, however it ends."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            message = f"the data folder {folder} is in use by {holder}; choose another with --data"
            raise StartupError(message) from error
        lock.truncate(0)
        lock.write(f"clipfleet at {url} (process {os.getpid()})")
        lock.flush()
        yield lock


def _require_free(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"port {port} on {host} cannot be used: {reason_of(error)}"
            raise StartupError(f"{reason}; choose another with {option}") from error
        except OverflowError as error:
            raise StartupError(f"there is no port {port}; choose a lower {option}") from error


def _redis_answers(url: str) -> bool:
    with closing(redis.Redis.from_url(url, socket_timeout=1)) as client:
        return bool(client.ping())


def _listens(port: int) -> bool:
    """Whether a port accepts connections. A request would need pymilvus, which loads for 1 s."""
    with socket.create_connection((commands.LOOPBACK, port), timeout=1):
        return True


def _serves(fleet: RedisFleet, probe: RedisProbe, pid: int) -> bool:
    return _announced((card.id for card in fleet.alive()), probe, pid)


def _plans(fleet: RedisFleet, probe: RedisProbe, pid: int) -> bool:
    return _announced(fleet.planners(), probe, pid)


def _announced(names: Iterable[str], probe: RedisProbe, pid: int) -> bool:
    """Whether a process has announced itself. Unavailable if Redis takes no announcement."""
    if any(name.startswith(_name_prefix(pid)) for name in names):
        return True
    probe.write()
    return False


def _name_prefix(pid: int) -> str:
    """The beginning of the name of a worker or planner: host and process."""
    return f"{socket.gethostname()}-{pid}-"


def _answers(url: str) -> bool:
    return httpx.get(url, timeout=1, trust_env=False).is_success
