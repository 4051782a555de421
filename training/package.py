"""Stage: put both towers into one folder in transformers' own format."""

import json
import math
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from training.joint import ImageTower
from training.pictures import IMAGE_SIZE
from training.student import WIDTH, TextTower

LIMIT_BYTES = 25_000_000
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessorPil",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def package(image: ImageTower, text: TextTower, work: Path, target: Path) -> None:
    """Write model (float16), tokenizer and preprocessor; refuse a folder over the limit."""
    target.mkdir(parents=True, exist_ok=True)
    model = _dual_encoder(image, text)
    nn.Module.to(model, torch.float16)
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    _ask_for_float32(target / "config.json")
    for file in (work / "tokenizer").iterdir():
        shutil.copyfile(file, target / file.name)
    settings = json.dumps(PREPROCESSOR, indent=2) + "\n"
    (target / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    size = sum(file.stat().st_size for file in target.iterdir())
    if size > LIMIT_BYTES:
        raise ValueError(f"the model folder has {size} bytes, more than {LIMIT_BYTES}")


def _dual_encoder(image: ImageTower, text: TextTower) -> VisionTextDualEncoderModel:
    """Join the towers in transformers' dual encoder."""
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        image.tower.config,
        text.bert.config,
        projection_dim=WIDTH,
        logit_scale_init_value=float(image.scale),
    )
    model = VisionTextDualEncoderModel(config, vision_model=image.tower, text_model=text.bert)
    with torch.no_grad():
        model.visual_projection.weight.copy_(_scaled(image.projection.weight))
        model.text_projection.weight.copy_(_scaled(text.projection.weight))
        model.logit_scale.fill_(min(float(image.scale), math.log(100.0)))
    return model


def _scaled(weight: torch.Tensor) -> torch.Tensor:
    """Bring a projection to unit mean row length; unit vectors come out the same."""
    return weight.div(weight.norm(dim=1).mean())


def _ask_for_float32(path: Path) -> None:
    """Make ``from_pretrained`` compute in float32 although the file holds float16."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
