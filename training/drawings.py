"""Records of drawings: emoji of several vendors, and Debian's open clip art."""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from training.fetch import EMOJI_VENDORS
from training.records import HELD_VENDOR, Kind, Record, is_held
from training.words import lemmas

SKIPPED_CLIPART = {"computer", "shapes", "special", "logos", "buttons", "unsorted"}
"""Folders whose file names rarely say what is drawn (stars by number, icon themes, gradients)."""

KEYWORDS = 6
"""Keywords kept of an emoji, beside its name."""

MAX_PIXELS = 4_000_000
"""Size up to which clip art is used; a few files have over a hundred megapixels."""

EXTRA_GROUPS = {"extras-openmoji", "extras-unicode"}
"""OpenMoji's own additions: no other vendor draws them."""


def emoji(work: Path, vendor: str) -> list[Record]:
    """List one vendor's emoji without skin tones; a held-out vendor is held out whole."""
    source = f"emoji-{vendor}"
    root = work / "packages" / source / "package"
    names = emoji_texts(work)
    entries = json.loads((root / "emoji.json").read_text(encoding="utf-8"))
    records = []
    for entry in sorted(entries, key=lambda entry: str(entry["unified"])):
        path = root / "img" / vendor / "64" / entry["image"]
        if path.exists():
            texts = names.get(_plain(entry["unified"])) or (_spoken(entry),)
            records.append(_drawing(source, entry["image"], path, texts, source == HELD_VENDOR))
    return records


def _spoken(entry: dict[str, Any]) -> str:
    """Name an emoji that the keyword data does not know."""
    return str(entry["name"] or entry["short_name"]).lower().replace("_", " ")


def emoji_texts(work: Path) -> dict[str, tuple[str, ...]]:
    """Map an emoji's code points to its name and keywords (CLDR, by way of emojibase)."""
    path = work / "packages" / "emojibase" / "package" / "en" / "data.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {_plain(entry["hexcode"]): _texts(entry) for entry in entries}


def _texts(entry: dict[str, Any]) -> tuple[str, ...]:
    """Give the name, then the name with a few keywords as one phrase."""
    name = str(entry["label"])
    words = [word for word in entry.get("tags", []) if word not in name][:KEYWORDS]
    return (name, f"{name}, {', '.join(words)}") if words else (name,)


def _plain(code_points: str) -> str:
    """Leave the variation selector out, which only some vendors write."""
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


def openmoji(work: Path) -> list[Record]:
    """List OpenMoji without skin tones, a tenth of it held out."""
    root = work / "packages" / "openmoji" / "package"
    names = emoji_texts(work)
    entries = json.loads((root / "data" / "openmoji.json").read_text(encoding="utf-8"))
    records = []
    for entry in sorted(entries, key=lambda entry: str(entry["hexcode"])):
        path = root / "color" / "svg" / f"{entry['hexcode']}.svg"
        if not entry["skintone"] and entry["group"] not in EXTRA_GROUPS and path.exists():
            texts = names.get(_plain(entry["hexcode"])) or (str(entry["annotation"]),)
            held = is_held("openmoji", path.name, 0.1)
            records.append(_drawing("openmoji", path.name, path, texts, held))
    return records


def clipart(work: Path) -> list[Record]:
    """List the clip art whose file name holds at least one English word."""
    root = work / "packages" / "openclipart" / "usr" / "share" / "openclipart" / "png"
    known = lemmas(work)
    records = []
    for path in sorted(root.rglob("*.png")):
        key = str(path.relative_to(root))
        texts = _clipart_texts(path.relative_to(root), known)
        if texts and key.partition("/")[0] not in SKIPPED_CLIPART and _is_usable(path):
            held = is_held("openclipart", key, 0.1)
            records.append(_drawing("openclipart", key, path, texts, held))
    return records


def _is_usable(path: Path) -> bool:
    """Refuse links, and pictures so large that decoding them would take seconds."""
    if path.is_symlink():
        return False
    try:
        with Image.open(path) as image:
            return image.width * image.height <= MAX_PIXELS
    except Image.DecompressionBombError:
        return False


def _clipart_texts(path: Path, known: frozenset[str]) -> tuple[str, ...]:
    """Read a name out of a file name, dropping numbers, authors and cut-off words."""
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if _is_word(word, known)]
    if not words:
        return ()
    name = " ".join(words)
    place = path.parent.name.replace("_", " ")
    return (name, f"{name}, {place}")


def _is_word(word: str, known: frozenset[str]) -> bool:
    """Accept an English word of three letters or more."""
    return len(word) > 2 and word in known


def _drawing(source: str, key: str, path: Path, texts: tuple[str, ...], held: bool) -> Record:
    """Build the record of a drawing."""
    return Record(source, key, path, texts, Kind.DRAWING, held)


def vendors(without: frozenset[str]) -> list[str]:
    """List the emoji vendors in use."""
    return [vendor for vendor in EMOJI_VENDORS if f"emoji-{vendor}" not in without]
