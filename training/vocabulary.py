"""A small WordPiece vocabulary: the teacher's pieces that the training texts use most."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer

from training.wheels import minilm

MAX_TOKENS = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Vocabulary:
    """Kept pieces in their new order, and the place of each in the teacher's vocabulary."""

    pieces: tuple[str, ...]
    teacher_ids: tuple[int, ...]


def chosen(texts: Sequence[str], size: int) -> Vocabulary:
    """Keep special and one-letter ASCII pieces, then the most frequent of ``texts``."""
    tokenizer: Any = AutoTokenizer.from_pretrained(minilm())
    known: dict[str, int] = tokenizer.get_vocab()
    counts: Counter[int] = Counter()
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        counts.update(ids)
    names = {number: piece for piece, number in known.items()}
    ranked = sorted(counts, key=lambda number: (-counts[number], number))
    ordered = [*SPECIAL, *sorted(filter(_is_letter, known)), *(names[number] for number in ranked)]
    pieces = tuple(dict.fromkeys(ordered))[:size]
    return Vocabulary(pieces, tuple(known[piece] for piece in pieces))


def _is_letter(piece: str) -> bool:
    """Recognise a one-character ASCII piece, as a word or inside one."""
    bare = piece.removeprefix("##")
    return len(bare) == 1 and bare.isascii()


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Write a BERT tokenizer (lower case, accents stripped) of these pieces into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    tokenizer = BertTokenizer(vocab=places, do_lower_case=True, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)


def write(vocabulary: Vocabulary, path: Path) -> None:
    """Keep a vocabulary as JSON."""
    both = {"pieces": vocabulary.pieces, "teacher_ids": vocabulary.teacher_ids}
    path.write_text(json.dumps(both), encoding="utf-8")


def read(path: Path) -> Vocabulary:
    """Read a vocabulary back."""
    both = json.loads(path.read_text(encoding="utf-8"))
    return Vocabulary(tuple(both["pieces"]), tuple(both["teacher_ids"]))
