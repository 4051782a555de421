"""Unions of entries of snapshots, compared with dictionaries."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.common.snapshots import Entries, agreed, as_text, entries_of, merged, where_in

KEYS = st.tuples(st.integers(0, 3), st.integers(0, 2)).map(
    lambda pair: bytes([pair[0]]) + bytes(14) + bytes([pair[1]])
)
SIGNATURES = st.sampled_from([0, 1, 256, 2**63, 2**64 - 1])
PARTS = st.lists(st.tuples(KEYS, SIGNATURES), max_size=6)


def entries(pairs: list[tuple[bytes, int]]) -> Entries:
    return entries_of([key for key, _ in pairs], [signature for _, signature in pairs])


def as_dict(some: Entries) -> dict[str, int]:
    return dict(zip(as_text(some.keys), map(int, some.signatures), strict=True))


def united(parts: list[list[tuple[bytes, int]]]) -> dict[str, int]:
    signatures: dict[str, set[int]] = {}
    for key, signature in (pair for part in parts for pair in part):
        signatures.setdefault(key.hex(), set()).add(signature)
    return {key: min(seen) if len(seen) == 1 else 0 for key, seen in signatures.items()}


@given(st.lists(PARTS, max_size=4))
def test_a_union_is_sorted_and_knows_where_all_agree(parts: list[list[tuple[bytes, int]]]) -> None:
    union = merged(map(entries, parts))
    assert as_dict(union) == united(parts)
    assert all(first < second for first, second in pairwise(as_text(union.keys)))


@given(PARTS, PARTS)
def test_what_only_a_part_has_is_unknown(
    base: list[tuple[bytes, int]], part: list[tuple[bytes, int]]
) -> None:
    known = united([base])
    union = agreed(merged([entries(base)]), merged([entries(part)]))
    expected = united([[*base], [*part]])
    for key in expected:
        ours = known.get(key, 0)
        theirs = united([part]).get(key, ours)
        assert as_dict(union)[key] == (ours if ours == theirs else 0)
    assert as_dict(union).keys() == expected.keys()


@given(st.lists(KEYS), PARTS)
def test_keys_are_looked_up(keys: list[bytes], among: list[tuple[bytes, int]]) -> None:
    union = merged([entries(among)])
    sought = entries_of(keys, [0] * len(keys)).keys
    mask, places = where_in(sought, union.keys)
    assert mask.tolist() == [key.hex() in as_dict(union) for key in keys]
    assert np.array_equal(union.keys[places[mask]], sought[mask])
