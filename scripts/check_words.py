"""Finds identifiers that say nothing, such as `found` or `given`.

    python scripts/check_words.py api workers common clipfleet

Names each variable, argument, attribute, function or class of the folders that has such a name,
with better ones, and exits 1 if there are any.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

VAGUE = {
    "asked": "request, query",
    "found": "matches, rows, jobs",
    "given": "value",
    "left": "remaining",
    "made": "created, or the thing's own noun",
    "most": "limit, max_…",
    "one": "the item's own noun",
    "said": "message, detail, reason",
    "told": "options, kwargs, fields",
    "wanted": "the thing's own noun",
}


def bindings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a module defines."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name


def problems(path: Path) -> Iterator[str]:
    """One line for each vague name in a file."""
    for line, name in bindings(ast.parse(path.read_text())):
        if better := VAGUE.get(name.strip("_").lower()):
            yield f"{path}:{line}: {name!r} says nothing about the thing; better: {better}"


def main() -> None:
    paths = [path for folder in sys.argv[1:] for path in sorted(Path(folder).rglob("*.py"))]
    lines = [line for path in paths for line in problems(path)]
    if lines:
        sys.exit("\n".join([*lines, f"{len(lines)} vague names"]))


if __name__ == "__main__":
    main()
