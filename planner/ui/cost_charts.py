"""Charts of the Cost page: DataFrame in, Altair chart out. The first model is drawn in blue, the
other in its mixer's colour; shape and dash say it too."""

from __future__ import annotations

import math
from collections.abc import Mapping

import altair as alt
import pandas as pd

from planner.report.palette import (
    BLUE,
    GREEN,
    GREY,
    NEUTRAL,
    ORANGE,
    OUTLINE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
)
from planner.ui.charts import Chart, length_axis, looks
from planner.ui.cost_frames import ROLES

ROLE_COLOURS = (VERMILLION, BLUE, PURPLE, SKY, GREY, ORANGE, GREEN, YELLOW)
MEMORY_COLOURS = {"weights": GREY, "KV cache": BLUE, "state": GREEN, "activations": ORANGE}


def price_chart(
    prices: pd.DataFrame, crossings: pd.DataFrame, side: str, colours: Mapping[str, str]
) -> Chart:
    """$ a million tokens of a side over the prompt's length, both logarithmic: 80 % bands, a rule
    where the other model becomes the cheaper one. `colours` maps model to colour."""
    frame = prices[prices["side"] == side]
    x = length_axis(frame, "Prompt, tokens")
    scale = alt.Scale(type="log", nice=False, padding=12)
    ticks = alt.Axis(format="$~g", values=_ticks(frame["low"].min(), frame["high"].max()))
    y = alt.Y("usd:Q", title=f"$ a million {side}", scale=scale, axis=ticks)
    colour, shape = _model(colours)
    base = alt.Chart(frame)
    band = base.mark_area(opacity=0.18).encode(
        x=x, y=alt.Y("low:Q", scale=scale, axis=ticks), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    dots = base.mark_point(filled=True, size=70, stroke=OUTLINE, strokeWidth=0.7, opacity=1)
    marks = dots.encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        tooltip=[
            alt.Tooltip("model:N", title="Model"),
            alt.Tooltip("length:Q", title="Prompt, tokens", format=","),
            alt.Tooltip("usd:Q", title=f"$ a million {side}", format="$.4~g"),
            alt.Tooltip("low:Q", title="80 % from", format="$.4~g"),
            alt.Tooltip("high:Q", title="to", format="$.4~g"),
            alt.Tooltip("batch_size:Q", title="Batch decoded"),
            alt.Tooltip("basis:N", title="Basis"),
        ],
    )
    here = crossings[crossings["side"] == side]
    return alt.layer(band, *_crossing_rule(here, x), line, marks).properties(height=380)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade that an axis of these values may show, within a decade 3 and 7."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    marks = (1, 2, 3, 5, 7) if high < 8 * low else (1, 2, 5)
    steps = [m * 10.0**k for k in decades for m in marks]
    return [v for v in steps if low / 2.5 <= v <= high * 2.5]


def _crossing_rule(crossings: pd.DataFrame, x: alt.X) -> list[alt.Chart]:
    if crossings.empty:
        return []
    base = alt.Chart(crossings)
    rule = base.mark_rule(color=NEUTRAL, strokeDash=[5, 4]).encode(
        x=x, tooltip=[alt.Tooltip("length:Q", title="Cheaper from, tokens", format=",.0f")]
    )
    label = base.mark_text(
        color=NEUTRAL, align="left", baseline="top", dx=5, dy=4, fontSize=12
    ).encode(x=x, y=alt.value(0), text=alt.Text("length:Q", format=",.0f"))
    return [rule, label]


def parts_chart(parts: pd.DataFrame, phase: str, models: list[str]) -> Chart:
    """TTFT or TPOT by role, one bar a model."""
    titles = [t for t in ROLES.values() if t in set(parts["role"])]
    colours = [c for t, c in zip(ROLES.values(), ROLE_COLOURS, strict=False) if t in titles]
    return (
        alt.Chart(parts[parts["phase"] == phase])
        .mark_bar(stroke=OUTLINE, strokeWidth=0.4)
        .encode(
            x=alt.X("sum(ms):Q", title=f"{phase}, ms"),
            y=_bars("model:N", models),
            color=alt.Color(
                "role:N",
                sort=titles,
                scale=alt.Scale(domain=titles, range=colours),
                legend=alt.Legend(title=None, orient="bottom", columns=2),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("role:N", title="Part"),
                alt.Tooltip("ms:Q", title="ms", format=".4~g"),
                alt.Tooltip("share:Q", title="Share", format=".1%"),
                alt.Tooltip("basis:N", title="Basis"),
                alt.Tooltip("providers:N", title="Provider"),
            ],
        )
        .properties(height=_height(len(models), legend_rows=3))
    )


