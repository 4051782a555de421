"""A real nginx before a service."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from clipfleet.embedded import commands
from support import services

CONFIGURATION = """
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
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, locations: str) -> Iterator[str]:
    """Run nginx with these locations; yields its URL without a slash at the end."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        services.missing("there is no nginx; Debian has it as `nginx`")
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, port=port, locations=locations))
    url = f"http://127.0.0.1:{port}"
    with services.process([program, "-c", str(file), "-p", str(folder)], folder / "log"):
        services.eventually(
            lambda: httpx.get(url, trust_env=False).status_code, 30, "an answer of nginx"
        )
        yield url
