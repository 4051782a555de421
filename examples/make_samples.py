"""Make the sample images that travel with clipfleet, from Debian's package openclipart-png.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb unpacked
    python examples/make_samples.py unpacked/usr/share/openclipart/png clipfleet/samples

One drawing per word of WORDS: the file named most simply after it, at most SIDE pixels wide and
high, on white, in 64 colours. The drawings are in the public domain (see samples/LICENSE.md).
"""

import re
import sys
from pathlib import Path

from PIL import Image

SIDE = 128
COLOURS = 64
WORDS = {
    "animals": "bat bison dog dragon horse penguin lizard snake spider butterfly bee ant "
    "ladybug eagle duck owl rooster parrot flamingo fish shark dolphin whale cow pig sheep "
    "elephant lion tiger bear monkey rabbit frog turtle snail crab dinosaur camel "
    "kangaroo wolf fox squirrel goose swan crawfish octopus",
    "food": "apple banana cherry lemon grapes orange pear pineapple strawberry watermelon peach "
    "tomato carrot potato onion pepper mushroom bread donut pie pizza hamburger "
    "hotdog sandwich cheese bacon sushi coffee tea beer wine milk candy lollipop chocolate",
    "transportation": "car truck bus train bicycle motorcycle tractor airplane helicopter "
    "rocket sailboat ship boat canoe balloon ambulance taxi scooter tank",
    "tools": "hammer saw screwdriver wrench pliers drill axe shovel scissors knife ladder "
    "paintbrush anvil broom lock magnet",
    "buildings": "house church castle lighthouse windmill bridge tent igloo temple "
    "chair lamp sofa bed",
    "people": "astronaut chef pirate king queen soldier cowboy hat shoe shirt glove eye hand heart",
    "plants": "rose tulip sunflower oak leaf tree daisy",
    "recreation": "guitar piano drum trumpet violin saxophone football basketball tennis "
    "dice chess kite teddy snowman pumpkin candle gift flag",
    "office": "telephone pencil pen book envelope clock calculator computer keyboard printer "
    "camera umbrella lightbulb battery",
    "signs_and_symbols": "sun moon cloud rain snow lightning rainbow star",
}


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    drawings = sorted(source.rglob("*.png"))
    made = 0
    for folder, words in WORDS.items():
        for word in words.split():
            drawing = _named_after(word, drawings)
            if drawing:
                (target / folder).mkdir(exist_ok=True)
                _small(drawing).save(target / folder / f"{word}.png", optimize=True)
                made += 1
    print(f"{made} images in {target}")


def _named_after(word: str, drawings: list[Path]) -> Path | None:
    """The one whose name starts with the word and has the least besides; black and white last."""
    pattern = re.compile(rf"{word}s?(_|\d|$)")
    found = [path for path in drawings if pattern.match(path.stem.lower())]
    return min(found, key=lambda path: ("_bw" in path.stem, len(path.stem)), default=None)


def _small(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return white.convert("RGB").quantize(COLOURS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
