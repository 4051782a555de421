"""What the metadata of an image may be."""

from typing import Any

import pytest

from clipfleet.common.collection import METADATA_DEPTH, Collection, image_problem

PHOTOS = Collection.new("photos", metric="cosine", model="m", dim=4, fields={})


def problem(metadata: dict[str, Any]) -> str | None:
    return image_problem(PHOTOS, "a", "a", "", metadata, 32_000)


@pytest.mark.parametrize("wrap", [lambda inner: {"a": inner}, lambda inner: [inner]])
def test_it_may_be_nested_so_far_and_no_further(wrap: Any) -> None:
    """Deeper, and answers that hold it could not be read by those who asked."""
    nested: Any = 1
    for _ in range(METADATA_DEPTH - 1):
        nested = wrap(nested)
    assert problem({"a": nested}) is None
    assert f"deeper than {METADATA_DEPTH} levels" in str(problem({"a": wrap(nested)}))


def test_one_that_python_itself_could_not_follow_is_refused_all_the_same() -> None:
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    assert "deeper" in str(problem({"a": nested}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "\ud800", "\0"])
def test_a_value_that_is_none_is_found_however_deep_it_lies(value: Any) -> None:
    assert problem({"a": [{"b": [value]}]})
    assert problem({"a": {"b": 1}}) is None


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"tags": ["a", ""], "codes": [0, -5]}, None),
        ({"tags": [], "codes": []}, None),
        ({"tags": None}, None),
        ({"tags": "a"}, "field tags must be string[], a list, not str"),
        ({"tags": {"a": 1}}, "field tags must be string[], a list, not dict"),
        ({"tags": ["a", 3]}, "field tags[1] must be string, not int"),
        ({"tags": [None]}, "field tags[0] must be string, not NoneType"),
        ({"tags": [["a"]]}, "field tags[0] must be string, not list"),
        ({"tags": ["x" * 1_025]}, "field tags[0] has 1025 bytes, the limit is 1024"),
        ({"tags": ["a"] * 257}, "field tags has 257 elements, the limit is 256"),
        ({"codes": [1, True]}, "field codes[1] must be int, not bool"),
        ({"codes": [1.0]}, "field codes[0] must be int, not float"),
        ({"codes": ["1"]}, "field codes[0] must be int, not str"),
    ],
)
def test_a_declared_list_has_elements_of_its_type(
    metadata: dict[str, Any], reason: str | None
) -> None:
    shelf = Collection.new(
        "shelf", metric="cosine", model="m", dim=4, fields={"tags": "string[]", "codes": "int[]"}
    )
    assert image_problem(shelf, "a", "a", "", metadata, 32_000) == reason
