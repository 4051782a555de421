"""Whether a model can be had: told before torch is imported, and before a stack starts.

A model of the hub that is in its cache is loaded without asking the hub.
"""

import contextlib
from pathlib import Path

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import HASH_MODEL
from clipfleet.common.settings import CARRIED_MODEL
from clipfleet.workers.embedding.converted import model_folder

CONFIG = "config.json"
TIMEOUT_S = 6.0  # for the hub's answer; before it, huggingface_hub waits 3 s for another one
_REASONS = {  # of the hub's errors, by the name of their class
    "GatedRepoError": "its authors ask for an agreement on its page; then set HF_TOKEN",
    "RepositoryNotFoundError": "there is none of this name, or it is private (set HF_TOKEN)",
    "RemoteEntryNotFoundError": f"it has no {CONFIG}, so transformers cannot load it",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
}


def require_model(name: str) -> None:
    """Check that a model is on this machine, or that the hub has it.

    Args:
        name: a hub id, a folder, the carried model or `hash:DIM`.

    Raises:
        StartupError: it is neither, or the hub does not answer within TIMEOUT_S.
    """
    if is_remote(name):
        _ask_hub(name)
    elif not name.startswith(HASH_MODEL) and name != CARRIED_MODEL:
        folder = Path(name).expanduser()
        if folder.is_dir() and not (folder / CONFIG).is_file():
            raise StartupError(
                f"the folder {name!r} does not contain a complete model: it has no {CONFIG}"
            )


def is_remote(name: str) -> bool:
    """Whether a model has to come from the hub.

    Raises:
        StartupError: the name is that of a folder that does not exist.
    """
    if name.startswith(HASH_MODEL) or name == CARRIED_MODEL:
        return False
    path = Path(name).expanduser()
    if path.is_dir():
        return False
    if path.is_absolute() or name.startswith((".", "~")) or path.exists():
        raise StartupError(
            f"there is no model folder {name!r}; name another with --model (or CLIPFLEET_MODEL)"
        )
    return model_folder(name) is None


def no_model(name: str, reason: str) -> StartupError:
    """The error for a model that is neither here nor on the hub."""
    return StartupError(
        f"model {name!r} is neither on this machine nor available from the model hub "
        f"{hub_url()}: {reason}. Connect this machine to the hub once (or set HF_ENDPOINT to a "
        "mirror), or put the model into a folder and name it with --model /path/to/folder (or "
        f"CLIPFLEET_MODEL=/path/to/folder). --model {CARRIED_MODEL} is included and needs no "
        "download"
    )


def hub_url() -> str:
    """The address of the hub, or of the mirror in HF_ENDPOINT."""
    from huggingface_hub import constants  # 0.1 s, for models of the hub alone

    return str(constants.ENDPOINT)


def downloaded_bytes(name: str) -> int:
    """The bytes of a model of the hub that are in its cache so far."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    total = 0
    for path in (folder / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # renamed when it is complete
            total += path.stat().st_size
    return total


def _ask_hub(name: str) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=TIMEOUT_S)
    except Exception as error:  # of huggingface_hub and of its HTTP library
        raise no_model(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if "Timeout" in kind:
        return f"it did not answer within {TIMEOUT_S:.0f} s"
    return _REASONS.get(kind) or f"{first_line(error)}"


def first_line(error: Exception) -> str:
    """The first line of an error, 200 characters at most."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
