"""Costs on the terminal: a column for each model, where the time goes, the price over length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from planner.cost.break_even import CONTEXTS
from planner.cost.memory import Memory
from planner.cost.model import PhaseCost, Throughput
from planner.cost.price import Crossing, Estimate, token_price
from planner.decision.recommendation import shortage_text
from planner.report.cost import CostReport, ModelReport, tpot
from planner.units import bytes_text, percent, seconds_text, times, usd_text
from planner.workload import format_tokens

Cell = Callable[[ModelReport], str]

DOES_NOT_FIT = "does not fit"
"""In the place of a number that only a model with room for a sequence has."""


def print_cost(report: CostReport, console: Console) -> None:
    for line in header(report):
        console.print(line)
    console.print()
    console.print(_figures(report))
    for m in report.models:
        for note in notes(m):
            console.print(f"note: {escape(m.name)}: {escape(note)}")
    for m in report.models:
        console.print()
        console.print(_breakdown(m))
    if report.models[0].over:
        console.print()
        console.print(_over_context(report))
        for line in crossing_lines(report):
            console.print(f"  {escape(line)}")


def header(report: CostReport) -> Iterator[str]:
    """What was asked, and whose price and engine rules answer it."""
    d, t = report.deployment, report.traffic
    devices = f"{d.tensor_parallel} x " if d.tensor_parallel > 1 else ""
    lengths = f"prompt {format_tokens(t.prompt_tokens)}, output {format_tokens(t.output_tokens)}"
    yield (
        f"[bold]{devices}{escape(d.hardware.name)}[/bold]: {lengths}, {t.concurrency} at once, "
        f"prefix-cache hits {percent(t.prefix_hit_rate)}, utilisation {percent(t.utilisation)}; "
        f"weights {d.weights_dtype}, KV {d.kv_dtype}, state {d.state_dtype}"
        + (", launched eagerly" if d.mode == "eager" else "")
    )
    yield f"engine {escape(d.rules.name)} [dim](rules read {d.rules.read_on})[/dim]"
    yield f"price {escape(price_text(report))}"


def price_text(report: CostReport) -> str:
    p = report.price
    if p is None:
        return (
            f"none listed for {report.deployment.hardware.name}: give --price USD_PER_HOUR or "
            "--prices FILE"
        )
    return f"{usd_text(p.usd_per_hour)} an hour and device, {p.kind} ({p.source}; {p.read_on})"


def _figures(report: CostReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for m in report.models:
        table.add_column(escape(m.name), justify="right")
    for name, cell in _rows(report):
        table.add_row(name, *(escape(cell(m)) for m in report.models))
    return table


def _rows(report: CostReport) -> Iterator[tuple[str, Cell]]:
    yield "mixers", lambda m: m.arch.describe()
    yield "TTFT", lambda m: phase_text(m.cost.prefill)
    yield "TPOT", tpot_text
    yield "  at batch", lambda m: f"{m.cost.batch_size}" if m.cost.batch_size else "n/a"
    if report.training is not None:
        step = report.training
        yield (
            f"training step, {step.batch_size} x {format_tokens(step.tokens)}",
            lambda m: phase_text(m.training) if m.training else "n/a",
        )
    yield "prefill, new tokens/s", lambda m: throughput_text(m.cost.prefill_throughput)
    yield "decode, tokens/s", lambda m: throughput_text(m.cost.decode_throughput)
    yield "if mixers were free: TTFT", lambda m: f"{times(m.cost.prefill.ceiling())} faster"
    yield "  TPOT", lambda m: f"{times(m.cost.decode.ceiling())} faster"
    context = length_text(report.traffic.context)
    yield "weights, a device", lambda m: bytes_text(m.reserved.weights_bytes())
    each = " a device" if report.deployment.tensor_parallel > 1 else ""
    yield f"{context}, ideal{each}", lambda m: sequence_text(m.ideal.at(m.context, 1))
    yield f"  reserved{each}", lambda m: sequence_text(m.reserved.at(m.context, 1))
    yield (
        f"  KV grows by{each}",
        lambda m: f"{bytes_text(m.reserved.kv_line(m.context)[1])} a token",
    )
    yield "sequences that fit", fit_text
    yield "longest sequence in memory", lambda m: length_text(m.max_context)
    if report.price is not None:
        yield (
            "$ a million input tokens",
            lambda m: usd_estimate(m.price.input if m.price else None),
        )
        yield (
            "$ a million output tokens",
            lambda m: usd_estimate(m.price.output if m.price else None),
        )
        yield "$ a request", lambda m: usd_estimate(m.price.request if m.price else None)
    yield "energy, input token", lambda m: energy_text(m.energy.input)
    yield "energy, output token", lambda m: energy_text(m.energy.output)


def phase_text(phase: PhaseCost) -> str:
    if phase.blocked:
        return "no figure"
    return (
        f"{seconds_text(phase.seconds)} ({seconds_text(phase.low)} to {seconds_text(phase.high)}) "
        f"{phase.basis.label}"
    )


def tpot_text(m: ModelReport) -> str:
    return phase_text(m.cost.decode) if m.cost.batch_size else DOES_NOT_FIT


def throughput_text(found: Throughput) -> str:
    if math.isnan(found.tokens_per_s):
        return "n/a"
    return f"{found.tokens_per_s:,.0f} ({found.low:,.0f} to {found.high:,.0f})"


def sequence_text(at: Memory) -> str:
    state = f" + {bytes_text(at.state)} state" if at.state else ""
    return f"{bytes_text(at.kv_cache)} KV{state}"


def fit_text(m: ModelReport) -> str:
    limits = {"weights": "weights", "kv_cache": "KV pool", "state": "state pool"}
    limit = limits.get(m.reserved.limited_by(m.context), "memory")
    ideal = m.ideal.max_concurrency(m.context)
    return f"{m.cost.max_concurrency:,} (limited by {limit}; {ideal:,} ideal)"


def length_text(tokens: float) -> str:
    return "unbounded" if math.isinf(tokens) else f"{tokens:,.0f} tokens"


def usd_estimate(found: Estimate | None) -> str:
    if found is None or math.isnan(found.value):
        return "n/a"
    return (
        f"{usd_text(found.value)} ({usd_text(found.low)} to {usd_text(found.high)}) "
        f"{found.basis.label}"
    )


def energy_text(found: Estimate | None) -> str:
    if found is None:
        return "not measured"
    return f"{found.value:.3g} J ({found.low:.3g} to {found.high:.3g}) {found.basis.label}"


def notes(m: ModelReport) -> Iterator[str]:
    """What stands in the way, and how the formula's break-even compares."""
    if m.cost.blocked:
        yield f"the profile says {m.cost.blocked}"
    trained = m.arch.max_context
    if trained is not None and m.context > trained:
        yield f"{m.context:,} tokens are beyond the model's context of {trained:,}"
    if m.cost.batch_size == 0:
        yield (
            f"it does not fit, {shortage_text(m.cost.memory)}; parts and energy of decoding are "
            "for a batch of 1 all the same"
        )
    elif m.cost.batch_size < m.cost.traffic.concurrency:
        yield f"{m.cost.batch_size} of {m.cost.traffic.concurrency} requests fit at once"
    if any(p.role == "launch" for p in (*m.cost.prefill.parts, *m.cost.decode.parts)):
        yield (
            "launches take what they took the host that measured them; those of the shipped H100 "
            "and H200 points differ by three times"
        )
    if m.break_even is not None:
        yield break_even_text(m)


