"""run: a grid of workloads, measured or only shown (`--dry-run`)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import emit_json, say
from planner.errors import UsageError
from profiler.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    StoreOption,
    parse_duration,
    require_torch,
    words,
)
from profiler.draw import table

if TYPE_CHECKING:
    from profiler.device import Device
    from profiler.plan import Grid, PlannedJob
    from profiler.session import Ended
    from profiler.sweep import Settings, Tally

QUICK_LENGTHS = "1k,2k,4k"
QUICK_RATIOS = "0:1,3:1"
SLOWEST = 5  # workers that a report names
DEFAULT_RATIOS = "0:1,1:1,3:1,5:1,7:1,11:1,1:0"
LONG_LENGTHS = {"cpu": "16k,32k", "cuda": "256k:1m"}
DEFAULT_LENGTHS = {"cpu": "1k:8k", "cuda": "1k:128k"}
DEFAULT_BATCHES = {"cpu": "1", "cuda": "1,8,64"}
DEFAULT_SHAPE = {"cpu": "tiny", "cuda": "llama-3.1-8b"}


def run(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shape, 1k to 4k, 2 ratios.")
    ] = False,
    device: DeviceOption = "auto",
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Models of the catalog, such as tiny or llama-3.1-8b."),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Tokens: 1k:128k (powers of two) or 1k,3000.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", help="Sequences at once, such as 1,8.")
    ] = None,
    mixers: Annotated[
        str | None, typer.Option("--mixers", help="Mixers, comma-separated.")
    ] = None,
    providers: Annotated[
        str | None, typer.Option("--providers", help="Only these providers.")
    ] = None,
    phases: Annotated[
        str, typer.Option("--phases", help="prefill, segment, decode, training.")
    ] = "prefill,decode",
    ratios: Annotated[
        str | None,
        typer.Option(
            "--ratios",
            help="Stacks at these linear:full ratios, ends and middle of the lengths; or none.",
        ),
    ] = None,
    placements: Annotated[
        str, typer.Option("--placements", help="Of stacks: uniform, start, middle, end.")
    ] = "uniform",
    mlp: Annotated[bool, typer.Option("--mlp", help="Stacks also with an MLP per block.")] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="fp32 (CPU), bf16 (GPU), fp16, fp64.")
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", help="Keys a windowed query sees, such as 128,1k.")
    ] = None,
    segments: Annotated[
        str | None, typer.Option("--segments", help="Long prefills also in segments of, as 8k.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Also the dense layers.")
    ] = True,
    modes: Annotated[str | None, typer.Option("--modes", help="eager, graph.")] = None,
    caches: Annotated[str | None, typer.Option("--caches", help="cold, warm.")] = None,
    long: Annotated[
        bool,
        typer.Option("--long", help="Then 256k to 1m: two fastest providers, few samples."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Stop after this time, such as 8m; the most informative points first."
        ),
    ] = None,
    time_cap: Annotated[
        float | None, typer.Option("--time-cap", help="Seconds of sampling per point.")
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also joules of warm calls in graphs (2.5 s a point).")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure faults again.")
    ] = False,
    retry_doubtful: Annotated[
        bool, typer.Option("--retry-doubtful", help="Measure again what `check` doubts.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show points, time and memory.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="At the end, also interrupted, write this CSV.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measures a grid of workloads; started again, it goes on where it stopped."""
    require_torch()
    from planner.store import Store
    from profiler.device import resolve_device
    from profiler.plan import DEFAULT_MIXERS, Grid, parse_int_list
    from profiler.session import make_settings, measure

    if quick:
        shape, lengths, ratios = shape or "tiny", lengths or QUICK_LENGTHS, ratios or QUICK_RATIOS
        batch = batch or "1"
        caches = caches or "cold"
    target = resolve_device(device)
    kind = target.kind
    wanted = "" if ratios == "none" else (ratios or DEFAULT_RATIOS)
    usual = parse_int_list(lengths or DEFAULT_LENGTHS[kind], "--lengths")
    beyond = parse_int_list(LONG_LENGTHS[kind], "--long") if long else ()
    grid = Grid(
        shapes=words(shape or DEFAULT_SHAPE[kind]),
        mixers=words(mixers) if mixers else DEFAULT_MIXERS,
        providers=words(providers or ""),
        lengths=usual,
        batches=parse_int_list(batch or DEFAULT_BATCHES[kind], "--batch"),
        phases=words(phases),  # type: ignore[arg-type]  # checked by the grid
        ratios=words(wanted),
        placements=words(placements),  # type: ignore[arg-type]
        dtype=dtype or target.default_dtype,
        windows=parse_int_list(window, "--window") if window else (),
        long_lengths=tuple(n for n in beyond if n > max(usual)),
        dense=dense,
        mlp=mlp,
        modes=words(modes or ""),  # type: ignore[arg-type]
        caches=words(caches or ""),  # type: ignore[arg-type]
        segments=parse_int_list(segments, "--segments") if segments else (),
        preferred_only=quick and not providers,
    )
    settings = make_settings(
        target,
        quick=quick,
        budget_s=parse_duration(budget) if budget else None,
        time_cap_s=time_cap,
    )
    plan = make_plan(grid, target)
    if energy and kind == "cuda":
        plan = [replace(planned, energy=True) for planned in plan]
    if dry_run:
        show_plan(plan, target, settings, as_json=as_json)
        return
    opened = Store.open(store, shipped=False)
    ended = measure(
        plan,
        target,
        settings,
        opened,
        command=command_line(sys.argv[1:]),
        name=name,
        retry_failed=retry_failed,
        retry_doubtful=retry_doubtful,
        quiet=quiet,
    )
    if export is not None and opened.points().empty:
        say(f"no point was measured: nothing written to {export}")
    elif export is not None:
        say(f"wrote {opened.export_csv(export)} points to {export}")
    finish(ended, as_json=as_json)