def _bars(field: str, order: list[str]) -> alt.Y:
    axis = alt.Axis(labelLimit=220, labelOverlap=False)
    return alt.Y(field, title=None, sort=order, axis=axis)


def _height(bars: int, *, legend_rows: int = 1) -> int:
    """Of a page's bar chart: its axis, legend and padding come out of the height too."""
    return 34 * bars + 130 + 34 * (legend_rows - 1)


def memory_chart(memory: pd.DataFrame, models: list[str], capacity_gib: float) -> Chart:
    """Bytes by formula and as reserved, one bar each; the rule is what the engine may use."""
    there = [name for name in MEMORY_COLOURS if name in set(memory["what"])]
    order = [f"{m}, {rules}" for m in models for rules in ("ideal", "reserved")]
    frame = memory.assign(bar=memory["model"] + ", " + memory["rules"])
    bars = (
        alt.Chart(frame)
        .mark_bar(stroke=OUTLINE, strokeWidth=0.4)
        .encode(
            x=alt.X("sum(gib):Q", title="GiB on one device"),
            y=_bars("bar:N", order),
            color=alt.Color(
                "what:N",
                sort=there,
                scale=alt.Scale(domain=there, range=[MEMORY_COLOURS[t] for t in there]),
                legend=alt.Legend(title=None, orient="bottom", columns=2),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("rules:N", title="Rules"),
                alt.Tooltip("what:N", title="Holds"),
                alt.Tooltip("gib:Q", title="GiB", format=".4~g"),
                alt.Tooltip("batch_size:Q", title="Sequences"),
            ],
        )
    )
    rule = (
        alt.Chart(pd.DataFrame({"gib": [capacity_gib]}))
        .mark_rule(color=NEUTRAL, strokeDash=[5, 4])
        .encode(x="gib:Q", tooltip=[alt.Tooltip("gib:Q", title="Usable, GiB", format=".4~g")])
    )
    return alt.layer(bars, rule).properties(height=_height(len(order), legend_rows=2))


def fit_chart(fits: pd.DataFrame, colours: Mapping[str, str]) -> Chart:
    """Sequences that fit over their length: reserved solid, ideal dashed."""
    x = length_axis(fits, "Prompt, tokens")
    y = alt.Y(
        "sequences:Q",
        title="Sequences that fit",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(
            format="~s", values=_ticks(fits["sequences"].min(), fits["sequences"].max())
        ),
    )
    colour, shape = _model(colours)
    dash = alt.StrokeDash(
        "rules:N",
        scale=alt.Scale(domain=["reserved", "ideal"], range=[[1, 0], [5, 4]]),
        legend=alt.Legend(title=None, orient="bottom", columns=1),
    )
    base = alt.Chart(fits)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash)
    marks = (
        base.transform_filter("datum.rules == 'reserved'")
        .mark_point(filled=True, size=60, stroke=OUTLINE, strokeWidth=0.7, opacity=1)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("length:Q", title="Prompt, tokens", format=","),
                alt.Tooltip("sequences:Q", title="Sequences that fit", format=","),
                alt.Tooltip("limit:N", title="Limited by"),
            ],
        )
    )
    return alt.layer(line, marks).properties(height=380)


def _model(colours: Mapping[str, str]) -> tuple[alt.Color, alt.Shape]:
    legend = alt.Legend(title=None, orient="bottom", symbolOpacity=1, columns=2)
    shapes = ("circle", "diamond", "square", "triangle-up")
    by_name = {m: (c, s) for (m, c), s in zip(colours.items(), shapes, strict=False)}
    return looks("model", by_name, legend)
