"""A server with the S3 protocol, and the configuration of its clients."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import httpx

from clipfleet.embedded import commands
from support import services


@dataclass
class S3:
    url: str
    process: Any
    log: Path

    def requests(self) -> list[str]:
        """The requests so far, such as "GET /bucket/key", without colours and versions."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text()).splitlines()
        return [line.split('"')[1].removesuffix(" HTTP/1.1") for line in lines if '"' in line]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fill(self, bucket: str, objects: dict[str, bytes]) -> None:
        fs = fsspec.filesystem("s3")
        if not fs.exists(bucket):
            fs.mkdir(bucket)
        for key, data in objects.items():
            fs.pipe_file(f"{bucket}/{key}", data)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Run a server, and configure clients in this process for it."""
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    with services.process(command, folder / "log") as process:
        services.eventually(lambda: httpx.get(url, trust_env=False).status_code, 60, "S3")
        there = S3(url, process, folder / "log")
        before = {name: os.environ.get(name) for name in there.environment}
        os.environ.update(there.environment)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            yield there
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
