"""Figures: the numbers on the card, each as text with its interval, baseline and basis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.cost.basis import worst
from planner.cost.ratio import cost_ratio
from planner.decision.explain import score_text
from planner.decision.recommendation import Evaluated, Recommendation
from planner.units import bytes_text, percent, seconds_text, times
from planner.workload import format_tokens

FORMULA = "formula"
"""The basis of bytes: exact by the layers' dimensions, nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, its 80 % interval and the baseline's, as values and as text.

    `unit` is s, bytes, sequences or factor. `change` is relative to the baseline, NaN where that
    says nothing; lower is better unless `more_is_better`.
    """

    name: str
    label: str
    value: float
    low: float
    high: float
    unit: str
    text: str
    interval: str
    baseline_value: float
    baseline: str
    change: float
    more_is_better: bool
    basis: str
    help: str


def figures_of(found: Recommendation) -> tuple[Figure, ...]:
    """The card's figures, in order of reading; none where nothing is recommended."""
    if found.winner is None:
        return ()
    e, base = found.winner, found.baseline
    return (
        _accuracy(e, base),
        _cost(e, base),
        _ttft(e, base),
        _tpot(e, base),
        _session(e, base),
        _concurrency(e, base),
    )


def baseline_name(base: Evaluated) -> str:
    """What the others are compared with, in a word or two."""
    return "full attention" if base.candidate.mixer == "full_attention" else "model as it is"


def _accuracy(e: Evaluated, base: Evaluated) -> Figure:
    q = e.quality
    control = e.candidate.is_baseline
    return Figure(
        name="accuracy_kept",
        label="Accuracy kept",
        value=q.median,
        low=q.low,
        high=q.high,
        unit="factor",
        text=percent(round(q.median, 3)) if q.covered else "not covered",
        interval=score_text(e),
        baseline_value=1.0,
        baseline=f"{baseline_name(base)}: 100 % by definition",
        change=math.nan if control else q.median - 1.0,
        more_is_better=True,
        basis="definition" if control else q.basis,
        help="Task-weighted accuracy divided by that of a full-attention control of the same "
        "recipe. The interval holds the true value with 80 % probability.",
    )


def _cost(e: Evaluated, base: Evaluated) -> Figure:
    """Against the baseline's; by itself where no session of the baseline fits."""
    ratio = cost_ratio(e.cost, base.cost)
    if not math.isfinite(ratio.value):
        return _gpu_seconds(e, base)
    return Figure(
        name="cost_ratio",
        label=f"Cost against {baseline_name(base)}",
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        unit="factor",
        text=times(ratio.value),
        interval=f"80 %: {times(ratio.low)} to {times(ratio.high)}",
        baseline_value=1.0,
        baseline=f"{seconds_text(e.cost.gpu_seconds_per_request)} against "
        f"{seconds_text(base.cost.gpu_seconds_per_request)} of GPU time a request",
        change=ratio.value - 1.0,
        more_is_better=False,
        basis=worst((e.cost.basis, base.cost.basis)).label,
        help=f"{GPU_SECONDS} Errors in kernels that both designs run cancel.",
    )


GPU_SECONDS = (
    "GPU seconds per request: the prefill, plus each output token's share of a decode step at the "
    "batch that fits."
)


def _gpu_seconds(e: Evaluated, base: Evaluated) -> Figure:
    seconds = e.cost.gpu_seconds_per_request
    low, high = e.cost.gpu_seconds_interval()
    return Figure(
        name="gpu_seconds_per_request",
        label="GPU time a request",
        value=seconds,
        low=low,
        high=high,
        unit="s",
        text=seconds_text(seconds),
        interval=_seconds_interval(low, high),
        baseline_value=math.nan,
        baseline=f"{baseline_name(base)}: no session fits",
        change=math.nan,
        more_is_better=False,
        basis=e.cost.basis.label,
        help=GPU_SECONDS,
    )


