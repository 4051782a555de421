"""Base64 of images as tools write it."""

import base64
import textwrap

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from clipfleet.api.search import terms
from clipfleet.api.search.terms import from_base64
from clipfleet.common.errors import InvalidRequest

DATA = bytes(range(256)) * 20


def wrapped(text: str) -> str:
    return "\r\n".join(textwrap.wrap(text, 76)) + "\n"


@effort(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.sampled_from([4, 8, 12, 1 << 20]))
def test_every_usual_way_to_write_it_is_read(data: bytes, piece: int) -> None:
    plain = base64.b64encode(data).decode()
    for_urls = base64.urlsafe_b64encode(data).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terms, "PIECE", piece)
        for text in (plain, for_urls):
            assert from_base64(text) == data
            assert from_base64(text.rstrip("=")) == data
            assert from_base64("\n".join(text)) == data
            assert from_base64(f"  {text}\t\n") == data
            assert from_base64(f"data:image/png;base64,{text}") == data
            assert from_base64(f"DATA:image/png;base64, {text}") == data


def test_lines_as_tools_break_them_are_joined() -> None:
    assert from_base64(wrapped(base64.b64encode(DATA).decode())) == DATA


@pytest.mark.parametrize(
    "text", ["A", "AAAAA", "AA=A", "AA==AAAA", "A*AA", "é", "AAAA=AAA", "data:,A", "AAAA\0"]
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid"):
        from_base64(text)


@pytest.mark.parametrize("at", [1, 7, 8])
def test_padding_in_the_middle_is_refused_in_any_piece(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "PIECE", 4)
    with pytest.raises(InvalidRequest):
        from_base64("A" * 4 * at + "AA==" + "AAAA")
