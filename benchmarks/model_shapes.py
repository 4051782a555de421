"""Measures clipfleet's embedder on models of published shapes, with random weights.

    python benchmarks/model_shapes.py [SHAPE...] [--rounds 5] [--folder DIR] [--prepare]

Random weights take the same time as trained ones. Nothing but the model is measured: pixels of the
right size go in, and embeddings come out. A text has eight words, one token each, and is embedded
alone, as the text of one search is. Processor time hardly depends on what else the machine does: a
thousand core-ms are a second of one core. The models of open_clip need the extra `open-clip`.
Without a GPU the model runs on OpenVINO; its conversion is not measured. With `--folder` the models
stay there for the next run, and `--prepare` does no more than to write and convert them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.libraries import torch, transformers
from clipfleet.workers.embedding.load import load_embedder

WORDS = ["a", "photo", "of", "dog", "in", "the", "snow", "at", "night", "two", "red", "cats"]
TEXT = "a photo of a dog in the snow"
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        top = (args.folder or Path(scratch)).absolute()
        for name in args.shapes or SHAPES:
            folder = top / name.replace("/", "-")
            if not folder.exists():
                folder.mkdir(parents=True)
                SHAPES[name](folder)
            embedder = load_embedder(Settings(model=str(folder), model_cache=str(top / "cache")))
            embedder.embed_texts([TEXT])
            if not args.prepare:
                print(f"{name}: {_measured(embedder, args.rounds)}", flush=True)


def _measured(embedder: Embedder, rounds: int) -> str:
    spec = embedder.preprocess
    noise = np.random.default_rng(0)
    shape = (embedder.batch, spec.height, spec.width, 3)
    pixels = noise.integers(0, 256, shape, np.uint8)
    images = [_timed(lambda: embedder.embed_images(pixels), embedder.batch) for _ in range(rounds)]
    texts = [_timed(lambda: embedder.embed_texts([TEXT]), 1) for _ in range(5 * rounds)]
    return (
        f"{embedder.dim} numbers, {spec.width} pixels; "
        f"images: {_spread([1_000 / wall for wall, _ in images])} a second, "
        f"{_spread([cpu for _, cpu in images])} core-ms each; "
        f"texts: {_spread([wall for wall, _ in texts])} ms, "
        f"{_spread([cpu for _, cpu in texts])} core-ms; "
        f"{type(embedder).__name__} on {embedder.device}"
    )


def _timed(call: Callable[[], object], items: int) -> tuple[float, float]:
    """Time and processor time for one item, milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall) / items, 1e3 * (time.process_time() - cpu) / items


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _clip(vision: dict[str, int], text: dict[str, int], dim: int) -> Callable[[Path], None]:
    """A CLIP of transformers; texts are padded to the longest."""

    def write(folder: Path) -> None:
        config = transformers.CLIPConfig(
            projection_dim=dim,
            vision_config={"image_size": 224, **vision},
            text_config={**text, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        size = {"height": 224, "width": 224}
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 224}, crop_size=size
        ).save_pretrained(folder)
        _words(folder, ("<pad>", "<s>", "</s>"), "<s> $A </s>", 77)

    return write


def _siglip(words: int) -> Callable[[Path], None]:
    """A SigLIP of transformers; texts are padded to 64 tokens."""

    def write(folder: Path) -> None:
        config = transformers.SiglipConfig(
            vision_config={"image_size": 224, "patch_size": 16},
            text_config={
                "vocab_size": words,
                "max_position_embeddings": 64,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        )
        transformers.SiglipModel(config).save_pretrained(folder)
        size = {"height": 224, "width": 224}
        transformers.SiglipImageProcessorPil(size=size).save_pretrained(folder)
        _words(folder, ("<pad>", "<s>", "</s>"), "$A </s>", 64)

    return write


def _open_clip(name: str) -> Callable[[Path], None]:
    """A model of open_clip; texts are padded to 77 tokens."""

    def write(folder: Path) -> None:
        import open_clip
        from safetensors.torch import save_file

        config: dict[str, Any] = open_clip.get_model_config(name)
        text = dict(config["text_cfg"])
        if "hf_model_name" in text:
            tower = folder / text["hf_model_name"]
            # The published sizes of xlm-roberta-base; the class has those of BERT as its defaults.
            transformers.XLMRobertaConfig(
                vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1
            ).save_pretrained(tower)
            text |= {"hf_model_name": str(tower), "hf_model_pretrained": False}
            _words(folder, ("<s>", "<pad>", "</s>"), "<s> $A </s>", 512)
        kind = open_clip.model.CustomTextCLIP if "hf_model_name" in text else open_clip.model.CLIP
        weights = kind(**{**config, "text_cfg": text}).state_dict()
        save_file(
            {key: part.clone().contiguous() for key, part in weights.items()},
            folder / "open_clip_model.safetensors",
        )
        pixels = {"mean": OPENAI[0], "std": OPENAI[1]}
        about = {"model_cfg": config, "preprocess_cfg": pixels}
        (folder / "open_clip_config.json").write_text(json.dumps(about))

    return write


def _words(folder: Path, special: tuple[str, str, str], single: str, limit: int) -> None:
    """A tokenizer with one token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*special, "<unk>", *WORDS]
    numbers = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(word, numbers[word]) for word in special]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=limit,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)


BASE = {"hidden_size": 768, "intermediate_size": 3_072, "num_hidden_layers": 12}
BASE |= {"num_attention_heads": 12}
LARGE = {"hidden_size": 1_024, "intermediate_size": 4_096, "num_hidden_layers": 24}
LARGE |= {"num_attention_heads": 16}
SMALL_TEXT = {"hidden_size": 512, "intermediate_size": 2_048, "num_hidden_layers": 12}
SMALL_TEXT |= {"num_attention_heads": 8}
SHAPES: dict[str, Callable[[Path], None]] = {
    "ViT-B/32": _clip({**BASE, "patch_size": 32}, SMALL_TEXT, 512),
    "ViT-B/16": _clip({**BASE, "patch_size": 16}, SMALL_TEXT, 512),
    "ViT-L/14": _clip({**LARGE, "patch_size": 14}, BASE, 768),
    "SigLIP-B/16": _siglip(32_000),
    "SigLIP2-B/16": _siglip(256_000),
    "open_clip-ViT-B/32": _open_clip("ViT-B-32"),
    "XLM-R-B-ViT-B/32": _open_clip("xlm-roberta-base-ViT-B-32"),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    main()
