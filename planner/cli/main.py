"""The commands put together, and what a user's mistake looks like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

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


PARSER_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""What the parser raises: click's class, or that of the copy of click inside newer Typers."""


def run_cli(command: Callable[[], object]) -> int:
    """Runs a command line: a user's error is one line on stderr and its exit code.

    `command` is a Typer app called with `standalone_mode=False`, so that what the parser finds
    wrong is said here too; it returns the code of a `typer.Exit`.
    """
    try:
        code = command()
    except PARSER_ERROR as error:
        message = error.format_message().strip()
        if message:  # none after the help, which is on the screen
            where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
            say(f"error: {' '.join(message.split()).rstrip('.')}{where}")
        return int(error.exit_code)
    except typer.Abort:
        return 130
    except PlannerError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def main() -> None:
    sys.exit(run_cli(partial(app, standalone_mode=False)))