def _ttft(e: Evaluated, base: Evaluated) -> Figure:
    cost, other = e.cost, base.cost
    tokens = length_text(cost.traffic.prompt_tokens)
    return Figure(
        name="ttft_s",
        label=f"TTFT, {tokens} prompt",
        value=cost.ttft_s,
        low=cost.prefill.low,
        high=cost.prefill.high,
        unit="s",
        text=seconds_text(cost.ttft_s),
        interval=_seconds_interval(cost.prefill.low, cost.prefill.high),
        baseline_value=other.ttft_s,
        baseline=f"{baseline_name(base)}: {seconds_text(other.ttft_s)}",
        change=cost.ttft_s / other.ttft_s - 1.0,
        more_is_better=False,
        basis=cost.prefill.basis.label,
        help="Time to first token: the prefill of one request alone, without queueing. If the "
        f"mixers were free it would be {cost.prefill.ceiling():.2f}x faster.",
    )


def _tpot(e: Evaluated, base: Evaluated) -> Figure:
    cost, other = e.cost, base.cost
    against = f"{seconds_text(other.tpot_s)} at batch {other.batch_size}"
    return Figure(
        name="tpot_s",
        label=f"TPOT at batch {cost.batch_size}",
        value=cost.tpot_s,
        low=cost.decode.low,
        high=cost.decode.high,
        unit="s",
        text=seconds_text(cost.tpot_s),
        interval=_seconds_interval(cost.decode.low, cost.decode.high),
        baseline_value=other.tpot_s,
        baseline=f"{baseline_name(base)}: {against if other.batch_size else 'does not fit'}",
        change=cost.tpot_s / other.tpot_s - 1.0,
        more_is_better=False,
        basis=cost.decode.basis.label,
        help="Time per output token: one decode step of the batch at its mean context, not "
        "disturbed by prefills. If the mixers were free it would be "
        f"{cost.decode.ceiling():.2f}x faster.",
    )


def _session(e: Evaluated, base: Evaluated) -> Figure:
    value, other = e.cost.memory.per_sequence, base.cost.memory.per_sequence
    several = e.cost.devices > 1
    return Figure(
        name="session_bytes",
        label="Memory per session and device" if several else "Memory per session",
        value=value,
        low=value,
        high=value,
        unit="bytes",
        text=bytes_text(value),
        interval=f"at {length_text(e.cost.traffic.context)} tokens; the next token adds "
        f"{bytes_text(e.cost.kv_slope_bytes)}{' on all devices' if several else ''}",
        baseline_value=other,
        baseline=f"{baseline_name(base)}: {bytes_text(other)}",
        change=value / other - 1.0,
        more_is_better=False,
        basis=FORMULA,
        help="KV cache in whole pages plus recurrent and convolution state, of one sequence at "
        "its full length.",
    )


def _concurrency(e: Evaluated, base: Evaluated) -> Figure:
    memory = e.cost.memory
    value, other = e.cost.max_concurrency, base.cost.max_concurrency
    return Figure(
        name="max_concurrency",
        label="Sessions that fit",
        value=value,
        low=value,
        high=value,
        unit="sequences",
        text=f"{value:,}",
        interval=f"weights take {bytes_text(memory.weights)} of "
        f"{bytes_text(memory.capacity)} usable",
        baseline_value=other,
        baseline=f"{baseline_name(base)}: {other:,}",
        change=value / other - 1.0 if other else math.nan,
        more_is_better=True,
        basis=FORMULA,
        help="Sequences of full length that fit beside the weights and the activations of one "
        "prefill chunk, in the memory that an engine may use.",
    )


def length_text(tokens: int) -> str:
    """A length as people write it: "32k", "33,280"."""
    text = format_tokens(tokens)
    return f"{tokens:,}" if text.isdigit() else text


def _seconds_interval(low: float, high: float) -> str:
    return f"80 %: {seconds_text(low)} to {seconds_text(high)}"
