"""`attn-plan app`: the dashboard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.cli.options import StoreOption
from planner.errors import EnvironmentProblem


def run_app(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8501,
    headless: Annotated[bool, typer.Option(help="Do not open a browser.")] = False,
    store: StoreOption = None,
) -> None:
    """Opens the dashboard in the browser, on this machine only."""
    from importlib.util import find_spec

    if find_spec("streamlit") is None:
        raise EnvironmentProblem("the dashboard needs streamlit: pip install attention-planner")
    check_port(port)
    from planner.store import Store

    Store.open(store).close()  # an unusable store is said here, not on a page
    main_file = Path(__file__).parents[1] / "ui" / "app_main.py"
    environment = dict(os.environ)
    if store:
        environment["ATTN_STORE"] = store
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(main_file),
        "--server.port",
        str(port),
        "--server.headless",
        str(headless).lower(),
    ]
    if os.name == "posix":  # becomes the server, so that whoever ends this command ends it
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, command, environment)
    try:
        code = subprocess.call(command, env=environment)
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


def check_port(port: int) -> None:
    """Raises EnvironmentProblem if something listens on the port of this machine already."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}); "
                f"give another with --port"
            ) from None
