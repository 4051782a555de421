"""Which library a model is for, from its name and its files. It imports no library of models.

A folder is in open_clip's layout when it has `open_clip_config.json` and no model of transformers.
Several models of the hub have both layouts; they go on as models of transformers.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clipfleet.common.errors import StartupError
from clipfleet.common.settings import CARRIED_MODEL, carried_model

HUB, FOLDER = "hf-hub:", "local-dir:"  # the prefixes of open_clip's names
CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
WEIGHTS = {  # by the name of the configuration; a library reads the files of the first pattern
    CONFIG: ("model*.safetensors", "pytorch_model*.bin"),
    OPEN_CLIP_CONFIG: ("open_clip_model*.safetensors", "open_clip_pytorch_model*.bin"),
}
BLOCK, BLOCKS = 4_096, 1_024  # bytes, and how many of them are read of a large file
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def is_open_clip(model: str) -> bool:
    """Whether a model is for open_clip."""
    if model.startswith((HUB, FOLDER)):
        return True
    folder = Path(model).expanduser()
    return (folder / OPEN_CLIP_CONFIG).is_file() and not _is_for_transformers(folder)


def _is_for_transformers(folder: Path) -> bool:
    about = {}
    with suppress(OSError, ValueError):
        about = json.loads((folder / CONFIG).read_bytes())
    if not isinstance(about, dict) or "model_type" not in about or "auto_map" in about:
        return False
    indexes = [f"{name}.index.json" for name in TRANSFORMERS_WEIGHTS]
    return any((folder / name).is_file() for name in (*TRANSFORMERS_WEIGHTS, *indexes))


def config_file(model: str) -> str:
    """The name of the file that describes a model in its library's layout."""
    return OPEN_CLIP_CONFIG if is_open_clip(model) else CONFIG


def source_of(model: str) -> str:
    """A model as its library names it: the path of a folder, or an id of the hub.

    Raises:
        StartupError: it is a folder that does not exist, or an id of the hub without a name.
    """
    if model == CARRIED_MODEL:
        return str(carried_model())
    if model.startswith(HUB):
        if not model.removeprefix(HUB).strip("/"):
            raise StartupError(f"model {model!r} names no model of the hub: write {HUB}OWNER/NAME")
        return model
    named = model.removeprefix(FOLDER)
    folder = Path(named).expanduser()
    if folder.is_dir():
        return str(folder)
    is_path = folder.is_absolute() or named.startswith((".", "~")) or named != model
    if is_path or folder.exists():
        raise StartupError(
            f"there is no model folder {named!r}; name another with --model (or CLIPFLEET_MODEL)"
        )
    return model


def model_folder(model: str) -> Path | None:
    """The folder with the files of a model; None for a model that is only on the hub."""
    source = source_of(model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache  # 0.1 s, for models of the hub alone

    with suppress(ValueError):  # no name of a model on the hub
        config = try_to_load_from_cache(source.removeprefix(HUB), config_file(model))
        return Path(config).parent if isinstance(config, str) else None
    return None


def weights_id(model: str) -> str:
    """Tell the weights of a model in a local folder from others: 16 hex digits.

    It depends on the size of the files with weights and on a sample of their bytes, BLOCKS blocks
    evenly spread over each file. Other files of the folder may change.

    Args:
        model: the name of the model.

    Returns:
        The digits; "" for a model that is in no folder of the user, whose name stands for it.

    Raises:
        OSError: the weights cannot be read.
    """
    folder = Path(source_of(model))
    if model == CARRIED_MODEL or not folder.is_dir():
        return ""
    return _digest(files) if (files := weight_files(model, folder)) else ""


def weight_files(model: str, folder: Path) -> list[Path]:
    """The files of a folder with the weights that the model's library reads; sorted."""
    each = (sorted(folder.glob(pattern)) for pattern in WEIGHTS[config_file(model)])
    return next((files for files in each if files), [])


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{size} ".encode())
            count = min(BLOCKS, -(-size // BLOCK))
            for n in range(count):  # from the first block to the last
                file.seek(n * (size - BLOCK) // max(1, count - 1) if size > BLOCK else 0)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
