"""docs/limits.md says what each route takes, and what each setting is."""

import re
from pathlib import Path

from fastapi.routing import iter_route_contexts

from clipfleet.api.app import create_app
from clipfleet.api.auth.access import AuthorizedRoute
from clipfleet.api.http.bodies import RULES
from clipfleet.common.settings import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()


def test_every_setting_has_its_default() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|", PAGE, re.MULTILINE)
    assert len(rows) > 15
    limits = Limits().model_dump()
    assert {name: float(value) for name, value in rows} == {
        name: float(limits[name.lower()]) for name, _ in rows
    }
    assert {rule.setting.upper() for rule in RULES.values()} < {name for name, _ in rows}


def test_every_route_has_its_limit() -> None:
    rows = re.findall(r"^\| `([A-Z]+ )(?:…|/v1)(\S+)` \| (.*) \| (.*) \|", PAGE, re.MULTILINE)
    rows_by_route = {
        method + path: (body, re.findall(r"`([A-Z_]+)`", settings))
        for method, path, body, settings in rows
    }
    checked = set()
    for context in iter_route_contexts(create_app().routes):
        route = context.original_route
        if not isinstance(route, AuthorizedRoute) or route.body == "json":
            continue
        path = route.path.removeprefix("/v1").removeprefix("/collections/{name}")
        [method] = route.methods or {""}
        call = f"{method} {path}"
        rule = RULES[route.body]
        body, settings = rows_by_route[call]
        checked.add(call)
        assert settings == [rule.setting.upper(), *(["INLINE_BYTES"] if rule.images else [])]
        size = rule.max_other_bytes(Limits())
        assert body.startswith(f"{size // 10**9} GB" if size >= 10**9 else f"{size // 10**6} MB")
        assert ("images" in body) == rule.images
    assert checked == set(rows_by_route)
