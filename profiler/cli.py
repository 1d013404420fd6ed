"""attn-profile: measure what mixers cost on this machine. `attn-profile run --quick`.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 ok (out_of_memory and
unsupported are results), 1 failure, 2 usage, 3 environment, 4 finished with mismatch, timeout or
error points, 130 interrupted with the state saved.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner import __version__
from planner.cli import emit_json, run_cli, say
from planner.errors import EnvironmentProblem, UsageError
from profiler.draw import (
    both_crossovers,
    crossover_text,
    draw_changes,
    draw_points,
    draw_residuals,
    records,
    show_frame,
    summary,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.architecture import Architecture
    from planner.hardware import Hardware
    from planner.store import Environment, Store
    from profiler.device import Device
    from profiler.plan import Grid, PlannedJob
    from profiler.sweep import Settings, Tally

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measures what token mixers cost on this machine, into the planner's store.",
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Store: a file or URL. Default: ATTN_STORE or the user's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
RunArgument = Annotated[
    str | None, typer.Argument(help="Run by name or number; default: the newest.")
]

QUICK_LENGTHS = "1k,2k,4k"
QUICK_RATIOS = "0:1,3:1"
DEFAULT_RATIOS = "0:1,1:1,3:1,5:1,7:1,11:1,1:0"
LONG_LENGTHS = {"cpu": "16k,32k", "cuda": "256k:1m"}
DEFAULT_LENGTHS = {"cpu": "1k:8k", "cuda": "1k:128k"}
DEFAULT_BATCHES = {"cpu": "1", "cuda": "1,8,64"}
DEFAULT_SHAPE = {"cpu": "tiny", "cuda": "llama-3.1-8b"}
MIN_SAMPLES = {"cpu": 10, "cuda": 20}  # on a GPU a sample of a short call is a millisecond
QUICK_TIME_CAP_S = 0.15

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")


def parse_duration(text: str) -> float:
    """ "8m" as 480 seconds; a bare number is seconds. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"budget must be a time such as 90s, 8m or 1h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2] or ""]


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# Looking


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Says what is here, what is missing and how to get it, and what disturbs a measurement."""
    require_torch()
    from dataclasses import asdict

    from profiler.doctor import examine

    found = examine()
    if as_json:
        emit_json([asdict(f) for f in found])
        return
    table(
        [(f.what, f.status, f.value, f.advice) for f in found],
        ("what", "status", "value", "what to do"),
    )


@app.command("list")
def list_providers(
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Lists mixers and providers, and which can run on this device."""
    require_torch()
    from profiler.device import resolve_device
    from profiler.providers import families

    target = resolve_device(device)
    rows = []
    for family in families().values():
        for p in family.providers:
            why = p.missing()
            if target.kind not in p.devices:
                why = f"runs on {' and '.join(p.devices)}"
            rows.append(
                (family.name, p.name, ", ".join(p.phases), ", ".join(p.dtypes), why or "yes")
            )
    header = ("mixer", "provider", "phases", "dtypes", f"usable on {target.kind}")
    if as_json:
        emit_json(
            [
                dict(zip(("mixer", "provider", "phases", "dtypes", "usable"), r, strict=True))
                for r in rows
            ]
        )
        return
    table(rows, header)


