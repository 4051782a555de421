"""Feeders, and images for them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path

from PIL import Image

from clipfleet.common.auth.source_access import access_of
from clipfleet.common.blobs import Blobs
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.settings import Settings
from clipfleet.workers.ingest.feeders import Fed, Feeders, ProcessFeeders
from clipfleet.workers.ingest.prepare import Kit, Request
from clipfleet.workers.metrics import RestartReason, StageTimings

SPEC = Preprocess(shortest=8, height=8, width=8)


def kit(folder: Path, spec: Preprocess = SPEC) -> Kit:
    settings = Settings(source_roots=(folder,), blobs=str(folder / "blobs"))
    return Kit.of(settings, access_of(settings, Blobs(settings.blobs)), spec)


@contextmanager
def feeding(
    folder: Path,
    count: int = 2,
    spec: Preprocess = SPEC,
    restarted: Callable[[RestartReason], None] = lambda _: None,
) -> Iterator[ProcessFeeders]:
    with closing(ProcessFeeders(count, kit(folder, spec), restarted)) as feeders:
        feeders.start()
        yield feeders


def photo(path: Path, width: int = 16, shade: int = 0) -> Path:
    Image.new("RGB", (width, 12), (shade, shade, shade)).save(path, "PNG")
    return path


def request(path: Path, known: str = "", data: bytes | None = None) -> Request:
    return Request(f"file:{path}", data, "chunk", None, "0" * 12, "m", known)


def submit(feeders: Feeders, path: Path, known: str = "") -> "Future[Fed]":
    return feeders.submit(request(path, known), StageTimings())
