"""Prometheus metrics of one process: the registry, and the HTTP server of planners and workers."""

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from clipfleet.common.errors import StartupError, reason_of
from clipfleet.common.settings import Settings

log = logging.getLogger(__name__)

CLIENT_TIMEOUT_S = 10.0  # after which a connection without a request is closed


def make_registry() -> CollectorRegistry:
    """Create the registry of this process, with the operating system's metrics (`process_…`)."""
    # Otherwise each counter has a second series, `…_created`, which nothing reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry


class MetricsServer(ThreadingHTTPServer):
    """HTTP server of `/metrics` and `/healthz`.

    `/healthz` answers 200, or 503 with the text of `trouble`.

    Args:
        host: the address to listen on.
        port: the port to listen on.
        registry: the metrics.
        trouble: returns what is wrong with this process; "" when it is healthy.

    Raises:
        StartupError: the server cannot listen on the port.
    """

    daemon_threads = True

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, trouble: Callable[[], str]
    ) -> None:
        self.registry, self.trouble = registry, trouble
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise StartupError(
                f"cannot listen on port {port} of {host} for metrics: {reason_of(error)}; set "
                "CLIPFLEET_METRICS_PORT to another port, or to 0 for no metrics"
            ) from error

    def server_bind(self) -> None:
        """Bind without the look-up of the host name that `HTTPServer` makes: it may be slow."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


def serve_metrics(
    settings: Settings, registry: CollectorRegistry, trouble: Callable[[], str]
) -> MetricsServer | None:
    """Serve metrics on a thread until the process ends.

    None when `CLIPFLEET_METRICS_PORT` is 0.

    Raises:
        StartupError: the server cannot listen on the port.
    """
    if not settings.metrics_port:
        return None
    server = MetricsServer(settings.metrics_host, settings.metrics_port, registry, trouble)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics on port %d of %s", settings.metrics_port, settings.metrics_host)
    return server


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, kind, encode(self.server.registry))
        elif path == "/healthz":
            trouble = self.server.trouble()
            self._answer(503 if trouble else 200, "text/plain", (trouble or "ok").encode())
        else:
            self._answer(404, "text/plain", b"not found: there are only /metrics and /healthz")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log line for a scrape."""
