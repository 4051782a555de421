"""Writes http.md, the reference of the HTTP interface, from the OpenAPI document of the gateway."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipfleet.api.app import create_app

PAGE = Path(__file__).with_name("http.md")
BEGIN = """# HTTP

Every gateway serves this document at `/docs`, to try it out, and as JSON at `/openapi.json`.
Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem+json (`Problem` below). Each
operation lists its status codes. A 503 says in `Retry-After` when to try again.
"""

Schema = Mapping[str, Any]


def page(document: Schema) -> str:
    parts = [BEGIN, *operations(document), "## Schemas\n"]
    schemas = sorted(document["components"]["schemas"].items())
    parts += [schema(name, fields) for name, fields in schemas]
    return "\n".join(parts)


def operations(document: Schema) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            section = operation(f"{method.upper()} {path}", call)
            by_tag.setdefault(call.get("tags", ["service"])[0], []).append(section)
    for tag, sections in by_tag.items():
        yield f"## {tag.capitalize()}\n"
        yield from sections


def operation(name: str, call: Schema) -> str:
    lines = [f"### `{name}`\n", title(call), call.get("description", ""), ""]
    if parameters := call.get("parameters"):
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        lines += [row(each["name"], each["schema"], each, each["in"]) for each in parameters]
    for kind, body in call.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body: {type_of(body['schema'])} as `{kind}`"]
    answers = [answer(status, response) for status, response in sorted(call["responses"].items())]
    return "\n".join([*lines, "", f"Answers: {', '.join(answers)}", ""])


def title(call: Schema) -> str:
    return f"**{call['summary'].rstrip('.')}**\n"


def answer(status: str, response: Schema) -> str:
    kinds = response.get("content", {})
    body = next((type_of(kind["schema"]) for kind in kinds.values() if kind.get("schema")), "")
    return f"{status} {body}".strip() if status.startswith("2") else status


def schema(name: str, definition: Schema) -> str:
    lines = [f"### {name}\n", definition.get("description", ""), ""]
    fields, required = definition.get("properties", {}), definition.get("required", ())
    if fields:
        lines += ["| field | type | meaning |", "|---|---|---|"]
    for field, each in fields.items():
        lines.append(row(f"{field}" + ("" if field in required else "?"), each, each))
    return "\n".join([*lines, ""])


def row(name: str, kind: Schema, described: Schema, *more: str) -> str:
    words = [described.get("description", kind.get("description", ""))]
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
        return " or ".join(type_of(each) for each in options if each.get("type") != "null")
    if values := kind.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in kind:
        return f"`{kind['const']}`"
    if kind.get("type") == "array":
        return f"list of {type_of(kind.get('items', {}))}"
    return str(kind.get("type", "anything"))


if __name__ == "__main__":
    PAGE.write_text(page(create_app().openapi()))
