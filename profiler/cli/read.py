"""status, show, check and compare: what the store holds of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import emit_json, say
from profiler.cli.options import CsvOption, JsonOption, RunArgument, StoreOption
from profiler.draw import (
    both_crossovers,
    crossover_text,
    draw_changes,
    draw_points,
    draw_residuals,
    moved_by,
    moved_text,
    records,
    show_frame,
    summary,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from planner.hardware import Hardware
    from planner.store import Environment


SILENT_S = 900.0
"""Without a point for so long a run that calls itself running may have been killed: to prepare a
job takes at most 600 s."""


def status(
    run: RunArgument = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """How far a run has come: points by outcome, and the time it will still take."""
    from planner.store import Store
    from planner.units import seconds_text

    opened = Store.open(store, shipped=False)
    found = opened.run(run)
    outcomes = opened.run_outcomes(found.id)
    done = sum(outcomes.values())
    end = found.ended_at
    left, silent_s = None, 0.0
    if found.status == "running":
        started = found.started_at.replace(tzinfo=found.started_at.tzinfo or UTC)
        spent = (datetime.now(UTC) - started).total_seconds()
        last = opened.last_measured(found.id) or started
        silent_s = (datetime.now(UTC) - last).total_seconds()
        if done:
            left = spent / done * max(found.planned_points - done, 0)
    if as_json:
        emit_json(
            {
                "run": found.name,
                "status": found.status,
                "remaining_s": left,
                "planned": found.planned_points,
                "recorded": outcomes,
                "started_at": found.started_at.isoformat(),
                "ended_at": end.isoformat() if end else None,
            }
        )
        return
    counted = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) or "none yet"
    print(f"run {found.name} ({found.status}): {done} recorded of {found.planned_points} planned")
    print(f"points: {counted}")
    if silent_s > SILENT_S:
        print(
            f"no point for {seconds_text(silent_s)}: where its process is gone, the same command "
            "goes on from here"
        )
    elif left is not None:
        print(f"about {seconds_text(left)} to go at the pace so far")


def show(
    run: RunArgument = None,
    mixer: Annotated[str | None, typer.Option("--mixer", help="Only this family.")] = None,
    stacks: Annotated[
        bool, typer.Option("--stacks", help="Stacks against the sum of their layers.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Shows the points of a run, or how its stacks compare with the sum of their layers."""
    from planner.store import Store

    opened = Store.open(store, shipped=False)
    frame = opened.points(run=opened.run(run).id, family=mixer)
    if stacks:
        from planner.calibration.stacks import stack_residuals

        found = stack_residuals(frame)
        if found.empty and not (as_json or as_csv):
            say("no stack here has its layers beside it: those of one kind, at 0:1 and 1:0, too")
            return
        show_frame(found, as_json=as_json, as_csv=as_csv, draw=draw_residuals)
    else:
        from profiler.check import bounds

        frame["bound_s"] = bounds(frame, rooflines(opened.environments()))
        show_frame(summary(frame), as_json=as_json, as_csv=as_csv, draw=draw_points)


def check(
    run: Annotated[
        str | None, typer.Argument(help="Run by name or number; default: all but what ships.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Says which points do not look right (spread, order, roofline, repeats), and what to do."""
    from dataclasses import asdict

    from planner.store import Store
    from planner.store.files import is_shipped
    from profiler.check import check as find

    opened = Store.open(store, shipped=False)
    frame = opened.points(run=opened.run(run).id if run else None)
    frame = frame[~frame["dataset"].fillna("").map(is_shipped).astype(bool)]
    found = find(frame, rooflines(opened.environments()))
    if as_json:
        emit_json([asdict(f) for f in found])
        return
    table([(f.rule, f.what, f.advice) for f in found], ("rule", "what", "what to do"))
    say(f"{len(found)} findings in {len(frame)} points")


def rooflines(environments: Mapping[str, Environment]) -> dict[str, Hardware]:
    """By environment: the catalog's device, or the peaks measured there."""
    from planner.catalog import hardware_for_device
    from profiler.measure.ceilings import hardware_of

    known = {id: hardware_for_device(e.device) or hardware_of(e) for id, e in environments.items()}
    return {id: hardware for id, hardware in known.items() if hardware is not None}


def compare(
    a: Annotated[str, typer.Argument(help="A run by name or number, or a CSV of export's.")],
    b: Annotated[str, typer.Argument(help="The run or CSV to compare with it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Compares two runs: what became slower or faster, and whether crossovers moved."""
    from profiler.compare import compare as changes
    from profiler.compare import crossovers, measured_in_both, repeatability

    first, second = (points_of(name, store) for name in (a, b))
    found = changes(first, second)
    if as_json or as_csv:
        show_frame(found, as_json=as_json, as_csv=as_csv, draw=draw_changes)
        return
    if found.empty:
        say(f"no point is in both {a} and {b}: what is measured again belongs to the later run")
        return
    draw_changes(found)
    keys = ["mixer", "shape", "phase", "batch_size", "dtype", "mode"]
    before, after = map(crossovers, measured_in_both(first, second))
    moved = before.merge(after, on=keys, suffixes=("_a", "_b"))
    rows = [
        (
            r.shape,
            f"{r.phase} b{r.batch_size} {r.mode}",
            *map(crossover_text, both_crossovers(r)),
            told := moved_text(*both_crossovers(r)),
            moved_by(r.providers_a, r.providers_b) if told != "no" else "",
        )
        for r in records(moved)
    ]
    table(rows, ("mixer", "as", f"crossover in {a}", f"in {b}", "moved", "fastest by"))
    significant = int(found["significant"].sum())
    say(f"{significant} of {len(found)} points changed significantly")
    if spread := repeatability(found):
        say(spread)


def points_of(name: str, store: str | None) -> pd.DataFrame:
    """Of a run of the store, or of a file: a repetition has the keys of what it repeats, so it is
    measured into another store and compared as its CSV."""
    from planner.store import Store

    file = Path(name)
    if file.suffix == ".csv" and file.exists():
        read = Store.open("sqlite:///:memory:", shipped=False)
        read.import_csv(file)
        return read.points()
    opened = Store.open(store, shipped=False)
    return opened.points(run=opened.run(name).id)
