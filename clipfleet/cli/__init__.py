"""The command line, on top of `client` and `embedded`. Nothing imports it.

Results go to standard output. Progress, notes and errors go to standard error.
"""

import re
import sys
from collections.abc import Sequence

import typer
from pydantic import ValidationError

from clipfleet._version import __version__
from clipfleet.cli import (
    aliases,
    collections,
    demo,
    doctor,
    edit,
    evaluate,
    images,
    jobs,
    keys,
    mcp,
    parts,
    sources,
    up,
)
from clipfleet.cli.show import fail
from clipfleet.errors import Error

app = typer.Typer(
    name="clipfleet",
    help="Image search as a service: index images in bulk, find them by words or by image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(demo.demo)
app.command()(images.index)
app.command()(images.search)
app.command()(evaluate.evaluate)
app.command()(doctor.doctor)
app.command()(mcp.mcp)
for part in (parts.gateway, parts.planner, parts.worker):
    app.command(rich_help_panel="Parts of a cluster, configured by CLIPFLEET_* variables")(part)
app.add_typer(jobs.app, name="jobs")
app.add_typer(collections.app, name="collections")
app.add_typer(sources.app, name="sources")
app.add_typer(aliases.app, name="aliases")
app.add_typer(edit.app, name="images")
app.add_typer(keys.app, name="keys")


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. An error becomes one line on standard error and exit code 1."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()  # without this, Python complains at exit about the reader that is gone
        sys.exit(1)
    except ValidationError as error:  # of the settings
        fault = error.errors(include_url=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        fail(ValueError(f"{_variable(fault['loc'])}: {message}"))
    except (Error, ValueError, OSError) as error:
        if type(error).__name__ == "SettingsError" and (match := _FIELD.search(str(error))):
            error = ValueError(f'{_variable(match.groups())} is not JSON, such as ["..."]')
        fail(error)


_FIELD = re.compile('field "([a-z0-9_]+)"')


def _variable(location: Sequence[str | int]) -> str:
    """The environment variable of a setting."""
    return "CLIPFLEET_" + "__".join(str(part).upper() for part in location[:2])


if __name__ == "__main__":
    main()
