"""Folders in open_clip's layout: configurations of published models with small sizes, and random
weights. The shapes of the published ones are in the package, in `open_clip/model_configs`."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import vocabularies

if TYPE_CHECKING:
    from types import ModuleType

VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49_408, "width": 64, "heads": 4, "layers": 2}
CLIP: dict[str, Any] = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}  # ViT-B-32
CLIP_PIXELS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIGLIP: dict[str, Any] = {  # ViT-B-16-SigLIP2
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": vocabularies.SIZE,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
SIGLIP_PIXELS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
XLM_R: dict[str, Any] = {  # xlm-roberta-base-ViT-B-32
    "embed_dim": 32,
    "vision_cfg": VISION,
    "text_cfg": {
        "hf_model_name": "xlm-roberta-base",
        "hf_tokenizer_name": "xlm-roberta-base",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
    },
}


def library() -> "ModuleType":
    """open_clip. Skips the test without the extra, also in CI, which does not install it."""
    if find_spec("open_clip") is None:
        pytest.skip("needs the extra open-clip, which `make install` leaves out: CONTRIBUTING.md")
    from clipfleet.workers.embedding import libraries  # before any import of torchvision

    assert libraries.torch
    import open_clip

    module: ModuleType = open_clip
    return module


def clip(folder: Path, *, seed: int = 0, safetensors: bool = True, **pixels: Any) -> Path:
    """A CLIP with open_clip's own tokenizer."""
    return write(folder, CLIP, {**CLIP_PIXELS, **pixels}, seed=seed, safetensors=safetensors)


def siglip(folder: Path) -> Path:
    """A SigLIP 2 with a tower of timm, and a tokenizer of its kind in the folder."""
    vocabularies.gemma(folder)
    return write(folder, SIGLIP, SIGLIP_PIXELS)


def xlm_roberta(folder: Path) -> Path:
    """A multilingual CLIP with a text tower of transformers, and its files in the folder."""
    vocabularies.xlm_roberta(folder)
    vocabularies.xlm_roberta_config().save_pretrained(folder / "xlm-roberta-base")
    return write(folder, XLM_R, CLIP_PIXELS)


def write(
    folder: Path,
    config: dict[str, Any],
    pixels: dict[str, Any],
    *,
    seed: int = 0,
    safetensors: bool = True,
) -> Path:
    """Write a model with random weights as `open_clip.push_to_hf_hub` does."""
    open_clip = library()
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    text = dict(config["text_cfg"])
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(folder / text["hf_model_name"]), "hf_model_pretrained": False}
    custom = config.get("custom_text") or "hf_model_name" in text
    arguments = {name: part for name, part in config.items() if name != "custom_text"}
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    torch.manual_seed(seed)
    weights = kind(**{**arguments, "text_cfg": text}).state_dict()
    weights = {name: part.clone().contiguous() for name, part in weights.items()}
    if safetensors:
        save_file(weights, folder / "open_clip_model.safetensors")
    else:
        torch.save(weights, folder / "open_clip_pytorch_model.bin")
    return folder
