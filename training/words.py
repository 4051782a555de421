"""English words and sentences from WordNet (Fellbaum 1998), as Debian packages it."""

import re
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
FUNCTION_WORDS = frozenset(("and", "the", "with", "for", "from", "into", "over", "under"))


def _folder(work: Path) -> Path:
    """Say where WordNet's files lie."""
    return work / "packages" / "wordnet" / "usr" / "share" / "wordnet"


def lemmas(work: Path) -> frozenset[str]:
    """Return every single-word lemma, their regular plurals, and a few function words."""
    words = set(FUNCTION_WORDS)
    for part in PARTS:
        for line in _lines(work, f"index.{part}"):
            words.add(line.partition(" ")[0])
    plurals = {f"{word}s" for word in words if len(word) > 3}
    return frozenset(words | plurals)


def noun_phrases(work: Path) -> list[str]:
    """Return all noun lemmas as written, spaces for underscores."""
    return [_spaced(line.partition(" ")[0]) for line in _lines(work, "index.noun")]


def depictable(work: Path) -> list[str]:
    """Return first words of concrete noun synsets (animals, artefacts, food, plants, people...).

    WordNet's lexicographer files number the topics of nouns; these are the ones one can draw.
    """
    files = {"05", "06", "08", "13", "15", "17", "18", "20", "27"}
    lines = [line.split() for line in _lines(work, "data.noun")]
    return [_spaced(line[4]) for line in lines if line[1] in files]


def glosses(work: Path) -> list[str]:
    """Return definitions, and their examples as separate texts."""
    texts = []
    for part in PARTS:
        for line in _lines(work, f"data.{part}"):
            gloss = line.partition("|")[2].strip()
            texts += re.findall(r'"([^"]{12,120})"', gloss)
            texts.append(gloss.partition(";")[0].strip()[:140])
    return [text for text in texts if text]


def _lines(work: Path, name: str) -> list[str]:
    """Read a WordNet file without its licence header, whose lines begin with two spaces."""
    text = (_folder(work) / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("  ")]


def _spaced(lemma: str) -> str:
    """Turn a lemma as stored into words."""
    return lemma.replace("_", " ").partition("(")[0]
