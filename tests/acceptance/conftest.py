from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import kind
from models import data
from s3 import S3, s3_server
from stack import Up, up

from clipfleet.common.settings import CARRIED_MODEL

__all__ = ["kind"]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """The buckets that `service` and `mini` can read."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def service(tiny: Path, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for all tests that leave it whole; each has a collection of its own."""
    with up(tmp_path_factory.mktemp("up"), tiny, **s3.environment) as running:
        yield running


@pytest.fixture(scope="session")
def mini(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The same with the model that travels with the code, whose answers make sense, and with
    URLs on 127.0.0.1 allowed."""
    told = {"HF_HUB_OFFLINE": "1", "CLIPFLEET_FETCH__ALLOWED_NETWORKS": '["127.0.0.1/32"]'}
    with up(tmp_path_factory.mktemp("mini"), CARRIED_MODEL, **told, **s3.environment) as running:
        yield running


@pytest.fixture(scope="session")
def flickr() -> list[Path]:
    return sorted((data("flickr8k") / "images").iterdir())


@pytest.fixture
def client(service: Up, kind: Any) -> Iterator[Any]:
    """One of the Python clients, in turn, on the common stack."""
    with kind(service.url) as made:
        yield made
