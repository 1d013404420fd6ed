"""The commands put together, and what a user's mistake looks like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from planner import __version__
from planner.cli import db, evidence
from planner.cli.calibrate import calibrate
from planner.cli.cost import cost
from planner.cli.dashboard import run_app
from planner.cli.inspect_model import inspect
from planner.cli.options import say
from planner.cli.recommend import recommend, report
from planner.errors import PlannerError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What a token mixer costs, what accuracy it keeps, and which to choose.",
)
app.command()(recommend)
app.command()(report)
app.command()(inspect)
app.command()(cost)
app.command()(calibrate)
app.add_typer(evidence.app, name="evidence")
app.add_typer(db.app, name="db")
app.command("app")(run_app)


def _version(value: bool) -> None:
    if value:
        print(f"attn-plan {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def run_cli(command: Callable[[], None]) -> int:
    """Runs a command line: a user's error is one line on stderr and its exit code."""
    try:
        command()
    except PlannerError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def main() -> None:
    sys.exit(run_cli(app))
