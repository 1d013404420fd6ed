"""Cost figures: the numbers on the Cost page's cards, a model beside the first one."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.cost.model import PhaseCost
from planner.cost.price import Estimate
from planner.report.cost import CostReport, ModelReport
from planner.report.cost_text import (
    DOES_NOT_FIT,
    fit_text,
    phase_text,
    sequence_text,
    tpot_text,
    usd_estimate,
)
from planner.report.figures import FORMULA, Figure, length_text
from planner.units import bytes_text, seconds_text, times, usd_text


def cost_figures(report: CostReport) -> tuple[Figure, ...]:
    """Of the last model, against the first; of the only one without a comparison."""
    m, base = report.models[-1], report.models[0]
    figures = [_ttft(m, base), _tpot(m, base), _fits(m, base)]
    if m.price is not None and base.price is not None and m.cost.max_concurrency:
        figures.append(_usd("input", m.price.input, base.price.input, base))
        figures.append(_usd("output", m.price.output, base.price.output, base))
    figures.append(_sequence(m, base))
    return tuple(figures if m is not base else [_alone(f) for f in figures])


def _alone(figure: Figure) -> Figure:
    return replace(figure, baseline="", baseline_value=math.nan, change=math.nan)


def _ttft(m: ModelReport, base: ModelReport) -> Figure:
    tokens = length_text(m.cost.traffic.prompt_tokens)
    return _phase(
        "ttft_s",
        f"TTFT, {tokens} prompt",
        m.cost.prefill,
        base.cost.prefill,
        f"{base.name}: {phase_text(base.cost.prefill)}",
        "Time to first token: the prefill of one request alone, without queueing.",
    )


def _tpot(m: ModelReport, base: ModelReport) -> Figure:
    """Only of a batch that fits: without one there is nothing decoded, and nothing to compare."""
    batch, other = m.cost.batch_size, base.cost.batch_size
    figure = _phase(
        "tpot_s",
        f"TPOT at batch {batch}" if batch else "TPOT",
        m.cost.decode,
        base.cost.decode,
        f"{base.name}: {tpot_text(base)}" + (f" at batch {other}" if other else ""),
        "Time per output token: one decode step of the batch at its mean context.",
    )
    if not other:
        figure = replace(figure, baseline_value=math.nan, change=math.nan)
    return figure if batch else _unfit(figure)


def _unfit(figure: Figure) -> Figure:
    nan = math.nan
    return replace(
        figure, value=nan, low=nan, high=nan, change=nan, text=DOES_NOT_FIT,
        interval="not one sequence", basis=FORMULA,
    )  # fmt: skip


def _phase(
    name: str, label: str, mine: PhaseCost, theirs: PhaseCost, baseline: str, help: str
) -> Figure:
    return Figure(
        name=name,
        label=label,
        value=mine.seconds,
        low=mine.low,
        high=mine.high,
        unit="s",
        text=seconds_text(mine.seconds),
        interval=f"80 %: {seconds_text(mine.low)} to {seconds_text(mine.high)}",
        baseline_value=theirs.seconds,
        baseline=baseline,
        change=mine.seconds / theirs.seconds - 1.0,
        more_is_better=False,
        basis=mine.basis.label,
        help=f"{help} If the mixers were free it would be {times(mine.ceiling())} faster.",
    )


def _fits(m: ModelReport, base: ModelReport) -> Figure:
    value, other = m.cost.max_concurrency, base.cost.max_concurrency
    limits = fit_text(m).partition(" (")[2].rstrip(")")
    return Figure(
        name="max_concurrency",
        label="Sequences that fit",
        value=value,
        low=value,
        high=value,
        unit="sequences",
        text=f"{value:,}",
        interval=limits,
        baseline_value=other,
        baseline=f"{base.name}: {fit_text(base)}",
        change=value / other - 1.0 if other else math.nan,
        more_is_better=True,
        basis=FORMULA,
        help="Sequences of full length by the engine's rules; ideal is by formula alone.",
    )


def _usd(side: str, mine: Estimate, theirs: Estimate, base: ModelReport) -> Figure:
    other = usd_estimate(theirs) if base.cost.max_concurrency else DOES_NOT_FIT
    means = {
        "input": "The mean over the prompt's tokens, those found in the prefix cache included.",
        "output": "A decode step's cost, shared by the batch that fits.",
    }
    return Figure(
        name=f"usd_per_million_{side}_tokens",
        label=f"$ a million {side} tokens",
        value=mine.value,
        low=mine.low,
        high=mine.high,
        unit="usd",
        text=usd_text(mine.value),
        interval=f"80 %: {usd_text(mine.low)} to {usd_text(mine.high)}",
        baseline_value=theirs.value,
        baseline=f"{base.name}: {other}",
        change=mine.value / theirs.value - 1.0,
        more_is_better=False,
        basis=mine.basis.label,
        help=f"{means[side]} Devices alone: no margin, no staff.",
    )


def _sequence(m: ModelReport, base: ModelReport) -> Figure:
    mine, theirs = (x.reserved.at(x.context, 1) for x in (m, base))
    value, other = mine.per_sequence, theirs.per_sequence
    return Figure(
        name="sequence_bytes",
        label="Memory per sequence",
        value=value,
        low=value,
        high=value,
        unit="bytes",
        text=bytes_text(value),
        interval=f"ideal: {sequence_text(m.ideal.at(m.context, 1))}",
        baseline_value=other,
        baseline=f"{base.name}: {sequence_text(theirs)}",
        change=value / other - 1.0,
        more_is_better=False,
        basis=FORMULA,
        help="KV cache and state of one sequence at its full length, as the engine reserves it.",
    )
