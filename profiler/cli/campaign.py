"""campaign: the whole data set of a GPU, in as many budgets as it takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import say
from planner.errors import UsageError
from profiler.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    parse_duration,
    require_torch,
)
from profiler.cli.run import command_line, finish, local_hardware
from profiler.draw import table

if TYPE_CHECKING:
    from profiler.device import Device
    from profiler.plan import PlannedJob


def campaign(
    folder: Annotated[
        Path,
        typer.Option("--folder", help="What earlier runs left, and where this one leaves it."),
    ],
    budget: Annotated[
        str | None, typer.Option("--budget", help="Stop after this time, such as 9m.")
    ] = None,
    device: DeviceOption = "auto",
    only: Annotated[
        str | None, typer.Option("--part", help="Only this part, by its number in --dry-run.")
    ] = None,
    time_cap: Annotated[
        float | None, typer.Option("--time-cap", help="Seconds of sampling per point.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure faults again.")
    ] = False,
    retry_doubtful: Annotated[
        bool, typer.Option("--retry-doubtful", help="Measure again what `check` doubts.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the parts and their points.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measures the whole data set part by part; the same command goes on from its folder."""
    started = time.perf_counter()
    require_torch()
    from planner.store import Store
    from profiler.campaign import jobs, pack, unpack
    from profiler.device import resolve_device
    from profiler.session import make_settings, measure

    target = resolve_device(device)
    plan = list(jobs(target))
    if only is not None:
        numbers = sorted({p.part for p in plan})
        plan = [p for p in plan if str(p.part) == only]
        if not plan:
            raise UsageError(
                f"--part must be one of {', '.join(map(str, numbers))} on this device, got "
                f"{only!r}; see --dry-run"
            )
    if dry_run:
        show_parts(plan, target)
        return
    limit_s = parse_duration(budget) if budget else None
    folder.mkdir(parents=True, exist_ok=True)
    fresh = not (folder / STORE).exists()
    opened = Store.open(str(folder / STORE), shipped=False)
    points, compiled = unpack(folder, opened, compiled=fresh)
    if points or fresh:
        say(f"found {points} points and {compiled} compiled files in {folder}")
    spent_s = time.perf_counter() - started
    ended = measure(
        plan,
        target,
        make_settings(
            target,
            quick=False,
            budget_s=None if limit_s is None else limit_s - spent_s,
            time_cap_s=time_cap,
        ),
        opened,
        command=command_line(sys.argv[1:]),
        retry_failed=retry_failed,
        retry_doubtful=retry_doubtful,
        quiet=quiet,
    )
    for path in pack(folder, opened, target):
        say(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    finish(ended, as_json=as_json)


STORE = "store.db"


def show_parts(plan: list[PlannedJob], device: Device) -> None:
    """Points and measuring time of each part, from the roofline; compiling comes on top."""
    from planner.units import seconds_text
    from profiler.campaign import parts
    from profiler.estimate import estimate
    from profiler.session import make_settings

    limits = make_settings(device, quick=False, budget_s=None, time_cap_s=None).limits
    hardware = local_hardware(device)

    def line(number: str, name: str, jobs: list[PlannedJob]) -> tuple[str, ...]:
        found = estimate(jobs, hardware, limits, device.kind)
        return number, name, str(found.points), seconds_text(found.seconds)

    names = {number: part.name for number, part in enumerate(parts(device.default_dtype))}
    rows = [
        line(str(n), names[n], [p for p in plan if p.part == n])
        for n in sorted({p.part for p in plan})
    ]
    table([*rows, line("", "all", plan)], ("part", "name", "points", "about"))
