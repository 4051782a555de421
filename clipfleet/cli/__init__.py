"""The command line. Results go to standard output, everything else to standard error."""

import sys

import typer
from pydantic import ValidationError

from clipfleet._version import __version__
from clipfleet.cli import collections, demo, doctor, evaluate, images, jobs, keys, parts, up
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
    app.command(rich_help_panel="One part of a cluster, configured by CLIPFLEET_* variables")(part)
app.add_typer(jobs.app, name="jobs")
app.add_typer(collections.app, name="collections")
app.add_typer(keys.app, name="keys")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """One line and a non-zero exit for whatever goes wrong."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; Python would complain about it
        sys.exit(1)
    except ValidationError as error:
        fail(ValueError(error.errors()[0]["msg"]))
    except (Error, ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
