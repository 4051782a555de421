"""Writes http.md, the reference of the HTTP interface, from the code's own OpenAPI document."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipfleet.api.app import create_app

PAGE = Path(__file__).with_name("http.md")
BEGIN = """# HTTP

The same document, to be tried out, is at `/docs` of every gateway, and as JSON at `/openapi.json`.
Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem+json (`Problem` below), with
the status codes that each call lists; a 503 says in `Retry-After` when to come back.
"""

Schema = Mapping[str, Any]


def page(document: Schema) -> str:
    parts = [BEGIN, *operations(document), "## Schemas\n"]
    parts += [schema(name, one) for name, one in sorted(document["components"]["schemas"].items())]
    return "\n".join(parts)


def operations(document: Schema) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            said = operation(f"{method.upper()} {path}", one)
            by_tag.setdefault(one.get("tags", ["service"])[0], []).append(said)
    for tag, calls in by_tag.items():
        yield f"## {tag.capitalize()}\n"
        yield from calls


def operation(name: str, one: Schema) -> str:
    lines = [f"### `{name}`\n", one.get("description", ""), ""]
    if parameters := one.get("parameters"):
        lines += ["| parameter | in | type | |", "|---|---|---|---|"]
        lines += [row(each["name"], each["schema"], each, each["in"]) for each in parameters]
    for kind, body in one.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body: {type_of(body['schema'])} as `{kind}`"]
    answers = [answer(status, said) for status, said in sorted(one["responses"].items())]
    return "\n".join([*lines, "", f"Answers: {', '.join(answers)}", ""])


def answer(status: str, said: Schema) -> str:
    kinds = said.get("content", {})
    body = next((type_of(one["schema"]) for one in kinds.values() if one.get("schema")), "")
    return f"{status} {body}".strip() if status.startswith("2") else status


def schema(name: str, one: Schema) -> str:
    lines = [f"### {name}\n", one.get("description", ""), ""]
    fields, required = one.get("properties", {}), one.get("required", ())
    if fields:
        lines += ["| field | type | |", "|---|---|---|"]
    for field, each in fields.items():
        lines.append(row(f"{field}" + ("" if field in required else "?"), each, each))
    return "\n".join([*lines, ""])


def row(name: str, kind: Schema, said: Schema, *more: str) -> str:
    words = [said.get("description", kind.get("description", ""))]
    if kind.get("default") is not None:
        words.append(f"default {kind['default']!r}")
    bounds = {"minimum": "at least", "maximum": "at most", "maxLength": "characters at most:"}
    words += [f"{word} {kind[key]}" for key, word in bounds.items() if key in kind]
    note = "; ".join(word for word in words if word).replace("|", "\\|").replace("\n", " ")
    return f"| {' | '.join([f'`{name}`', *more, type_of(kind), note])} |"


def type_of(kind: Schema) -> str:
    """A type in a few words; a schema of its own is linked."""
    if ref := kind.get("$ref"):
        name = ref.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if options := kind.get("anyOf") or kind.get("oneOf"):
        return " or ".join(type_of(one) for one in options if one.get("type") != "null")
    if values := kind.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in kind:
        return f"`{kind['const']}`"
    if kind.get("type") == "array":
        return f"list of {type_of(kind.get('items', {}))}"
    return str(kind.get("type", "anything"))


if __name__ == "__main__":
    PAGE.write_text(page(create_app().openapi()))
