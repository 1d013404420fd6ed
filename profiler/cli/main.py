"""The commands put together."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from planner import __version__
from planner.cli import run_cli
from profiler.cli import files, look, read
from profiler.cli.campaign import campaign
from profiler.cli.run import run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measures what token mixers cost on this machine, into the planner's store.",
)

app.command()(look.doctor)
app.command("list")(look.list_providers)
app.command()(run)
app.command()(campaign)
app.command()(read.status)
app.command()(read.show)
app.command()(read.check)
app.command()(read.compare)
app.command("export")(files.export_points)
app.command("import")(files.import_points)
app.add_typer(files.cache_app, name="cache")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    sys.exit(run_cli(partial(app, standalone_mode=False)))
