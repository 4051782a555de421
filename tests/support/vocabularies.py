"""Small tokenizers of the kinds that multilingual models have, trained on a few sentences."""

import json
from pathlib import Path
from typing import Any

SIZE = 600
SENTENCES = [
    "a photo of a dog in the snow", "two cats on a red sofa", "it's a church at night",
    "ein Hund im Schnee", "eine Katze auf dem Dach", "un chien dans la neige", "犬の写真",
    "собака на снегу", "a plate of food, seen from above", "people walking along a street",
]  # fmt: skip


def gemma(folder: Path) -> None:
    """A tokenizer as SigLIP 2 has it: case counts, the end is marked, padding is on the right."""
    from tokenizers import Tokenizer, models, normalizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    octets = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=[*special, *octets])
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    names = {f"{word.strip('<>')}_token": word for word in special}
    about = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": False,
        "add_eos_token": True,
        "padding_side": "right",
        "model_max_length": 10**30,
        **names,
    }
    _write(folder, backend, about)


def xlm_roberta(folder: Path) -> None:
    """A tokenizer as XLM-RoBERTa has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=[*special, "<mask>"], unk_token="<unk>"
    )
    backend.train_from_iterator(SENTENCES * 5, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    about = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "model_max_length": 512,
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    _write(folder, backend, about)


def xlm_roberta_config() -> Any:
    """The configuration of XLM-RoBERTa with small sizes."""
    from clipfleet.workers.embedding.libraries import transformers

    return transformers.XLMRobertaConfig(
        vocab_size=SIZE,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def _write(folder: Path, backend: Any, about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
