"""Runs clip-retrieval's `clip_inference` in its own environment: see clip_retrieval.py.

    python clip_inference.py FOLDER OUTPUT MODEL BATCH WORKERS

Prints the seconds from the first read to the last write, without loading and warm-up, as JSON.
"""

import importlib.util
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def main(folder: str, output: str, model: str, batch: str, workers: str) -> None:
    inference: Any = import_module("clip_retrieval.clip_inference.main")
    inference.main(
        input_dataset=folder,
        output_folder=output,
        batch_size=int(batch),
        num_prepro_workers=int(workers),
        enable_text=False,
        clip_model=f"hf_clip:{model}",
    )
    stats = json.loads((Path(output) / "stats" / "0.json").read_text())
    print()  # after its progress
    print(json.dumps({"images": stats["sample_count"], "seconds": stats["total_duration"]}))


def _define_operators() -> Any:
    """PyPI has torchvision for CUDA alone. Beside torch for CPUs it lacks its operators, and its
    import fails where it describes two of them. No image passes them here."""
    library: Any = import_module("torch").library
    operators = library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_module("torchvision")
    return operators  # they are gone with this object


def _without_the_rest() -> None:
    """The package itself imports its server and its index, which the inference does not use."""
    spec = importlib.util.find_spec("clip_retrieval")
    assert spec is not None
    package = ModuleType("clip_retrieval")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["clip_retrieval"] = package


_OPERATORS = _define_operators()  # as the next line: also in the process that writes the log
_without_the_rest()

if __name__ == "__main__":
    main(*sys.argv[1:])