def require_torch() -> None:
    """Raises EnvironmentProblem without torch: the planner does not need it, measuring does."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise EnvironmentProblem(
            "measuring needs torch: pip install 'attention-planner[gpu]'"
        ) from None


# Measuring


@app.command()
def run(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shape, 1k to 4k, 2 ratios.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
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
        typer.Option("--ratios", help="Stacks at these linear:full ratios; none: no stacks."),
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
        bool, typer.Option("--energy", help="Also joules per call (2.5 s a point).")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure faults again.")
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
    from profiler.device import resolve_device
    from profiler.plan import DEFAULT_MIXERS, Grid, parse_int_list

    if quick:
        shape, lengths, ratios = shape or "tiny", lengths or QUICK_LENGTHS, ratios or QUICK_RATIOS
        batch = batch or "1"
        caches = caches or "cold"
    target = resolve_device(device)
    kind = target.kind
    wanted = "" if ratios == "none" else (ratios or DEFAULT_RATIOS)
    grid = Grid(
        shapes=words(shape or DEFAULT_SHAPE[kind]),
        mixers=words(mixers) if mixers else DEFAULT_MIXERS,
        providers=words(providers or ""),
        lengths=parse_int_list(lengths or DEFAULT_LENGTHS[kind], "--lengths"),
        batches=parse_int_list(batch or DEFAULT_BATCHES[kind], "--batch"),
        phases=words(phases),  # type: ignore[arg-type]  # checked by the grid
        ratios=words(wanted),
        placements=words(placements),  # type: ignore[arg-type]
        dtype=dtype or target.default_dtype,
        windows=parse_int_list(window, "--window") if window else (),
        long_lengths=parse_int_list(LONG_LENGTHS[kind], "--long") if long else (),
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
        energy=energy,
    )
    plan = make_plan(grid, target)
    if dry_run:
        show_plan(plan, target, settings, as_json=as_json)
        return
    measure(
        plan,
        target,
        settings,
        store=store,
        name=name,
        retry=retry_failed,
        export=export,
        quiet=quiet,
        as_json=as_json,
    )


def make_plan(grid: Grid, device: Device) -> list[PlannedJob]:
    """Raises UsageError if nothing of the grid can be run here at all."""
    from profiler import plan

    jobs = plan.build(grid, device, load_shapes(grid.shapes))
    if not jobs:
        raise UsageError(
            f"nothing to measure: no provider of {', '.join(grid.mixers)} for "
            f"{', '.join(grid.phases)} runs on {device.kind}; see `attn-profile list`"
        )
    return jobs


def load_shapes(ids: Sequence[str]) -> list[Architecture]:
    from planner.catalog import load_model

    return [load_model(id) for id in ids]


WORKER_BYTES = {"cpu": 400 << 20, "cuda": 1 << 30}
WORKER_SHARE = 0.3
"""Workers together may take this much of the device's memory just by being there."""


def make_settings(
    device: Device, *, quick: bool, budget_s: float | None, time_cap_s: float | None, energy: bool
) -> Settings:
    from profiler.measure.timing import Limits
    from profiler.sweep import Settings

    limits = Limits(min_samples=MIN_SAMPLES[device.kind])
    if quick:
        limits = replace(limits, time_cap_s=QUICK_TIME_CAP_S, min_samples_long=3)
    if time_cap_s is not None:
        if time_cap_s <= 0:
            raise UsageError(f"--time-cap must be positive, got {time_cap_s}")
        limits = replace(limits, time_cap_s=time_cap_s)
    room = int(WORKER_SHARE * device.memory_bytes / WORKER_BYTES[device.kind])
    return Settings(
        limits=limits,
        budget_s=budget_s,
        energy=energy,
        parallel=os.cpu_count() or 1,
        max_workers=max(2, min(room, 40)),
    )


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


