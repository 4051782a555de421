"""Whether a model can be had: told before torch is imported, and before a stack starts.

A model of the hub that is in its cache is loaded without asking the hub.
"""

import contextlib
import importlib.util
from pathlib import Path

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import HASH_MODEL
from clipfleet.common.settings import CARRIED_MODEL
from clipfleet.workers.embedding import layout

TIMEOUT_S = 6.0  # for the hub's answer; before it, huggingface_hub waits 3 s for another one
EXTRA = "pip install 'clipfleet[open-clip]'"
_REASONS = {  # of the hub's errors, by the name of their class
    "GatedRepoError": "its authors ask for an agreement on its page; then set HF_TOKEN",
    "RepositoryNotFoundError": "there is none of this name, or it is private (set HF_TOKEN)",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
}


def require_model(name: str) -> None:
    """Check that a model is on this machine, or that the hub has it, and that its library is there.

    Args:
        name: a hub id, a folder, the carried model or `hash:DIM`.

    Raises:
        StartupError: it is neither, the hub does not answer within TIMEOUT_S, or the model is one
            of open_clip and the extra is not installed.
    """
    if name.startswith(HASH_MODEL):
        return
    require_library(name)
    source = Path(layout.source_of(name))
    if source.is_dir() and not (layout.is_open_clip(name) or (source / layout.CONFIG).is_file()):
        raise unusable(
            name,
            f"it has neither {layout.CONFIG}, as models of transformers have, nor "
            f"{layout.OPEN_CLIP_CONFIG}, as models of open_clip have",
        )
    if is_remote(name):
        _ask_hub(name)


def require_library(name: str) -> None:
    """Raise StartupError when a model is one of open_clip and the extra is not installed."""
    if layout.is_open_clip(name) and importlib.util.find_spec("open_clip") is None:
        raise StartupError(f"model {name!r} is one of open_clip, which needs: {EXTRA}")


def is_remote(name: str) -> bool:
    """Whether a model has to come from the hub.

    Raises:
        StartupError: the name is that of a folder that does not exist.
    """
    return not name.startswith(HASH_MODEL) and layout.model_folder(name) is None


def unusable(name: str, reason: str, kind: str = "") -> StartupError:
    """The error for a model that its library could not load.

    Args:
        name: the model.
        reason: why.
        kind: whose layout a folder has, such as "of open_clip".
    """
    if Path(layout.source_of(name)).is_dir():
        model = f"model {kind}".rstrip()
        return StartupError(f"the folder {name!r} does not contain a complete {model}: {reason}")
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

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=name.removeprefix(layout.HUB), repo_type="model"
    )
    total = 0
    for path in (folder / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # renamed when it is complete
            total += path.stat().st_size
    return total


def _ask_hub(name: str) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    file = layout.config_file(name)
    try:
        address = hf_hub_url(name.removeprefix(layout.HUB), file)
        get_hf_file_metadata(address, timeout=TIMEOUT_S)
    except Exception as error:  # of huggingface_hub and of its HTTP library
        raise unusable(name, _reason(name, error)) from error


def _reason(name: str, error: Exception) -> str:
    kind = type(error).__name__
    if "Timeout" in kind:
        return f"it did not answer within {TIMEOUT_S:.0f} s"
    if kind == "RemoteEntryNotFoundError" and layout.is_open_clip(name):
        return f"it has no {layout.OPEN_CLIP_CONFIG}, so open_clip cannot load it"
    if kind == "RemoteEntryNotFoundError":
        return (
            f"it has no {layout.CONFIG}, so transformers cannot load it; if it is a model of "
            f"open_clip, name it {layout.HUB}{name}"
        )
    return _REASONS.get(kind) or f"{first_line(error)}"


def first_line(error: Exception) -> str:
    """The first line of an error, 200 characters at most."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