def make_plan(grid: Grid, device: Device) -> list[PlannedJob]:
    """Raises UsageError if nothing of the grid can be run here at all."""
    from planner.catalog import load_model
    from profiler import plan

    jobs = plan.build(grid, device, [load_model(id) for id in grid.shapes])
    if not jobs:
        raise UsageError(
            f"nothing to measure: no provider of {', '.join(grid.mixers)} for "
            f"{', '.join(grid.phases)} runs on {device.kind}; see `attn-profile list`"
        )
    return jobs


def show_plan(
    plan: list[PlannedJob], device: Device, settings: Settings, *, as_json: bool
) -> None:
    """The points by family and phase, with estimated time and memory."""
    from planner.units import bytes_text, seconds_text
    from profiler.estimate import estimate

    hardware = local_hardware(device)
    parts: dict[tuple[str, str], list[PlannedJob]] = {}
    for planned in plan:
        workload = planned.job.workload
        parts.setdefault((workload.op.family, workload.phase), []).append(planned)
    named = {
        key: estimate(jobs, hardware, settings.limits, device.kind) for key, jobs in parts.items()
    }
    whole = estimate(plan, hardware, settings.limits, device.kind)
    if as_json:
        emit_json(
            {
                "device": device.name,
                "points": whole.points,
                "estimated_s": whole.seconds,
                "peak_bytes_at_least": whole.peak_bytes,
                "jobs": [
                    {
                        "workload": p.job.workload.short(),
                        "provider": p.job.provider,
                        "cells": [f"{c.mode} {c.cache}" for c in p.cells],
                        "unsupported": p.reason,
                    }
                    for p in plan
                ],
            }
        )
        return
    rows = [
        (family, phase, str(e.points), seconds_text(e.seconds), bytes_text(e.peak_bytes))
        for (family, phase), e in named.items()
    ]
    total = (
        "all",
        "",
        str(whole.points),
        seconds_text(whole.seconds),
        bytes_text(whole.peak_bytes),
    )
    table(
        [*rows, total],
        ("mixer", "phase", "points", "about", "memory, at least"),
        title=f"{device.name}: measuring alone, from the roofline; compiling comes on top",
    )


def local_hardware(device: Device) -> Any:
    """The catalog's peaks of a known GPU; else what a quick product and copy reach here."""
    from planner.catalog import hardware_for_device
    from profiler.measure.ceilings import measure_ceilings, measured_hardware

    known = hardware_for_device(device.name)
    if known is not None:
        return known
    return measured_hardware(device, measure_ceilings(device, device.default_dtype))


def finish(ended: Ended, *, as_json: bool) -> None:
    """Says what was recorded; exits 130 when interrupted and 4 with faults."""
    report(ended.name, ended.environment_id, ended.tally, ended.already, as_json=as_json)
    if ended.interrupted:
        say("interrupted; what was measured is kept: the same command goes on from here")
        raise typer.Exit(130)
    if ended.tally.left and not as_json:
        say("out of budget: the same command goes on from here")
    if ended.tally.faults:
        raise typer.Exit(4)


def report(name: str, environment_id: str, tally: Tally, already: int, *, as_json: bool) -> None:
    """What was recorded and where the time went."""
    outcomes = {outcome.value: n for outcome, n in tally.recorded.items()}
    if as_json:
        emit_json(
            {
                "run": name,
                "environment_id": environment_id,
                "recorded": outcomes,
                "already_finished": already,
                "left": tally.left,
                "seconds": {k: round(v, 3) for k, v in tally.split_s.items()},
                "prepare_seconds": {
                    f"{provider} ({family})": round(s, 3)
                    for (family, provider), s in tally.prepare_s.items()
                },
            }
        )
        return
    counted = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()) or "nothing new"
    print(f"run {name}: {counted}; {already} already there; {tally.left} left")
    total = sum(tally.split_s.values()) or 1.0
    shares = ", ".join(f"{k} {v:.1f} s" for k, v in tally.split_s.items() if v >= 0.05)
    aside = sum(tally.split_s.get(kind, 0.0) for kind in ("bookkeeping", "idle"))
    split = f"time {total:.1f} s: {shares}"
    print(f"{split}; bookkeeping and idle {100 * aside / total:.1f} %" if outcomes else split)
    slowest = sorted(tally.prepare_s.items(), key=lambda item: -item[1])[:SLOWEST]
    if slowest:
        busy = ", ".join(f"{provider} ({family}) {s:.0f} s" for (family, provider), s in slowest)
        print(f"prepared longest, beside each other: {busy}")


_PRIVATE = ("--store", "--export", "--folder")


def command_line(arguments: list[str]) -> str:
    """The command as typed, without where its files are."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in _PRIVATE:
            skip = argument in _PRIVATE
            continue
        if not argument.startswith(tuple(f"{p}=" for p in _PRIVATE)):
            kept.append(argument)
    return " ".join(["attn-profile", *kept])