def measure(
    plan: list[PlannedJob],
    device: Device,
    settings: Settings,
    *,
    store: str | None,
    name: str | None,
    retry: bool,
    export: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Runs the plan; exits 4 with faults and 130 when interrupted."""
    from planner.store import Store
    from profiler.accounts import Accounts
    from profiler.plan import count_points, unfinished
    from profiler.progress import make_progress
    from profiler.sweep import Sweep

    accounts = Accounts()
    opened = Store.open(store, shipped=False)
    environment = environment_of(device, opened)
    finished = opened.finished_keys(environment.id, retry_faults=retry)
    todo = unfinished(plan, finished, environment.id)
    run_id = opened.start_run(
        name or f"{device.kind}-{len(opened.runs()) + 1}",
        environment,
        command=command_line(sys.argv[1:]),
        planned_points=count_points(todo),
        commit=commit(),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tally: Tally | None = None
    with make_progress(quiet=quiet) as progress, suppress(KeyboardInterrupt):
        sweep = Sweep(
            opened, environment, device, settings, progress, run_id=run_id, accounts=accounts
        )
        tally = sweep.run(todo)
    opened.end_run(run_id, "done" if tally and tally.left == 0 else "interrupted")
    if export is not None:
        say(f"wrote {opened.export_csv(export)} points to {export}")
    if tally is None:
        say("interrupted; what was measured is kept: the same command goes on from here")
        raise typer.Exit(130)
    already = count_points(plan) - count_points(todo)
    report(opened.run(run_id).name, environment.id, tally, already, as_json=as_json)
    if tally.faults:
        raise typer.Exit(4)


def environment_of(device: Device, opened: Store) -> Environment:
    """This machine's environment, with the ceilings that earlier runs saw on it."""
    from profiler.measure.environment import fingerprint

    environment = fingerprint(device)
    known = opened.environments().get(environment.id)
    if known is None or "ceilings" not in known.facts:
        return environment
    return replace(environment, facts={**environment.facts, "ceilings": known.facts["ceilings"]})


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
            }
        )
        return
    counted = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()) or "nothing new"
    print(f"run {name}: {counted}; {already} already there; {tally.left} left")
    total = sum(tally.split_s.values())
    shares = ", ".join(f"{k} {v:.1f} s" for k, v in tally.split_s.items() if v >= 0.05)
    print(f"time {total:.1f} s: {shares}")
    if tally.left:
        say("out of budget: the same command goes on from here")


_PRIVATE = ("--store", "--export")


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


def commit() -> str:
    """The checkout's commit, "+" appended where it has changes; "" outside a checkout."""
    import subprocess

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


# Reading


@app.command()
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
    left = None
    if found.status == "running" and done:
        started = found.started_at.replace(tzinfo=found.started_at.tzinfo or UTC)
        spent = (datetime.now(UTC) - started).total_seconds()
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
    if left is not None:
        print(f"about {seconds_text(left)} to go at the pace so far")


@app.command()
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
    from profiler.additivity import residuals

    opened = Store.open(store, shipped=False)
    frame = opened.points(run=opened.run(run).id, family=mixer)
    if stacks:
        show_frame(residuals(frame), as_json=as_json, as_csv=as_csv, draw=draw_residuals)
    else:
        from profiler.check import bounds

        frame["bound_s"] = bounds(frame, rooflines(opened.environments()))
        show_frame(summary(frame), as_json=as_json, as_csv=as_csv, draw=draw_points)


@app.command()
def check(
    run: RunArgument = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Says which points do not look right (spread, order, roofline, repeats), and what to do."""
    from dataclasses import asdict

    from planner.store import Store
    from profiler.check import check as find

    opened = Store.open(store, shipped=False)
    frame = opened.points(run=opened.run(run).id if run else None)
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


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A run by name or number.")],
    b: Annotated[str, typer.Argument(help="The run to compare with it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Compares two runs: what became slower or faster, and whether crossovers moved."""
    from planner.store import Store
    from profiler.compare import compare as changes
    from profiler.compare import crossovers

    opened = Store.open(store, shipped=False)
    first, second = (opened.points(run=opened.run(r).id) for r in (a, b))
    found = changes(first, second)
    if as_json or as_csv:
        show_frame(found, as_json=as_json, as_csv=as_csv, draw=draw_changes)
        return
    draw_changes(found)
    keys = ["mixer", "phase", "batch_size", "dtype", "mode"]
    moved = crossovers(first).merge(crossovers(second), on=keys, suffixes=("_a", "_b"))
    rows = [
        (r.mixer, f"{r.phase} b{r.batch_size} {r.mode}", *map(crossover_text, both_crossovers(r)))
        for r in records(moved)
    ]
    table(rows, ("mixer", "as", f"crossover in {a}", f"in {b}"))
    significant = int(found["significant"].sum())
    say(f"{significant} of {len(found)} points changed significantly")


# Files


@app.command("export")
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


@app.command("import")
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
    count = Store.open(store, shipped=False).import_csv(file)
    say(f"read {count} points from {file}")


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
app.add_typer(cache_app, name="cache")


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


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    sys.exit(run_cli(app))


if __name__ == "__main__":
    main()
