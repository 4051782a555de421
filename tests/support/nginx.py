"""A real nginx before a service."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from clipfleet.embedded import commands
from support import services

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
error_log stderr;
pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""
SERVER = "server {{ listen 127.0.0.1:{port}; {locations} }}"


@contextmanager
def nginx(folder: Path, locations: str) -> Iterator[str]:
    """Run nginx with these locations; yields its URL without a slash at the end."""
    port = commands.free_port()
    with _running(folder, port, SERVER.format(port=port, locations=locations)) as url:
        yield url


@contextmanager
def nginx_of_guide(folder: Path, servers: str, address: str) -> Iterator[str]:
    """Run nginx with a configuration of the guide; yields its URL.

    Args:
        folder: for its files.
        servers: the configuration, which listens on port 80 and passes on to 127.0.0.1:8000.
        address: host and port of the service that it shall pass on to.
    """
    port = commands.free_port()
    for there, here in (("listen 80;", f"listen 127.0.0.1:{port};"), ("127.0.0.1:8000", address)):
        assert there in servers
        servers = servers.replace(there, here)
    with _running(folder, port, servers) as url:
        yield url


@contextmanager
def _running(folder: Path, port: int, servers: str) -> Iterator[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        services.missing("there is no nginx; Debian has it as `nginx`")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root;"  # which may write uploads into `folder`
    file.write_text(CONFIGURATION.format(folder=folder, servers=servers, user=user))
    url = f"http://127.0.0.1:{port}"
    with services.process([program, "-c", str(file), "-p", str(folder)], folder / "log"):
        services.eventually(
            lambda: httpx.get(url, trust_env=False).status_code, 30, "an answer of nginx"
        )
        yield url
