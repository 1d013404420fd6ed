"""export, import and cache: measurements and compiled kernels as files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from planner.cli import say
from planner.errors import EnvironmentProblem, UsageError
from profiler.cli.options import StoreOption, words


def export_points(
    path: Annotated[Path, typer.Argument(help="CSV file; its environments go beside it.")],
    run: Annotated[
        str | None, typer.Option("--run", help="Only this run; default: all yours.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Writes measured points, raw samples included, to a CSV that import reads back."""
    from planner.store import Store

    count = Store.open(store, shipped=False).export_csv(path, run=run)
    say(f"wrote {count} points to {path}")


def import_points(
    source: Annotated[
        str, typer.Argument(help="CSV file that export wrote, or aiconfigurator and its PATH.")
    ],
    path: Annotated[
        Path | None, typer.Argument(help="Folder of the installed or unpacked package.")
    ] = None,
    systems: Annotated[
        str | None, typer.Option("--systems", help="Only these of its devices, as h200_sxm.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Reads measured points into the store: a CSV of export's, or tables measured by others."""
    from planner.store import Store

    if source == AICONFIGURATOR:
        if path is None:
            raise UsageError("import aiconfigurator needs the folder of aiconfigurator-core")
        say(import_aiconfigurator(path, words(systems or ""), store))
        return
    file = Path(source)
    if path is not None or systems is not None:
        raise UsageError(f"import of a CSV takes one file; {AICONFIGURATOR} takes a PATH")
    if not file.exists():
        raise EnvironmentProblem(f"no such file: {file}")
    count, left_out = Store.open(store, shipped=False).import_csv(file)
    say(f"read {count} points from {file}")
    if left_out:
        say(f"{left_out} of them left out: the store has your own or newer ones of the same calls")


AICONFIGURATOR = "aiconfigurator"


def import_aiconfigurator(path: Path, systems: Sequence[str], store: str | None) -> str:
    """Puts NVIDIA's published kernel tables into the store; says what was kept and dropped."""
    from planner.formats.aiconfigurator import into_store, read_package
    from planner.store import Store

    found = read_package(path, systems=systems or None)
    into_store(found, Store.open(store, shipped=False), read_on=datetime.now(UTC))
    return found.summary()


cache_app = typer.Typer(
    no_args_is_help=True, help="Compiled kernels and tuned configurations, to carry elsewhere."
)


@cache_app.command("save")
def cache_save(path: Annotated[Path, typer.Argument(help="Archive to write, .tar.gz.")]) -> None:
    """Packs what Triton and Inductor compiled and tuned here."""
    from profiler.compile_cache import save

    say(f"packed {save(path)} files into {path}")


@cache_app.command("load")
def cache_load(path: Annotated[Path, typer.Argument(help="Archive that save wrote.")]) -> None:
    """Unpacks it to where the compilers of this machine look; same GPU and versions only."""
    from profiler.compile_cache import load

    say(f"unpacked {load(path)} files")
