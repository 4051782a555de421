"""The texts that teach the text tower: captions, names in prompts, words, definitions."""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from training import words
from training.catalogue import training_only
from training.photos import imagenet_names
from training.records import Kind, Record

PHOTO_PROMPTS = ("a photo of a {}", "{}", "a photo of the {}", "a picture of a {}", "a {}")
DRAWING_PROMPTS = ("{}", "an emoji of {}", "a drawing of a {}", "clip art of a {}", "{} icon")
CUTS = re.compile(r" (?=(?:in|on|with|at|near|while|by|through|and|wearing|next|over) )")

SPLICED = 15_000
NOUNS = 22_000
PHRASES = 6_000
GLOSSES = 22_000


def prompts(kind: Kind) -> tuple[str, ...]:
    """Return the templates that fit photos or drawings."""
    return PHOTO_PROMPTS if kind is Kind.PHOTO else DRAWING_PROMPTS


def corpus(pictures: dict[str, list[Record]], data: Path, work: Path, seed: int) -> list[str]:
    """Collect every text once, in a fixed order; held-out pictures add none of their captions."""
    chance = random.Random(seed)
    captions = _captions(pictures)
    texts = [*captions, *spliced(captions, SPLICED, chance)]
    texts += _prompted(_names(pictures, data))
    texts += _nouns(work, chance)
    texts += chance.sample(words.glosses(work), GLOSSES)
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _captions(pictures: dict[str, list[Record]]) -> list[str]:
    """List the captions of the training photos."""
    chosen = training_only(pictures.get("flickr8k", []))
    return [text for record in chosen for text in record.texts]


def _names(pictures: dict[str, list[Record]], data: Path) -> list[tuple[str, Kind]]:
    """List names and keyword phrases of the labelled pictures, with the kind they go with."""
    pairs = dict.fromkeys((name, Kind.PHOTO) for name in imagenet_names(data))
    for source, records in pictures.items():
        if source != "flickr8k":
            for record in training_only(records):
                pairs.update(dict.fromkeys((text, record.kind) for text in record.texts))
    return list(pairs)


def _prompted(names: Iterable[tuple[str, Kind]]) -> list[str]:
    """Put a name into each prompt of its kind; keyword phrases stay as they are."""
    prompted = []
    for name, kind in names:
        templates = ("{}",) if ", " in name else prompts(kind)
        prompted += [template.format(name) for template in templates]
    return prompted


def _nouns(work: Path, chance: random.Random) -> list[str]:
    """Draw nouns that one can picture, half of them in prompts, and free combinations."""
    nouns = list(dict.fromkeys(words.depictable(work)))
    templates = ("{}", "{}", "{}", *PHOTO_PROMPTS[:1], *DRAWING_PROMPTS[2:4])
    single = [chance.choice(templates).format(noun) for noun in chance.sample(nouns, NOUNS)]
    joints = ("{} and {}", "a {} on a {}", "a {} with a {}", "{} {}")
    pairs = [chance.choice(joints).format(*chance.sample(nouns, 2)) for _ in range(PHRASES)]
    return single + pairs


def spliced(captions: Sequence[str], count: int, chance: random.Random) -> list[str]:
    """Make new captions out of the beginning of one and the end of another."""
    pieces = [CUTS.split(caption) for caption in captions]
    pieces = [parts for parts in pieces if len(parts) > 1]
    if not pieces:
        return []
    return [_splice(chance.choice(pieces), chance.choice(pieces), chance) for _ in range(count)]


def _splice(first: list[str], second: list[str], chance: random.Random) -> str:
    """Join some leading parts of one caption to one or more closing parts of another."""
    kept = chance.randint(1, len(first) - 1)
    begun = chance.randint(1, len(second) - 1)
    return " ".join([*first[:kept], *second[begun:]])
