"""Creates the sample images of clipfleet from two Debian packages.

    apt-get download openclipart-png fonts-noto-color-emoji
    for package in *.deb; do dpkg -x "$package" unpacked; done
    python examples/make_samples.py unpacked/usr/share clipfleet/samples

samples.csv, in the folder of this file, names the origin of each image: a drawing of openclipart-
png, or one character of the emoji font. Each image is a white square of SIDE pixels with COLOURS
colours. clipfleet/samples/LICENSE.md names the authors. The same version of Pillow makes the same
bytes.
"""

import csv
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE = 128
COLOURS = 64
DRAWINGS = "openclipart/png"
FONT = "fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one size whose bitmaps the font holds
LIST = Path(__file__).with_name("samples.csv")


def main(shared: Path, target: Path) -> None:
    for old in target.glob("*/*.png"):
        old.unlink()
    with LIST.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        file = target / f"{row['image']}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        _small(_picture(row["source"], shared)).save(file, optimize=True)
    print(f"{len(rows)} images in {target}")


def _picture(source: str, shared: Path) -> Image.Image:
    if source.endswith(".png"):
        return Image.open(shared / DRAWINGS / source).convert("RGBA")
    picture = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    font = ImageFont.truetype(shared / FONT, FONT_SIZE)
    ImageDraw.Draw(picture).text((10, 10), source, font=font, embedded_color=True)
    return picture


def _small(picture: Image.Image) -> Image.Image:
    """Put the picture in the middle of a white square, so that no model distorts it."""
    picture = picture.crop(picture.getchannel("A").getbbox())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square.convert("RGB").quantize(COLOURS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
