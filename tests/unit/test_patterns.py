"""Patterns in the place of a path: what they stand for, what they leave alone, and their limits."""

import pytest
from pydantic import TypeAdapter, ValidationError

from clipfleet.common.http.patterns import Pattern, Wild
from clipfleet.common.http.sources import Source


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("/s/{8..11}.tar", ["/s/8.tar", "/s/9.tar", "/s/10.tar", "/s/11.tar"]),
        ("/s/{008..010}.tar", ["/s/008.tar", "/s/009.tar", "/s/010.tar"]),
        ("/s/{08..100..46}.tar", ["/s/008.tar", "/s/054.tar", "/s/100.tar"]),
        ("/s/{2..0}.tar", ["/s/2.tar", "/s/1.tar", "/s/0.tar"]),
        ("/s/{a,b}/{1..2}", ["/s/a/1", "/s/a/2", "/s/b/1", "/s/b/2"]),
        (
            "https://x.org/{00..01}.tar?a=*",
            ["https://x.org/00.tar?a=*", "https://x.org/01.tar?a=*"],
        ),
        ("/s/x{1}.tar", ["/s/x{1}.tar"]),
        ("/s/{}{a..b}{1..}.tar", ["/s/{}{a..b}{1..}.tar"]),
        ("/s/{0..0}", ["/s/0"]),
        ("/s/../t/{1,2}", ["/t/1", "/t/2"]),
    ],
)
def test_braces_stand_for_numbers_and_alternatives(text: str, values: list[str]) -> None:
    assert list(Pattern(text).values()) == values
    assert Pattern(text).count == len(values)


@pytest.mark.parametrize(
    "text", ["/a.jpg", "/x{1}.tar", "/{}", "https://x.org/a?b=[*]", "s3://b/c"]
)
def test_other_names_are_no_patterns(text: str) -> None:
    assert not Pattern(text).is_pattern


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/s/{0..999999999999}.tar", "1000000000000 sources; the limit is 100000"),
        ("/s/{0..999}{0..999}", "1000000 sources"),
        ("/s/{a,../../etc}/*", "may not have the part"),
        ("s3://b/*/../c", "may not have the part|has a part"),
    ],
)
def test_patterns_have_limits(text: str, problem: str) -> None:
    kind = "bucket" if "://" in text else "archive"
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(Source).validate_python({"type": kind, "uri": text})
    with pytest.raises(ValueError, match=r"limit|may not"):
        Pattern(text)


def matches(pattern: str, name: str) -> bool:
    wild = Wild(pattern)
    below = name.removeprefix(wild.base.rstrip("/") + "/")
    assert below != name, wild.base
    positions = wild.start()
    for part in below.split("/"):
        positions = wild.step(positions, part)
    return wild.ends(positions)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("/s/*.tar", "/s/a.tar", True),
        ("/s/*.tar", "/s/a/b.tar", False),
        ("/s/*.tar", "/s/.a.tar", False),
        ("/s/.*.tar", "/s/.a.tar", True),
        ("/s/**/*.tar", "/s/a.tar", True),
        ("/s/**/*.tar", "/s/a/b/c.tar", True),
        ("/s/**/*.tar", "/s/.a/c.tar", False),
        ("/s/**/x/**/*.tar", "/s/a/x/b/x/c.tar", True),
        ("/s/**/x/**/*.tar", "/s/a/b/c.tar", False),
        ("/s/**", "/s/a/b", True),
        ("/s/a[12].jpg", "/s/a1.jpg", True),
        ("/s/a[12].jpg", "/s/a[12].jpg", True),
        ("/s/a[!12].jpg", "/s/a1.jpg", False),
        ("/s/*/[x.jpg", "/s/a/[x.jpg", True),
        ("/s/?.jpg", "/s/é.jpg", True),
        ("/*/b.jpg", "/a/b.jpg", True),
        ("s3://b/*.tar", "s3://b/a.tar", True),
    ],
)
def test_wildcards(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits
