"""Reading of xz: any number of streams, and no more memory than allowed."""

import io
import lzma

import pytest

from clipfleet.workers.sources.unxz import MEMORY_BYTES, PIECE_BYTES, Unxz

DATA = bytes(range(256)) * 1_000


def unpacked(packed: bytes) -> bytes:
    return io.BufferedReader(Unxz(io.BytesIO(packed))).read()


@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(3 * PIECE_BYTES)])
def test_several_streams_are_read_as_one_file(padding: bytes) -> None:
    packed = lzma.compress(DATA) + padding + lzma.compress(b"") + lzma.compress(b"end") + padding
    assert unpacked(packed) == DATA + b"end"


def test_a_file_that_is_cut_or_damaged_is_no_shorter_file() -> None:
    packed = lzma.compress(DATA)
    for size in (1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(EOFError):
            unpacked(packed[:size])
    with pytest.raises(lzma.LZMAError):
        unpacked(packed + b"no xz" * 20)


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2 * MEMORY_BYTES}]
    with pytest.raises(lzma.LZMAError):
        unpacked(lzma.compress(b"x", filters=filters))
