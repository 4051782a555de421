import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from clipfleet.common.settings import CARRIED_MODEL
from support.browser import Tab, chromium, tab
from support.clients import client_class
from support.in_process import InProcess
from support.models import data
from support.s3 import S3, s3_server
from support.stack import HASH_MODEL, Up, finished, free_ports, up

__all__ = ["client_class"]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The buckets that `service` and `carried_stack` can read."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def service(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for all tests that leave it intact; each test has a collection of its own.

    Its embeddings have no meaning, which saves the seconds that torch takes to load. It indexes the
    temporary folders of the tests.
    """
    port = free_ports(3)
    options = ["--metrics-port", str(port)]
    roots = json.dumps([str(tmp_path_factory.getbasetemp())])
    env = {"CLIPFLEET_LOG": "json", "CLIPFLEET_SOURCE_ROOTS": roots, **s3.environment}
    with up(tmp_path_factory.mktemp("up"), HASH_MODEL, *options, **env) as running:
        running.metrics_port = port
        yield running


@pytest.fixture(scope="session")
def memory_service() -> Iterator[InProcess]:
    """The same service in this process, for tests that need neither Redis nor Milvus."""
    with InProcess(dim=32) as running:
        yield running


@pytest.fixture(scope="session")
def carried_stack(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack with the carried model, whose results make sense, and with Flower.

    It may fetch URLs on 127.0.0.1.
    """
    port = free_ports(1)
    flower = ["--flower", "--flower-port", str(port)]
    env = {
        "HF_HUB_OFFLINE": "1",
        "CLIPFLEET_FETCH__ALLOWED_NETWORKS": '["127.0.0.1/32"]',
        "CLIPFLEET_FETCH__READ_S": "300",  # a test may hold an image back for long
        "CLIPFLEET_FETCH__TOTAL_S": "300",
        **s3.environment,
    }
    with up(tmp_path_factory.mktemp("mini"), CARRIED_MODEL, *flower, **env) as running:
        running.flower_port = port
        yield running


@pytest.fixture(scope="session")
def flickr() -> list[Path]:
    return sorted((data("flickr8k") / "images").iterdir())


@pytest.fixture
def client(service: Up, client_class: Any) -> Iterator[Any]:
    """Each of the Python clients in turn, on `service`."""
    with client_class(service.url) as client:
        yield client


@pytest.fixture(scope="session")
def drawings(carried_stack: Up) -> str:
    """A collection of the carried images, with the length of each name as a declared field."""
    samples = sorted((Path(str(files("clipfleet"))) / "samples").rglob("*.png"))[::2]
    rows = [
        {"id": path.stem, "uri": str(path), "label": path.parent.name, "letters": len(path.stem)}
        for path in samples
    ]
    listed = carried_stack.beside("drawings.jsonl")
    listed.write_text("\n".join(json.dumps(row) for row in rows))
    with carried_stack.client() as client:
        client.create_collection("drawings", fields={"letters": "int"})
        job = finished(client, client.index("drawings", listed).id)
        assert job.state == "succeeded"
    return "drawings"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for each file of tests: Playwright keeps an event loop running meanwhile."""
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, carried_stack: Up) -> Iterator[Tab]:
    """The web page in a tab of its own; fails on a message in the browser's console."""
    with tab(browser, carried_stack.url) as page:
        yield page
