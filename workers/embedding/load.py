"""Loads the model of a worker, on the runtime that suits the device."""

import logging
import sys

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import HASH_MODEL, Embedder, HashEmbedder
from clipfleet.common.process.machine import gpus
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.converted import PRECISIONS, NotConverted, converted_model
from clipfleet.workers.embedding.hub import require_model

log = logging.getLogger(__name__)


def load_embedder(settings: Settings) -> Embedder:
    """Load a model. Torch and OpenVINO are imported only when they are used.

    On a CPU, `CLIPFLEET_RUNTIME=auto` means OpenVINO, and torch when the model cannot be converted.

    Raises:
        StartupError: the model cannot be used; `detail` tells the operator what to change.
    """
    if settings.model.startswith(HASH_MODEL):
        return HashEmbedder.named(settings.model, settings.embed_batch)
    require_model(settings.model)
    if settings.runtime == "openvino" or (settings.runtime == "auto" and _suits_openvino(settings)):
        try:
            return _on_openvino(settings)
        except (NotConverted, ImportError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if settings.runtime == "openvino" or settings.dtype == "int8":
                raise StartupError(f"the model cannot run on OpenVINO: {reason}") from error
            log.warning("the model runs on torch, 2 to 4 times as slow as on OpenVINO: %s", reason)
    from clipfleet.workers.embedding.clip import ClipEmbedder

    return ClipEmbedder(settings)


def _suits_openvino(settings: Settings) -> bool:
    on_cpu = settings.device == "cpu" or (
        settings.device == "auto" and not gpus() and sys.platform != "darwin"
    )
    return on_cpu and settings.dtype in PRECISIONS and not settings.compile


def _on_openvino(settings: Settings) -> Embedder:
    folder, record = converted_model(settings)
    from clipfleet.workers.embedding.openvino_clip import OpenVinoEmbedder

    if record.precision != "float32":
        log.info(
            "CLIPFLEET_DTYPE=%s: %.1f of the 10 nearest sample images are those of float32, "
            "lowest cosine similarity %.4f",
            record.precision, 10 * record.nearest, record.cosine,
        )  # fmt: skip
    return OpenVinoEmbedder(folder, record, settings.embed_batch)
