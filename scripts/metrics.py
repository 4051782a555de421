"""Figures about the code, by which it can be compared with other projects.

    python scripts/metrics.py [FILE or FOLDER ...]   # default: api workers common clipfleet

Prints one table: files and their lines, functions and their lines, types, docstrings, comments.
The lines of a function are those of its body, without the signature, the docstring and blank
lines. A function is public if neither its own name nor that of its class begins with `_`.
"""

import ast
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

FOLDERS = ("api", "workers", "common", "clipfleet")
GENERATED = ("_sync.py",)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Figures:
    """Figures of one function.

    Attributes:
        lines: lines of the body.
        docstring: lines of the docstring; 0 without one.
        public: whether its name and its class' name are public.
        port: whether its class is a Protocol.
        returns: whether its return type is written.
        typed: how many of its parameters have a type.
        parameters: how many there are, without `self` and `cls`.
    """

    lines: int
    docstring: int
    public: bool
    port: bool
    returns: bool
    typed: int
    parameters: int


def functions(node: ast.AST, public: bool = True, port: bool = False) -> Iterator[Figures]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            is_port = any(ast.unparse(base).startswith("Protocol") for base in child.bases)
            yield from functions(child, public and not child.name.startswith("_"), is_port)
        elif isinstance(child, Function):
            yield figures(child, public and not child.name.startswith("_"), port)
            yield from functions(child, False)
        else:
            yield from functions(child, public, port)


def figures(function: Function, public: bool, port: bool) -> Figures:
    docstring = ast.get_docstring(function)
    body = function.body[1:] if docstring is not None else function.body
    arguments = function.args
    parameters = [
        argument
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        if argument.arg not in ("self", "cls")
    ]
    return Figures(
        lines=len({line for node in body for line in code_lines(node)}),
        docstring=len(docstring.splitlines()) if docstring else 0,
        public=public,
        port=port,
        returns=function.returns is not None,
        typed=sum(parameter.annotation is not None for parameter in parameters),
        parameters=len(parameters),
    )


def code_lines(node: ast.AST) -> Iterator[int]:
    for child in ast.walk(node):
        if isinstance(child, ast.stmt | ast.expr):
            yield from {child.lineno, child.end_lineno or child.lineno}


def own_line_comments(path: Path) -> int:
    with tokenize.open(path) as file:
        return sum(
            token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
            for token in tokenize.generate_tokens(file.readline)
        )


def sources(names: Sequence[str]) -> list[Path]:
    """The Python files among them and in them. Links and generated files are left out."""
    return [
        path
        for name in map(Path, names)
        for path in (sorted(name.rglob("*.py")) if name.is_dir() else [name])
        if path.name not in GENERATED and not any(part.is_symlink() for part in path.parents)
    ]


def percentile(values: Sequence[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "-"


def table(paths: Sequence[Path]) -> list[tuple[str, str]]:
    lines = [len(path.read_text().splitlines()) for path in paths]
    all_functions = [figure for path in paths for figure in functions(ast.parse(path.read_text()))]
    bodies = [figure.lines for figure in all_functions]
    docstrings = [
        figure.docstring for figure in all_functions if figure.public and figure.docstring
    ]
    port_docstrings = [figure.docstring for figure in all_functions if figure.port]
    public = sum(figure.public for figure in all_functions)
    comments = sum(map(own_line_comments, paths))
    return [
        ("files", f"{len(paths)}"),
        ("lines", f"{sum(lines):,}"),
        ("lines of a file, median", f"{median(lines):.0f}"),
        ("files under 60 lines", percent(sum(count < 60 for count in lines), len(lines))),
        ("files over 300 lines", percent(sum(count > 300 for count in lines), len(lines))),
        ("functions", f"{len(all_functions):,}"),
        ("lines of a function, median", f"{median(bodies):.0f}"),
        ("lines of a function, 90th percentile", f"{percentile(bodies, 0.9)}"),
        ("functions over 40 lines", percent(sum(count > 40 for count in bodies), len(bodies))),
        ("longest function, lines", f"{max(bodies)}"),
        (
            "functions with a return type",
            percent(sum(f.returns for f in all_functions), len(all_functions)),
        ),
        (
            "parameters with a type",
            percent(sum(f.typed for f in all_functions), sum(f.parameters for f in all_functions)),
        ),
        ("public functions with a docstring", percent(len(docstrings), public)),
        ("lines of such a docstring, median", f"{median(docstrings or [0]):.0f}"),
        ("lines of a port's docstring, median", f"{median(port_docstrings or [0]):.0f}"),
        ("own-line comments in 1,000 lines", f"{1_000 * comments / sum(lines):.1f}"),
    ]


def main() -> None:
    for name, value in table(sources(sys.argv[1:] or FOLDERS)):
        print(f"{name:<40}{value:>12}")


if __name__ == "__main__":
    main()
