"""Metrics of one process: their registry, and the port on which planners and workers show them."""

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from clipfleet.common.errors import StartupError
from clipfleet.common.settings import Settings

log = logging.getLogger(__name__)

PATIENCE_S = 10.0  # with a client that says nothing


def make_registry() -> CollectorRegistry:
    """One per process, with what the operating system says of it (`process_…`)."""
    # Or there would be a second series for every one, of no use to anybody.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry


class MetricsServer(ThreadingHTTPServer):
    """`/metrics`, and `/healthz`: 503 with what `trouble` says, 200 when that is nothing.

    StartupError when the port cannot be had.
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
                f"metrics cannot be shown on port {port} of {host}: {error.strerror}; choose "
                "another with CLIPFLEET_METRICS_PORT, or 0 for none"
            ) from error

    def server_bind(self) -> None:
        """Without asking the name service who we are, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


def serve_metrics(
    settings: Settings, registry: CollectorRegistry, trouble: Callable[[], str]
) -> MetricsServer | None:
    """On a thread of its own, as long as the process lives; None where it is switched off."""
    if not settings.metrics_port:
        return None
    server = MetricsServer(settings.metrics_host, settings.metrics_port, registry, trouble)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics on port %d of %s", settings.metrics_port, settings.metrics_host)
    return server


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, kind, encode(self.server.registry))
        elif path == "/healthz":
            trouble = self.server.trouble()
            self._answer(503 if trouble else 200, "text/plain", (trouble or "ok").encode())
        else:
            self._answer(404, "text/plain", b"there are /metrics and /healthz")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line per scrape is for nobody."""
