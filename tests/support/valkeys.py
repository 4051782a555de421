"""Valkey servers that tests stop, kill, cut off or fill up, and Sentinels that watch them."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import redis

from clipfleet.embedded import commands
from support import services

PASSWORD = "p@ss/word"  # to be quoted in an address
SENTINEL_PASSWORD = "watch:dog"
SERVICE = "mymaster"
FILLERS = 2_000  # keys that are loaded one after the other


@dataclass
class Server:
    """A server on a port of its own. `options` are lines of its configuration."""

    folder: Path
    options: Sequence[str] = ()
    port: int = field(default_factory=commands.free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://:p%40ss%2Fword@127.0.0.1:{self.port}/0"

    @cached_property
    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, password=PASSWORD, socket_timeout=30)

    def start(self, *options: str) -> None:
        """Start the server. `options` are for this start only."""
        command = commands.valkey(self.folder, self.port, PASSWORD)
        words = [word for line in (*self.options, *options) for word in f"--{line}".split()]
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen([*command, *words], stdout=out, stderr=out)

    def ready(self) -> None:
        services.eventually(self.client.ping, 30, "Valkey's answer")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def refused(self, code: str) -> int:
        """Number of commands that failed with this error since the start."""
        counts: Any = self.client.info("errorstats")
        return int(counts.get(f"errorstat_{code}", {"count": 0})["count"])

    def cut(self) -> None:
        """Close every connection except that of the test."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the server a replica of an unreachable primary, as during a failover."""
        self.client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            self.client.replicaof("NO", "ONE")

    @contextmanager
    def set_to(self, **options: int | str) -> Iterator[None]:
        """Set options until the block ends."""
        before: dict[str, Any] = {
            name: self.client.config_get(name)[name] for name in map(_dashed, options)
        }
        for name, value in options.items():
            self.client.config_set(_dashed(name), value)
        try:
            yield
        finally:
            for name, value in before.items():
                self.client.config_set(name, value)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Restart the server so that it loads its data until the block ends."""
        self.client.config_set("rdbcompression", "no")  # it listens after so many bytes
        self.client.mset({f"filler:{n}": "x" * 4096 for n in range(FILLERS)})
        self.client.bgrewriteaof()
        services.eventually(self._rewritten, 30, "the new log")
        self.kill()
        self.start("key-load-delay 10000", "loading-process-events-interval-bytes 1024")
        services.eventually(self._is_loading, 30, "LOADING")
        try:
            yield
        finally:
            self.client.config_set("key-load-delay", 0)
            self.ready()

    def is_in_step(self) -> bool:
        """Whether this replica has all data of its primary."""
        state: Any = self.client.info("replication")
        return bool(state["master_link_status"] == "up")

    def _rewritten(self) -> bool:
        state: Any = self.client.info("persistence")
        return not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]

    def _is_loading(self) -> bool:
        try:
            self.client.ping()
        except redis.BusyLoadingError:
            return True
        return False


def _dashed(name: str) -> str:
    return name.replace("_", "-")


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    started = Server(folder, options)
    started.start()
    try:
        started.ready()
        yield started
    finally:
        started.client.close()
        started.kill()


@dataclass
class Watched:
    """A primary, its replica, and their Sentinels."""

    servers: list[Server]
    sentinels: list[int]  # ports

    @property
    def url(self) -> str:
        nodes = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        login, option = ":p%40ss%2Fword", "sentinel_password=watch%3Adog"
        return f"redis+sentinel://{login}@{nodes}/{SERVICE}/0?{option}"

    def primary(self) -> Server:
        """The primary that the Sentinels name."""
        with closing(redis.Redis(port=self.sentinels[0], password=SENTINEL_PASSWORD)) as client:
            address: Any = client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == int(address[1]))

    def fail_over(self) -> None:
        """Kill the primary, and wait until the Sentinels have promoted the replica."""
        old = self.primary()
        old.kill()
        services.eventually(lambda: self.primary() is not old, 60, "a failover")
        services.eventually(self._writes, 60, "a primary that takes writes")

    def heal(self) -> None:
        """Restart the killed server as a replica.

        The Sentinels would make it one, too, but only 30 s later when they were held up meanwhile.
        """
        follows = f"replicaof 127.0.0.1 {self.primary().port}"
        for server in self.servers:
            if server.process is None:
                server.start(follows)
                services.eventually(server.is_in_step, 60, "the old primary as a replica")

    def _writes(self) -> bool:
        return bool(self.primary().client.set("probe", 1))


@contextmanager
def watched(folder: Path, sentinels: int = 3) -> Iterator[Watched]:
    with ExitStack() as stack:
        auth = f"masterauth {PASSWORD}"
        primary = stack.enter_context(server(folder / "a", auth))
        follows = f"replicaof 127.0.0.1 {primary.port}"
        replica = stack.enter_context(server(folder / "b", auth, follows))
        ports = [commands.free_port() for _ in range(sentinels)]
        for port in ports:
            stack.enter_context(_sentinel(folder / f"sentinel-{port}", port, primary.port))
        result = Watched([primary, replica], ports)
        services.eventually(replica.is_in_step, 60, "the first replication")
        for port in ports:
            services.eventually(partial(_sees_all, port, sentinels), 60, "the Sentinels' agreement")
        yield result


@contextmanager
def _sentinel(folder: Path, port: int, primary: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    config = folder / "sentinel.conf"
    config.write_text(
        f'bind 127.0.0.1\nport {port}\ndir "{folder}"\nrequirepass {SENTINEL_PASSWORD}\n'
        f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n"
        f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
        f"sentinel down-after-milliseconds {SERVICE} 1000\n"
        f"sentinel failover-timeout {SERVICE} 5000\n"
    )
    command = [commands.valkey(folder, port, "unused")[0], str(config), "--sentinel"]
    with services.process(command, folder / "log"):
        yield


def _sees_all(port: int, sentinels: int) -> bool:
    with closing(redis.Redis(port=port, password=SENTINEL_PASSWORD)) as client:
        masters: Any = client.sentinel_masters()
    state = masters[SERVICE]
    return bool(state["num-other-sentinels"] == sentinels - 1 and state["num-slaves"] == 1)


@dataclass
class Front:
    """A TLS proxy of a server. `authority` is the CA certificate that its clients trust."""

    server: Server
    folder: Path
    port: int = field(default_factory=commands.free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def authority(self) -> Path:
        return self.folder / "trusted.pem"

    @property
    def url(self) -> str:
        return f"rediss://:p%40ss%2Fword@localhost:{self.port}/0"

    def rotate(self) -> services.Certificate:
        """Use a new certificate of a new authority, which no client trusts yet."""
        self.stop()
        certificate = services.certificate(self.folder / f"tls-{commands.free_port()}", "localhost")
        command = services.tls_proxy(self.port, self.server.port, certificate)
        with (self.folder / "tls.log").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        services.eventually(partial(services.listens, self.port), 20, "the TLS of Valkey")
        return certificate

    def trust(self, certificate: services.Certificate) -> None:
        """Replace the CA file that the settings name, as an operator does."""
        new = self.authority.with_suffix(".new")
        new.write_bytes(certificate.authority.read_bytes())
        new.replace(self.authority)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def tls(server: Server, folder: Path) -> Iterator[Front]:
    front = Front(server, folder)
    try:
        front.trust(front.rotate())
        yield front
    finally:
        front.stop()
