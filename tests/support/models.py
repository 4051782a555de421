"""Creates models with real architectures and random weights.

torch and transformers take seconds to import, so only the functions that need them import them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.load import load_embedder
from support import services

if TYPE_CHECKING:
    from clipfleet.workers.embedding.clip import ClipEmbedder

DATA = Path(__file__).parents[3] / "shared" / "data"


def data(name: str) -> Path:
    """A folder of the shared test data. Skips the test if there is none."""
    if not (DATA / name).exists():
        services.missing(f"the test data {name} is not beside the checkout")
    return DATA / name


def clip_embedder(model: str | Path, **settings: Any) -> "ClipEmbedder":
    from clipfleet.workers.embedding.clip import ClipEmbedder

    return ClipEmbedder(Settings(model=str(model), **settings))


def embedder(model: str | Path, runtime: Literal["torch", "openvino"], **settings: Any) -> Embedder:
    return load_embedder(Settings(model=str(model), runtime=runtime, device="cpu", **settings))


def tiny_clip(folder: Path, *, image_size: int = 64, layers: int = 2) -> Path:
    """A CLIP of a few hundred thousand weights with CLIP's own tokenizer. Saved in `folder`."""
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers}
    config = transformers.CLIPConfig(
        projection_dim=32,
        vision_config={
            **small,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": 16,
        },
        text_config={
            **small,
            "num_attention_heads": 4,
            "eos_token_id": 49407,
            "bos_token_id": 49406,
        },
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    transformers.CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size=size
    ).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(data("clip-vit-base-patch32"))
    tokenizer.save_pretrained(folder)
    return folder


def tiny_siglip(folder: Path) -> Path:
    import torch

    from clipfleet.workers.embedding.libraries import transformers

    torch.manual_seed(0)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.SiglipConfig(
        vision_config={**small, "image_size": 64, "patch_size": 16},
        text_config={**small, "vocab_size": 49_408, "max_position_embeddings": 16},
    )
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(data("clip-vit-base-patch32"))
    tokenizer.save_pretrained(folder)
    return folder
