"""Opens TIFF files, of which there are more kinds than Pillow reads right.

Pillow opens what has 8 bits a sample or fewer. Of all other kinds, libtiff (through Pillow) unpacks
the strips or tiles to bytes, and the samples are made of these here. What has no agreed black and
white is refused by its name. Tags that no picture needs (EXIF, XMP, profiles) are never read, so no
damage in them matters.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from clipfleet.common.errors import BadImage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 317, 322, 323, 324, 325
FILL_ORDER, ORIENTATION, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 266, 274, 332, 338, 339

# What is needed to decode; 292 and 293: fax options, 320: palette, 347 and 512 to 521: tables of
# JPEG, 529 to 532: YCbCr.
NEEDED = frozenset(
    {WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP}
    | {STRIP_COUNTS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS}
    | {FILL_ORDER, ORIENTATION, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT}
    | {292, 293, 320, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
)
# Types of values: the codes of whole numbers, and the bytes of all.
CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
SIZES = {kind: struct.calcsize(f"={code}") for kind, code in CODES.items()}
SIZES |= {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8}
SHORT, LONG = 3, 4
WIDE = (16, 17, 18)  # types of 64 bits, of BigTIFF
MAX_ENTRIES = 4_096  # of a directory

# Compressions that give the bytes of a row as they are: none, LZW, deflate, PackBits, LZMA, zstd.
BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)
# Those that libtiff reads: these, CCITT, and JPEG.
COMPRESSIONS = (*BYTEWISE, 2, 3, 4, 6, 7)
NAMES = {34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 34676: "SGILog"}
COLOURS = {0: 1, 1: 1, 2: 3, 5: 4, 8: 3}  # samples of a pixel, by photometric interpretation
CMYK, LAB = 5, 8
KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
KINDS |= {9: "Lab", 10: "Lab", 32803: "camera sensor", 32844: "LogL", 32845: "LogLuv"}
KINDS |= {34892: "camera sensor"}
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
NUMBERS = {UNSIGNED: "whole", SIGNED: "signed", FLOAT: "floating-point", UNDEFINED: "whole"}
PREMULTIPLIED, STRAIGHT, COREL = 1, 2, 999
BYTES_PER_PIXEL = 8  # of samples at most, if the image has as many pixels as it may
BAND = 4_000_000  # samples that are converted at once

Samples = NDArray[Any]  # [height, width, samples of a pixel]
Bytes = NDArray[np.uint8]

# Pillow reads uncompressed planes of 16 bits, and subsampled colours, wrongly without libtiff.
TiffImagePlugin.READ_LIBTIFF = True


@dataclass(frozen=True)
class Entry:
    """An entry of a directory.

    Attributes:
        kind: the type of its values.
        count: how many values it has.
        value: the values, in the byte order of the file.
    """

    kind: int
    count: int
    value: bytes


@dataclass(frozen=True)
class Tiff:
    """The first image of a TIFF file.

    Attributes:
        data: the bytes of the file.
        order: the byte order, `<` or `>`.
        entries: the entries of its directory that are needed, by tag.
    """

    data: bytes
    order: str
    entries: Mapping[int, Entry]

    @classmethod
    def read(cls, data: bytes) -> "Tiff":
        """Read the first directory. BadImage when it is damaged."""
        order = ">" if data[:2] == b"MM" else "<"
        big = b"+" in data[2:4]
        number, wide, at = ("Q", "Q", 8) if big else ("H", "I", 4)
        head = struct.Struct(f"{order}HH{wide}")
        room = struct.calcsize(wide)
        entries: dict[int, Entry] = {}
        try:
            (start,) = struct.unpack_from(order + wide, data, at)
            (length,) = struct.unpack_from(order + number, data, start)
            start += struct.calcsize(number)
            for _ in range(min(length, MAX_ENTRIES)):
                tag, kind, count = head.unpack_from(data, start)
                place, start = start + head.size, start + head.size + room
                if tag not in NEEDED or tag in entries or kind not in SIZES:
                    continue
                size = count * SIZES[kind]
                if size > room:
                    (place,) = struct.unpack_from(order + wide, data, place)
                value = data[place : place + size]
                if len(value) < size:
                    raise BadImage(f"the TIFF is damaged or cut short (its tag {tag})")
                entries[tag] = Entry(kind, count, value)
        except (struct.error, OverflowError) as error:
            raise BadImage("the TIFF is damaged or cut short (its directory)") from error
        return cls(data, order, entries)

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of a tag; the default where it has none."""
        entry = self.entries.get(tag)
        if entry is None or not entry.count or entry.kind not in CODES:
            return default
        return struct.unpack(f"{self.order}{entry.count}{CODES[entry.kind]}", entry.value)

    def value(self, tag: int, default: int) -> int:
        """The first number of a tag, or the default."""
        return self.values(tag, (default,))[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.value(WIDTH, 0), self.value(LENGTH, 0)

    @property
    def orientation(self) -> int:
        """The orientation, as in EXIF."""
        return self.value(ORIENTATION, 1)

    @cached_property
    def samples(self) -> int:
        """Samples of a pixel."""
        few = 3 if self.value(COMPRESSION, 1) == 6 else 1  # old JPEG
        return self.value(SAMPLES, few)

    def image(self, max_bytes: int) -> Image.Image:
        """The image in a mode of 8 bits a sample; not turned.

        Args:
            max_bytes: bytes of its samples at most.

        Raises:
            BadImage: it is of a kind that is not read.
        """
        bits, photometric = self.values(BITS, (1,)), self.value(PHOTOMETRIC, 0)
        numbers = self.values(SAMPLE_FORMAT, (UNSIGNED,))
        plain = max(bits) <= 8 and set(numbers) <= {UNSIGNED, UNDEFINED}
        compression = self.value(COMPRESSION, 1)
        if compression not in COMPRESSIONS:
            name = NAMES.get(compression, f"number {compression}")
            raise BadImage(f"{self._kind()}: it is not read with this compression ({name})")
        planes = self.value(PLANAR, 1) == 2 and photometric in COLOURS and self._bytewise()
        if plain and not (planes and self.samples > 1) and photometric != 4:
            try:
                return self._by_pillow()
            except (SyntaxError, KeyError, NotImplementedError) as error:
                if photometric not in COLOURS or not self._bytewise():
                    raise BadImage(f"{self._kind()}: it is not read ({error})") from error
        return self._by_samples(bits, numbers, photometric, max_bytes)

    def _by_pillow(self) -> Image.Image:
        kept = {tag: entry for tag, entry in self.entries.items() if tag != ORIENTATION}
        data = self._with({tag: self._narrow(tag, entry) for tag, entry in kept.items()})
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
        image.load()
        if image.mode == "RGBA" and EXTRA_SAMPLES not in self.entries and _is_empty(image):
            return image.convert("RGB")
        return image

    def _by_samples(
        self, bits: Sequence[int], numbers: Sequence[int], photometric: int, max_bytes: int
    ) -> Image.Image:
        depth, number = bits[0], numbers[0] if numbers[0] != UNDEFINED else UNSIGNED
        kind = self._kind()
        is_other_ink = photometric == CMYK and self.value(INK_SET, 1) != 1
        if photometric not in COLOURS or is_other_ink or (photometric == LAB and depth != 8):
            raise BadImage(f"{kind}: such colours are not read")
        if len({*bits}) > 1 or len({*numbers}) > 1:
            raise BadImage(f"{kind}: samples of different kinds in a pixel are not read")
        if number not in (UNSIGNED, FLOAT) or (number == UNSIGNED and depth > 16):
            raise BadImage(
                f"{kind}: such numbers have no agreed black and white; save it with 8 or 16 bits "
                "a sample, without a sign"
            )
        if number == FLOAT and depth not in (16, 32, 64):
            raise BadImage(f"{kind}: floating-point numbers have 16, 32 or 64 bits")
        if not self._bytewise():
            raise BadImage(f"{kind}: it is not read with compression {self.value(COMPRESSION, 1)}")
        if not COLOURS[photometric] <= self.samples <= 16:
            raise BadImage(f"{kind}: it has {self.samples} samples a pixel")
        width, height = self.size
        if width * height * self.samples * depth // 8 > max_bytes:
            raise BadImage(f"{kind}: its samples have more than {max_bytes} bytes")
        stored = self._stored(depth, number)
        colours = COLOURS[photometric]
        seen = _eight_bits(stored[..., :colours], depth, number)
        if photometric == 0:
            seen = 255 - seen
        if photometric == LAB:
            raw = np.ascontiguousarray(seen).tobytes()
            seen = np.asarray(Image.frombytes("LAB", self.size, raw, "raw", "LAB").convert("RGB"))
        extra = self.values(EXTRA_SAMPLES)
        kinds = extra if EXTRA_SAMPLES in self.entries else (STRAIGHT,)
        alphas = [n for n, what in enumerate(kinds) if what in (PREMULTIPLIED, STRAIGHT, COREL)]
        if not alphas or colours + alphas[0] >= self.samples:
            return _rgb(seen)
        place = colours + alphas[0]
        alpha = _eight_bits(stored[..., place : place + 1], depth, number, scale=False)
        if not extra and not alpha.any():
            return _rgb(seen)
        if kinds[alphas[0]] == PREMULTIPLIED and colours == 4:
            ink = seen.astype(np.uint16) * 255 // np.maximum(alpha, 1)
            seen = np.minimum(ink, 255).astype(np.uint8)
        if kinds[alphas[0]] != PREMULTIPLIED or colours == 4:
            image = _rgb(seen)
            image.putalpha(Image.fromarray(alpha[..., 0]))
            return image
        white = seen.astype(np.uint16) + (255 - alpha)
        return _rgb(np.minimum(white, 255).astype(np.uint8))

    def _bytewise(self) -> bool:
        return self.value(COMPRESSION, 1) in BYTEWISE

    def _kind(self) -> str:
        """The kind of the file in words, for errors."""
        photometric = self.value(PHOTOMETRIC, 0)
        colours = KINDS.get(photometric, f"photometric {photometric}")
        depth = " ".join(map(str, dict.fromkeys(self.values(BITS, (1,)))))
        number = self.value(SAMPLE_FORMAT, UNSIGNED)
        numbers = NUMBERS.get(number, "complex" if number in (5, 6) else f"format {number}")
        return f"the image is a TIFF of {depth}-bit {numbers} numbers, {colours}"

    def _stored(self, depth: int, number: int) -> Samples:
        """The samples as they are stored."""
        width, height = self.size
        apart = self.value(PLANAR, 1) == 2 and self.samples > 1
        together = 1 if apart else self.samples
        tiled = TILE_OFFSETS in self.entries
        column = self.value(TILE_WIDTH, width) if tiled else width
        rows = self.value(TILE_LENGTH, height) if tiled else self.value(ROWS_PER_STRIP, height)
        if column <= 0 or rows <= 0 or column > 65_536 + width:
            raise BadImage("the TIFF is damaged (the size of its parts)")
        across = -(-width // column)
        parts = across * -(-height // rows)  # of a plane
        bytes_ = -(-column * together * depth // 8)  # of a row of a part
        entries = {
            WIDTH: self._entry(LONG, across * bytes_),
            LENGTH: self._entry(LONG, height),
            COMPRESSION: self._entry(SHORT, self.value(COMPRESSION, 1)),
            BITS: self._entry(SHORT, 8),
            PHOTOMETRIC: self._entry(SHORT, 1),
            FILL_ORDER: self._entry(SHORT, self.value(FILL_ORDER, 1)),
            SAMPLES: self._entry(SHORT, 1),
        }
        if tiled:
            entries[TILE_WIDTH] = self._entry(LONG, bytes_)
            entries[TILE_LENGTH] = self._entry(LONG, rows)
        else:
            entries[ROWS_PER_STRIP] = self._entry(LONG, rows)
        offsets = self.values(TILE_OFFSETS if tiled else STRIP_OFFSETS)
        counts = self.values(TILE_COUNTS if tiled else STRIP_COUNTS)
        if len(counts) != len(offsets):
            raise BadImage("the TIFF is damaged (the list of its parts)")
        planes = []
        for first in range(0, parts * (self.samples if apart else 1), parts):
            these = slice(first, first + parts)
            entries[TILE_OFFSETS if tiled else STRIP_OFFSETS] = self._entry(LONG, *offsets[these])
            entries[TILE_COUNTS if tiled else STRIP_COUNTS] = self._entry(LONG, *counts[these])
            if len(offsets[these]) != parts:
                raise BadImage("the TIFF is damaged or cut short (the list of its parts)")
            image = TiffImagePlugin.TiffImageFile(io.BytesIO(self._with(entries)))
            image.load()
            plane = np.asarray(image).reshape(height, across, bytes_)
            planes.append(self._numbers(plane, column, together, depth, number)[:, :width])
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _numbers(
        self, stored: Bytes, column: int, together: int, depth: int, number: int
    ) -> Samples:
        """The samples of bytes [height, parts across, bytes of a row of a part]."""
        height, across, _ = stored.shape
        shape = (height, across, column, together)
        predictor = self.value(PREDICTOR, 1)
        if depth not in (8, 16, 32, 64):
            if predictor != 1:
                raise BadImage(f"{self._kind()}: it is not read with predictor {predictor}")
            return _unpacked(stored, column * together, depth).reshape(height, -1, together)
        if predictor == 3 and number == FLOAT:
            size = depth // 8
            summed = np.cumsum(stored.reshape(height, across, -1, together), 2, np.uint8)
            planes = summed.reshape(height, across, size, column * together)
            together_again = np.ascontiguousarray(np.moveaxis(planes, 2, -1))
            return together_again.view(f">f{size}").reshape(height, -1, together)
        if predictor not in (1, 2):
            raise BadImage(f"{self._kind()}: it is not read with predictor {predictor}")
        whole = np.ascontiguousarray(stored).view(f"{self.order}u{depth // 8}").reshape(shape)
        if predictor == 2:
            whole = np.cumsum(whole, 2, whole.dtype.newbyteorder("="))
        if number == FLOAT:
            whole = whole.view(whole.dtype.str.replace("u", "f"))
        return whole.reshape(height, -1, together)

    def _entry(self, kind: int, *values: int) -> Entry:
        try:
            value = struct.pack(f"{self.order}{len(values)}{CODES[kind]}", *values)
        except struct.error as error:
            raise BadImage("the TIFF is damaged (a number is too large)") from error
        return Entry(kind, len(values), value)

    def _narrow(self, tag: int, entry: Entry) -> Entry:
        """An entry without 64-bit numbers, which TIFF does not have, other than BigTIFF."""
        return self._entry(LONG, *self.values(tag)) if entry.kind in WIDE else entry

    def _with(self, entries: Mapping[int, Entry]) -> bytes:
        """The file with another directory, as a TIFF: Pillow reads no big-endian BigTIFF."""
        start = len(self.data) + len(self.data) % 2
        directory = bytearray(struct.pack(self.order + "H", len(entries)))
        after, end = bytearray(), start + 2 + 12 * len(entries) + 4
        for tag, entry in sorted(entries.items()):
            directory += struct.pack(self.order + "HHI", tag, entry.kind, entry.count)
            if len(entry.value) <= 4:
                directory += entry.value.ljust(4, b"\0")
                continue
            directory += struct.pack(self.order + "I", end + len(after))
            after += entry.value + bytes(len(entry.value) % 2)
        mark, no_other_image = b"MM" if self.order == ">" else b"II", bytes(4)
        head = mark + struct.pack(self.order + "HI", 42, start)
        body, gap = memoryview(self.data)[8:], bytes(start - len(self.data))
        return b"".join((head, body, gap, directory, no_other_image, after))


def _is_empty(image: Image.Image) -> bool:
    """Whether the alpha channel is 0 everywhere."""
    return image.getchannel("A").getextrema() == (0, 0)


def _unpacked(stored: Bytes, row: int, depth: int) -> Samples:
    """Numbers of 1 to 15 bits, `row` of them in each row of a part; rows begin at a byte."""
    lines = stored.reshape(-1, stored.shape[-1])
    numbers = np.empty((len(lines), row), np.uint16)
    step = max(1, BAND // (row * 16))
    for at in range(0, len(lines), step):
        bits = np.unpackbits(lines[at : at + step], axis=1, count=row * depth)
        wide = np.zeros((len(bits), row, 16), np.uint8)
        wide[..., 16 - depth :] = bits.reshape(len(bits), row, depth)
        numbers[at : at + step] = np.packbits(wide, axis=-1).view(">u2")[..., 0]
    return numbers


def _eight_bits(samples: Samples, depth: int, number: int, *, scale: bool = True) -> Bytes:
    """The samples with 8 bits. Of floating-point numbers, white is 1, or the largest above it
    with `scale`."""
    seen = np.empty(samples.shape, np.uint8)
    step = max(1, BAND // max(1, samples[0].size))
    bands = [slice(at, at + step) for at in range(0, len(samples), step)]
    if number == UNSIGNED:
        for band in bands:
            seen[band] = samples[band].astype(np.uint32) * 255 // (2**depth - 1)
        return seen
    white = 1.0
    if scale:
        white = max(1.0, *(float(_finite(samples[band]).max(initial=0)) for band in bands), 1.0)
    for band in bands:
        seen[band] = np.clip(_finite(samples[band]) * (255.0 / white), 0, 255)
    return seen


def _finite(samples: Samples) -> NDArray[np.float64]:
    return np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _rgb(seen: Bytes) -> Image.Image:
    if seen.shape[2] == 4:
        height, width, _ = seen.shape
        return Image.frombytes("CMYK", (width, height), seen.tobytes()).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(seen, (*seen.shape[:2], 3))))
