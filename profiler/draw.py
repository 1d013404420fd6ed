"""What the command line draws: tables for people, CSV and JSON for programs, all on stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from planner.units import rate_text, seconds_text
from planner.workload import format_tokens, operation_from

if TYPE_CHECKING:
    import pandas as pd


PIPE_WIDTH = 160  # wide enough not to wrap where there is no terminal


def table(rows: Sequence[Sequence[str]], header: Sequence[str], title: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    drawn = Table(title=title or None, title_justify="left")
    for name in header:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console(width=width, highlight=False, markup=False).print(drawn)


SUMMARY = (
    "family",
    "spec",
    "phase",
    "batch_size",
    "new_tokens",
    "cached_tokens",
    "dtype",
    "provider",
    "variant",
    "mode",
    "cache_state",
    "outcome",
    "reason",
    "median_s",
    "p20_s",
    "p80_s",
    "num_samples",
    "timing_method",
    "gate_error",
    "peak_bytes",
    "model_flops",
    "min_bytes",
    "bound_s",
)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    order = ["family", "phase", "batch_size", "new_tokens", "cached_tokens", "provider", "mode"]
    return frame.sort_values(order)[list(SUMMARY)]


def show_frame(
    frame: pd.DataFrame, *, as_json: bool, as_csv: bool, draw: Callable[[pd.DataFrame], None]
) -> None:
    if as_json:
        print(json.dumps(json.loads(frame.to_json(orient="records")), indent=2))
    elif as_csv:
        print(frame.to_csv(index=False, lineterminator="\n"), end="")
    else:
        draw(frame)


def records(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples())


def draw_points(frame: pd.DataFrame) -> None:
    def percent(share: float) -> str:
        return "" if math.isnan(share) else f"{100 * share:.0f} %"

    rows = []
    for row in records(frame):
        spread = (row.p80_s - row.p20_s) / 2 / row.median_s if row.median_s > 0 else float("nan")
        time = f"{seconds_text(row.median_s)} ±{100 * spread:.1f} %"
        rows.append(
            (
                operation_from(row.family, json.loads(row.spec)).short(),
                row.phase,
                f"b{row.batch_size} {format_tokens(row.new_tokens)}"
                + (f" after {format_tokens(row.cached_tokens)}" if row.cached_tokens else ""),
                f"{row.provider} {row.variant}".strip(),
                f"{row.mode} {row.cache_state}",
                time if row.outcome == "ok" else f"{row.outcome}: {row.reason}",
                rate_text(row.model_flops / row.median_s, "FLOP/s"),
                seconds_text(row.bound_s),
                percent(row.bound_s / row.median_s),
            )
        )
    header = ("what", "phase", "tokens", "provider", "as", "median", "useful", "bound", "share")
    table(rows, header)


def draw_residuals(frame: pd.DataFrame) -> None:
    """Every stack, and how far off the sum is at each ratio."""
    rows = [
        (
            f"{row.pattern} mlp{row.mlp_size}" if row.mlp_size else row.pattern,
            row.phase,
            f"b{row.batch_size} {format_tokens(row.length)}",
            row.provider,
            f"{row.mode} {row.cache_state}",
            seconds_text(row.stack_s),
            seconds_text(row.sum_s),
            f"{100 * row.residual:+.1f} %",
        )
        for row in records(frame)
    ]
    header = ("pattern", "phase", "tokens", "providers", "as", "stack", "its layers", "residual")
    table(rows, header)
    shares = [
        (
            str(phase),
            str(ratio),
            str(len(part)),
            f"{100 * part['residual'].median():+.1f} %",
            f"{100 * part['residual'].abs().quantile(0.9):.1f} %",
        )
        for (phase, ratio), part in frame.groupby(["phase", "ratio"])
    ]
    table(shares, ("phase", "ratio", "stacks", "median residual", "90 % are within"))


MOVED = 0.05
"""A crossover that shifts by less stays where it is: it lies between measured lengths."""


def moved_text(a: float, b: float) -> str:
    """ "no", "+12 %", or "yes" where one of them is beyond the range."""
    if a == b:
        return "no"
    if not (math.isfinite(a) and math.isfinite(b)) or 0 in (a, b):
        return "yes"
    change = b / a - 1
    return f"{100 * change:+.0f} %" if abs(change) > MOVED else "no"


def moved_by(a: str, b: str) -> str:
    """Whose providers are the fastest ones, where that differs."""
    return "" if a == b else f"{a} -> {b}"


def both_crossovers(row: Any) -> tuple[float, float]:
    return row.crossover_tokens_a, row.crossover_tokens_b


def crossover_text(tokens: float) -> str:
    if tokens == 0:
        return "always cheaper"
    return "never cheaper" if tokens == float("inf") else f"{tokens:,.0f} tokens"


def draw_changes(found: pd.DataFrame) -> None:
    rows = [
        (
            r.family,
            r.phase,
            f"b{r.batch_size} {format_tokens(r.new_tokens + r.cached_tokens)}",
            r.provider,
            f"{r.mode} {r.cache_state}",
            seconds_text(r.a_s),
            seconds_text(r.b_s),
            f"{100 * r.change:+.1f} %",
            "yes" if r.significant else "no",
        )
        for r in records(found)
    ]
    header = ("mixer", "phase", "tokens", "provider", "as", "a", "b", "change", "significant")
    table(rows, header)
