"""Running the text tower over many texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.student import WIDTH, TextTower

BATCH = 128


@torch.inference_mode()
def embed_texts(texts: Sequence[str], tower: TextTower, tokenizer: Any) -> Tensor:
    """Embed texts in batches of like length: float32 [n, 384] on the CPU, unit length."""
    tower.eval()
    device = tower.projection.weight.device
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = torch.empty(len(texts), WIDTH)
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        chosen = [texts[place] for place in places]
        tokens = tokenizer(chosen, padding=True, truncation=True, return_tensors="pt").to(device)
        vectors[places] = tower(tokens["input_ids"], tokens["attention_mask"]).cpu()
    return vectors.clone()