def break_even_text(m: ModelReport) -> str:
    b = m.break_even
    assert b is not None
    formula = f"a state breaks even with the KV cache at {b.by_formula:,.0f} tokens by formula"
    at = b.measured
    if at is None:
        return f"{formula}; kernels were not measured with cache and state in these dtypes"
    if math.isnan(at.context):
        return f"{formula}, never at batch {b.batch_size} up to 1m by {at.basis.label} times"
    if at.context <= CONTEXTS[0]:
        return (
            f"{formula}, below {CONTEXTS[0]} tokens, the shortest looked at, at batch "
            f"{b.batch_size} by {at.basis.label} times of {at.full_provider} and "
            f"{at.state_provider}: overheads rule there, not bytes"
        )
    return (
        f"{formula}, at {at.context:,.0f} ({at.low:,.0f} to {at.high:,.0f}) at batch "
        f"{b.batch_size} by {at.basis.label} times of {at.full_provider} and "
        f"{at.state_provider}: residual {100 * at.residual:+.0f} %"
    )


def _breakdown(m: ModelReport) -> Table:
    """Parts of each phase, dearest first."""
    table = Table(
        box=None, pad_edge=False, title=f"{escape(m.name)}: where the time goes",
        title_justify="left",
    )  # fmt: skip
    for name in ("phase", "role", "part", "calls"):
        table.add_column(name, no_wrap=True, justify="right" if name == "calls" else "left")
    for name in ("time", "80 %", "share"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("basis", no_wrap=True)
    table.add_column("provider")
    phases = {"prefill": m.cost.prefill, "decode": m.cost.decode, "training": m.training}
    for name, phase in phases.items():
        if phase is None:
            continue
        total = sum(p.seconds for p in phase.parts)
        for p in sorted(phase.parts, key=lambda p: -p.seconds if p.seconds == p.seconds else 0):
            table.add_row(
                name,
                p.role,
                escape(p.name),
                str(p.count),
                seconds_text(p.seconds),
                f"{seconds_text(p.low)} to {seconds_text(p.high)}",
                percent(round(p.seconds / total, 4)),
                p.basis.label,
                escape(p.provider),
            )
            name = ""
    return table


def _over_context(report: CostReport) -> Table:
    """$ a million tokens (or seconds, without a price) against the prompt's length."""
    names = ", ".join(f"{i} {m.name}" for i, m in enumerate(report.models, start=1))
    title = f"over the prompt's length: {escape(names)}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("prompt", justify="right", no_wrap=True)
    what = ("TTFT", "TPOT") if report.price is None else ("$/M in", "$/M out")
    for i, _ in enumerate(report.models, start=1):
        for name in (*what, "batch", "basis"):
            table.add_column(f"{i}: {name}", justify="right", no_wrap=True)
    for i, first in enumerate(report.models[0].over):
        cells = [cell for m in report.models for cell in _length_cells(report, m, i)]
        table.add_row(format_tokens(first.context), *cells)
    return table


def _length_cells(report: CostReport, m: ModelReport, i: int) -> tuple[str, str, str, str]:
    cost = m.over[i].cost
    if report.price is None:
        sides = seconds_text(cost.ttft_s), seconds_text(tpot(cost).value)
    else:
        price = token_price(cost, report.price.usd_per_hour)
        sides = usd_text(price.input.value), usd_text(price.output.value)
    return *sides, str(cost.batch_size), cost.basis.label


def crossing_lines(report: CostReport) -> Iterator[str]:
    """From which length on each model's tokens are cheaper than the first one's."""
    first = report.models[0]
    for m in report.models[1:]:
        for side, found in m.crossings.items():
            yield f"{m.name}: {side} tokens {crossing_text(found, m)} than {first.name}'s"


def crossing_text(found: Crossing, m: ModelReport) -> str:
    lengths = [point.context for point in m.over]
    if math.isnan(found.context):
        return f"nowhere cheaper up to {format_tokens(lengths[-1])}"
    if found.context <= lengths[0]:
        return f"cheaper at every length from {format_tokens(lengths[0])}"
    high = "beyond" if math.isnan(found.high) else f"{found.high:,.0f}"
    return (
        f"cheaper from a prompt of {found.context:,.0f} tokens (80 %: {found.low:,.0f} to {high})"
    )
