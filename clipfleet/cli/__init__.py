"""The command line, on top of `client` and `embedded`. Nothing imports it.

Results go to standard output. Progress, notes and errors go to standard error.
"""

import sys

import typer
from pydantic import ValidationError

from clipfleet._version import __version__
from clipfleet.cli import (
    aliases,
    collections,
    demo,
    doctor,
    evaluate,
    images,
    jobs,
    keys,
    parts,
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
for part in (parts.gateway, parts.planner, parts.worker):
    app.command(rich_help_panel="Parts of a cluster, configured by CLIPFLEET_* variables")(part)
app.add_typer(jobs.app, name="jobs")
app.add_typer(collections.app, name="collections")
app.add_typer(aliases.app, name="aliases")
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
    except ValidationError as error:
        fail(ValueError(error.errors()[0]["msg"]))
    except (Error, ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
