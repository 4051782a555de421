"""Models converted for OpenVINO: once, by one process, and again when anything changed."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipfleet.common.errors import StartupError
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding import converted
from clipfleet.workers.embedding.clip import ClipEmbedder
from clipfleet.workers.embedding.converted import RECORD, ConvertedModel, converted_model
from clipfleet.workers.embedding.load import load_embedder
from clipfleet.workers.embedding.openvino_clip import IMAGE, OpenVinoEmbedder

STARTED = "converting model"
SECOND_PROCESS = """
import sys
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.load import load_embedder

embedder = load_embedder(Settings())
assert embedder.embed_texts(["a dog"]).shape == (1, embedder.dim)
print(type(embedder).__name__, [name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> Settings:
    return Settings(model=str(tiny), device="cpu", model_cache=str(tmp_path / "cache"))


def conversions(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage().startswith(STARTED) for record in caplog.records)


def start_worker(settings: Settings) -> "subprocess.Popen[str]":
    """A process that loads the model as a worker does."""
    env = {
        "CLIPFLEET_MODEL": settings.model,
        "CLIPFLEET_DEVICE": "cpu",
        "CLIPFLEET_MODEL_CACHE": settings.model_cache,
    }
    return subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_model_is_converted_once_and_then_runs_without_torch(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert isinstance(load_embedder(settings), OpenVinoEmbedder)
    assert conversions(caplog) == 1
    folder, record = converted_model(settings)
    assert record.cosine > 0.9999
    with start_worker(settings) as worker:
        assert worker.communicate(timeout=120)[0].split("\n")[0] == "OpenVinoEmbedder []"
    assert load_embedder(settings).dim == 32
    assert conversions(caplog) == 1
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_a_loaded_model_is_warm(settings: Settings) -> None:
    """Two threads that make the first call of OpenVINO at once can wait for ever."""
    embedder = load_embedder(settings)
    assert isinstance(embedder, OpenVinoEmbedder)
    assert embedder._image.is_warm
    assert embedder._text.is_warm


def test_workers_that_start_together_convert_once(settings: Settings) -> None:
    workers = [start_worker(settings) for _ in range(2)]
    for worker in workers:
        assert worker.communicate(timeout=300)[0].strip() == "OpenVinoEmbedder []"
    folders = [path for path in Path(settings.model_cache).iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_a_folder_that_was_cut_short_or_left_by_a_kill_is_replaced(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, record = converted_model(settings)
    weights = (folder / IMAGE).with_suffix(".bin")
    os.truncate(weights, weights.stat().st_size // 2)
    abandoned = folder.with_name("converting-abandoned")
    abandoned.mkdir()
    assert converted_model(settings) == (folder, record)
    assert conversions(caplog) == 2
    assert not abandoned.exists()
    assert load_embedder(settings).embed_texts(["a dog"]).shape == (1, 32)


def test_models_that_no_worker_loads_any_more_are_removed(settings: Settings) -> None:
    cache = Path(settings.model_cache)
    for name, days in (("old", 91), ("recent", 1)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (0, time.time() - days * 24 * 3600))
    folder, _ = converted_model(settings)
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, "lock", "recent"])
    os.utime(folder, (0, 0))
    assert converted_model(settings)[0].stat().st_mtime > time.time() - 3600


def test_another_version_or_another_model_is_converted_for_itself(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = converted_model(settings)
    monkeypatch.setattr(converted, "FORMAT", converted.FORMAT + 1)
    other, _ = converted_model(settings)
    assert other != folder
    config = Path(settings.model) / "config.json"
    os.utime(config, ns=(0, config.stat().st_mtime_ns + 1))
    changed, _ = converted_model(settings)
    assert changed not in (folder, other)


def test_without_a_folder_for_it_the_model_runs_on_torch_and_says_so(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    settings = settings.model_copy(update={"model_cache": str(file / "cache")})
    assert isinstance(load_embedder(settings), ClipEmbedder)
    (message,) = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert "runs on torch" in message
    assert "could not be stored" in message
    with pytest.raises(StartupError, match="could not be stored"):
        load_embedder(settings.model_copy(update={"runtime": "openvino"}))


def test_a_model_that_cannot_be_converted_is_tried_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, record = converted_model(settings)
    refused = ConvertedModel(reason="it has other embeddings", files=record.files)
    (folder / RECORD).write_text(refused.model_dump_json())
    assert isinstance(load_embedder(settings), ClipEmbedder)
    assert "it has other embeddings" in caplog.text
    assert conversions(caplog) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_shorter_number_format_says_what_it_costs(
    settings: Settings, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    caplog.set_level(logging.INFO)
    shorter = load_embedder(settings.model_copy(update={"dtype": dtype}))
    assert isinstance(shorter, OpenVinoEmbedder)
    assert f"CLIPFLEET_DTYPE={dtype}: " in caplog.text
    assert "of the 10 nearest sample images are those of float32" in caplog.text
    row, expected = (each.embed_texts(["a dog"])[0] for each in (shorter, load_embedder(settings)))
    assert row @ expected > 0.95


def test_a_missing_model_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="not contain a complete model"):
        load_embedder(settings.model_copy(update={"model": str(tmp_path)}))
    with pytest.raises(StartupError, match="no model folder"):
        load_embedder(settings.model_copy(update={"model": str(tmp_path / "nope")}))


def test_the_numbers_of_torch_alone_run_on_torch(settings: Settings) -> None:
    for update in ({"dtype": "float16"}, {"runtime": "torch"}):
        assert isinstance(load_embedder(settings.model_copy(update=update)), ClipEmbedder)
    with pytest.raises(StartupError, match="CLIPFLEET_RUNTIME=openvino"):
        load_embedder(settings.model_copy(update={"dtype": "int8", "runtime": "torch"}))
