"""Models converted for OpenVINO: where they are kept, and when they are converted again.

A converted model is a folder of `CLIPFLEET_MODEL_CACHE`, named by a hash of what it depends on: the
files of the model, the number format, and the versions of the packages. A folder appears whole, by
a rename, and a folder whose files have other sizes than its `model.json` says is converted again.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.layout import is_open_clip, model_folder, weights_id
from clipfleet.workers.embedding.texts import Cleaning

log = logging.getLogger(__name__)

RECORD = "model.json"
PACKAGES = ("openvino", "torch", "transformers", "tokenizers")
OPEN_CLIP = ("open_clip_torch", "timm")  # also, for a model of open_clip
MAX_UNUSED_S = 90 * 24 * 3600.0  # a worker that runs for longer converts at its next start
FORMAT = 2  # a higher number converts every model again
Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: dict[str, Precision] = {
    "auto": "float32", "float32": "float32", "bfloat16": "bfloat16", "int8": "int8",
}  # fmt: skip


class NotConverted(Exception):
    """The model cannot run on OpenVINO; the text says why."""


class ConvertedModel(BaseModel):
    """The record of a converted model, `model.json` in its folder.

    Attributes:
        reason: why the model cannot run on OpenVINO; "" when it can.
        precision: the number format.
        preprocess: how images become pixels.
        dim: the length of an embedding.
        inputs: the names of the text model's inputs, in their order.
        cleaning: what happens to a text before the tokenizer.
        pattern: a regular expression that finds the words of a text; "": the tokenizer finds them.
        cosine: the lowest cosine similarity with torch's float32 embedding of the same input.
        nearest: the share of the ten nearest sample images that are the same as with torch.
        files: the sizes of the other files of the folder, bytes.
    """

    reason: str = ""
    precision: Precision = "float32"
    preprocess: Preprocess | None = None
    dim: int = 0
    inputs: tuple[str, ...] = ()
    cleaning: Cleaning = ""
    pattern: str = ""
    cosine: float = 0.0
    nearest: float = 0.0
    files: dict[str, int] = {}


class Failure(BaseModel):
    """Why a conversion failed, as `convert` prints it.

    Attributes:
        detail: the text of a StartupError; the model cannot be used with torch either.
    """

    detail: str


def converted_model(settings: Settings) -> tuple[Path, ConvertedModel]:
    """The folder and the record of a model for OpenVINO. The model is converted if need be.

    Raises:
        NotConverted: the model cannot run on OpenVINO, or could not be converted.
        StartupError: there is no such model.
    """
    precision = PRECISIONS.get(settings.dtype)
    if precision is None:
        raise NotConverted(f"OpenVINO does not compute with CLIPFLEET_DTYPE={settings.dtype}")
    try:
        cache = _cache(settings)
        with _locked(cache):
            folder, record = _read(cache, settings.model, precision) or _convert(
                cache, settings.model, precision
            )
    except OSError as error:
        raise NotConverted(f"the converted model could not be stored: {error}") from error
    if record.reason:
        raise NotConverted(record.reason)
    return folder, record


def _cache(settings: Settings) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(settings.model_cache or f"{home}/clipfleet/models").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One process converts at a time; the others then find its result."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another worker that converts a model")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(cache: Path, model: str, precision: Precision) -> tuple[Path, ConvertedModel] | None:
    source = model_folder(model)
    if source is None:
        return None
    folder = cache / _key(model, source, precision)
    try:
        record = ConvertedModel.model_validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if sizes(folder) != record.files:
        return None
    with suppress(PermissionError):  # a cache that another user has filled
        os.utime(folder)  # `_remove_unused` goes by this time
    return folder, record


def _convert(cache: Path, model: str, precision: Precision) -> tuple[Path, ConvertedModel]:
    _remove_unused(cache)
    staging = Path(tempfile.mkdtemp(prefix="converting-", dir=cache))
    try:
        log.info("converting model %s for OpenVINO; this is done once", model)
        began = time.monotonic()
        record = _run_converter(model, precision, staging)
        source = model_folder(model)
        if source is None:
            raise NotConverted(f"the files of model {model!r} are not in the hub's cache")
        folder = cache / _key(model, source, precision)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        log.info("model %s was converted in %.0f s", model, time.monotonic() - began)
        return folder, record
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_unused(cache: Path) -> None:
    """Remove what killed conversions left, and models that no worker has loaded for long."""
    too_old = time.time() - MAX_UNUSED_S
    for folder in cache.iterdir():
        if folder.is_dir() and (folder.match("converting-*") or folder.stat().st_mtime < too_old):
            shutil.rmtree(folder, ignore_errors=True)


def _run_converter(model: str, precision: Precision, folder: Path) -> ConvertedModel:
    """Convert in a process of its own, so that this one never imports torch."""
    module = "clipfleet.workers.embedding.convert"
    done = subprocess.run(
        [sys.executable, "-m", module, model, precision, str(folder)],
        env={**os.environ, "CI": "true"},  # elsewhere OpenVINO reports each conversion to Intel
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == os.EX_CONFIG:
        raise StartupError(Failure.model_validate_json(done.stdout.splitlines()[-1]).detail)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotConverted(f"the conversion failed: {lines[-1][:300]}")
    return ConvertedModel.model_validate_json((folder / RECORD).read_bytes())


def _key(model: str, source: Path, precision: Precision) -> str:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    about: dict[str, object] = {
        "format": FORMAT,
        "precision": precision,
        "files": [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files],
        "packages": [_version(package) for package in PACKAGES],
    }
    if weights := weights_id(model):
        about["weights"] = weights
    if is_open_clip(model):
        about["open_clip"] = [_version(package) for package in OPEN_CLIP]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return f"{source.name}-{precision}-{digest}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def sizes(folder: Path) -> dict[str, int]:
    """The sizes in bytes of the files of a converted model, without its record."""
    return {
        path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != RECORD
    }
