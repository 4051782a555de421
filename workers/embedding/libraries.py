"""torch and transformers, also beside a torchvision that has no operators.

transformers and open_clip import torchvision where it is installed. PyPI's torchvision for Linux is
built for CUDA. Beside a torch without CUDA its compiled operators cannot be loaded, and its import
fails: "operator torchvision::nms does not exist". No model here uses such an operator, so their
names are declared, without a function, and the import works (docs/decisions/0033).
"""

import importlib
import importlib.util
import re

import torch as torch
import transformers as transformers

MISSING = re.compile(r"operator (torchvision::\w+) does not exist")
MAX_OPERATORS = 16


def import_torchvision() -> None:
    """Import torchvision, if it is installed, so that other imports of it succeed."""
    if importlib.util.find_spec("torchvision") is None:
        return
    for _ in range(MAX_OPERATORS):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = MISSING.search(str(error))
            if not missing:
                raise
            torch.library.define(missing[1], "(Tensor boxes, Tensor scores, float limit) -> Tensor")
        else:
            return


import_torchvision()
