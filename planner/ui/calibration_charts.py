"""Charts of the Calibration page: DataFrame in, Altair chart out."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from planner.calibration.imported import HIGH, LOW
from planner.report.palette import BLUE, GREEN, NEUTRAL, ORANGE, OUTLINE, PURPLE, VERMILLION
from planner.ui.calibration_frames import (
    AS_MODEL,
    FROM_KERNELS,
    FROM_LAYERS,
    INSIDE,
    LESS_STARTS,
    OTHER,
    SIZED,
)
from planner.ui.charts import Chart, looks, reference_rule

ROW_HEIGHT = 44
LEGEND = alt.Legend(title=None, orient="top", symbolOpacity=1, labelLimit=420, columns=2)


# Kernels

ORIGINS = {"measured here": (BLUE, "circle"), "imported": (ORANGE, "diamond")}


def fold_chart(frame: pd.DataFrame, *, order: Sequence[str]) -> Chart:
    """Median error of each kernel by what was left out; a bar at the middle kernel."""
    y = alt.Y(
        "what:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=230, labelOverlap=False)
    )
    x = alt.X(
        "median_ape:Q",
        title="Median error of a kernel, %",
        scale=alt.Scale(type="log", domainMin=0.1, clamp=True),
        axis=alt.Axis(values=[0.1, 1, 10, 100], format="~g"),
    )
    colour, shape = looks("origin", ORIGINS, LEGEND)
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=60, opacity=0.65)
        .encode(x=x, y=y, yOffset="origin:N", color=colour, shape=shape, tooltip=_KERNEL_TOOLTIP)
    )
    middle = (
        alt.Chart(frame)
        .mark_tick(thickness=3, size=30, color=NEUTRAL)
        .encode(x="median(median_ape):Q", y=y)
    )
    return alt.layer(dots, middle).properties(height=60 + ROW_HEIGHT * frame["what"].nunique())


def coverage_chart(frame: pd.DataFrame, *, order: Sequence[str]) -> Chart:
    """Share of left-out points inside their 80 % interval; rows as in `fold_chart` beside it."""
    y = alt.Y("what:N", sort=list(order), title=None, axis=None)
    x = alt.X(
        "coverage80:Q",
        title="Inside the 80 % interval",
        scale=alt.Scale(domain=(0, 1)),
        axis=alt.Axis(format="%"),
    )
    colour, shape = looks("origin", ORIGINS, LEGEND)
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=60, opacity=0.65)
        .encode(x=x, y=y, yOffset="origin:N", color=colour, shape=shape, tooltip=_KERNEL_TOOLTIP)
    )
    wanted = reference_rule("coverage80", 0.8)
    return alt.layer(wanted, dots).properties(height=60 + ROW_HEIGHT * frame["what"].nunique())


_KERNEL_TOOLTIP = [
    alt.Tooltip("family:N", title="Operation"),
    alt.Tooltip("provider:N", title="Provider"),
    alt.Tooltip("phase:N", title="Phase"),
    alt.Tooltip("mode:N", title="Runtime"),
    alt.Tooltip("n:Q", title="Points left out"),
    alt.Tooltip("median_ape:Q", title="Median error, %", format=".2f"),
    alt.Tooltip("p90_ape:Q", title="90 % of errors below, %", format=".1f"),
    alt.Tooltip("coverage80:Q", title="Inside the 80 % interval", format=".0%"),
]

# Stacks

STACK_LOOKS = {
    AS_MODEL: (BLUE, "diamond"),
    FROM_KERNELS: (VERMILLION, "triangle-up"),
    FROM_LAYERS: (ORANGE, "square"),
    LESS_STARTS: (GREEN, "circle"),
}


def stack_chart(frame: pd.DataFrame, *, order: Sequence[str]) -> Chart:
    """Error of each stack's prediction in percent, by ratio and way of predicting."""
    colour, shape = looks("way", STACK_LOOKS, LEGEND)
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=55, opacity=0.7)
        .encode(
            x=alt.X("ratio:N", sort=list(order), title="Linear : full", axis=_FLAT),
            xOffset=alt.XOffset("way:N", sort=list(STACK_LOOKS)),
            y=alt.Y("percent:Q", title="Predicted over measured, %"),
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("label:N", title="Stack"),
                alt.Tooltip("way:N", title="Predicted from"),
                alt.Tooltip("length:Q", title="Length, tokens", format=","),
                alt.Tooltip("measured_ms:Q", title="Measured, ms", format=".4~g"),
                alt.Tooltip("predicted_ms:Q", title="Predicted, ms", format=".4~g"),
                alt.Tooltip("percent:Q", title="Error, %", format="+.1f"),
            ],
        )
    )
    return alt.layer(reference_rule("percent", 0.0, across=True), dots).properties(height=330)


_FLAT = alt.Axis(labelAngle=0)

# Ours beside imported ones

VERDICTS = {
    INSIDE: (GREEN, "circle"),
    SIZED: (ORANGE, "square"),
    OTHER: (VERMILLION, "triangle-up"),
}


def ratio_chart(frame: pd.DataFrame) -> Chart:
    """Our time over theirs, a row per pair of providers; the band is 0.75 to 1.33."""
    pairs = list(dict.fromkeys(frame["pair"]))
    y = alt.Y("pair:N", sort=pairs, title=None, axis=alt.Axis(labelLimit=420, labelOverlap=False))
    x = alt.X(
        "ratio:Q",
        title="Our time over theirs",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(values=[0.5, LOW, 1, HIGH, 2, 3, 4, 5], format="~g"),
    )
    colour, shape = looks("verdict", VERDICTS, LEGEND)
    band = (
        alt.Chart(pd.DataFrame({"low": [LOW], "high": [HIGH]}))
        .mark_rect(opacity=0.14, color=GREEN)
        .encode(x=alt.X("low:Q", title="Our time over theirs"), x2="high:Q")
    )
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=55, opacity=0.7)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("shape:N", title="Heads x dims"),
                alt.Tooltip("phase:N", title="Phase"),
                alt.Tooltip("batch_size:Q", title="Batch"),
                alt.Tooltip("length:Q", title="Length, tokens", format=","),
                alt.Tooltip("versions:N", title="Versions"),
                alt.Tooltip("ours_us:Q", title="Ours, us", format=",.1f"),
                alt.Tooltip("theirs_us:Q", title="Theirs, us", format=",.1f"),
                alt.Tooltip("ratio:Q", title="Ratio", format=".2f"),
                alt.Tooltip("left:Q", title="Left of it, causes at their most", format=".2f"),
                alt.Tooltip("causes:N", title="Causes"),
            ],
        )
    )
    return alt.layer(band, dots).properties(height=70 + 26 * len(pairs))


# Published figures

CLAIM_LOOKS = {"published": (ORANGE, "diamond"), "predicted": (BLUE, "circle")}


def claim_chart(frame: pd.DataFrame, *, title: str) -> Chart:
    """Published and predicted figures, a row each; the rule is the prediction's 80 % interval."""
    order = list(dict.fromkeys(frame["label"]))
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, labelOverlap=False))
    scale = alt.Scale(zero=False, nice=True)
    rules = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=4, opacity=0.5, color=BLUE)
        .encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", y=y)
    )
    long = frame.melt(
        id_vars=["label", "basis", "where"],
        value_vars=["published", "predicted"],
        var_name="figure",
        value_name="value",
    )
    colour, shape = looks("figure", CLAIM_LOOKS, LEGEND)
    dots = (
        alt.Chart(long)
        .mark_point(filled=True, size=110, opacity=1, stroke=OUTLINE, strokeWidth=0.7)
        .encode(
            x=alt.X("value:Q", title=title, scale=scale),
            y=y,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("label:N", title="What"),
                alt.Tooltip("figure:N", title="Figure"),
                alt.Tooltip("value:Q", title=title, format=".3~g"),
                alt.Tooltip("basis:N", title="Basis of the prediction"),
                alt.Tooltip("where:N", title="Published in"),
            ],
        )
    )
    return alt.layer(rules, dots).properties(height=120 + 26 * len(order))


BATCH_LOOKS = {
    "both at the batch": (BLUE, "circle"),
    "this model at the batch, the other alone": (PURPLE, "square"),
}


def batch_chart(frame: pd.DataFrame, *, headline: float, ceiling: float) -> Chart:
    """Speed-up per token over sequences decoded at once: what a headline can and cannot be."""
    long = frame.rename(
        columns=dict(zip(("equal", "against_one"), BATCH_LOOKS, strict=True))
    ).melt(
        id_vars="batch_size", value_vars=list(BATCH_LOOKS), var_name="how", value_name="speedup"
    )
    x = alt.X(
        "batch_size:Q",
        title="Sequences decoded at once",
        scale=alt.Scale(type="log", base=2, nice=False, padding=14),
        axis=alt.Axis(values=sorted(set(frame["batch_size"].tolist())), format="d"),
    )
    y = alt.Y("speedup:Q", title="Time per token, times faster")
    colour, shape = looks("how", BATCH_LOOKS, LEGEND)
    base = alt.Chart(long)
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        tooltip=[
            alt.Tooltip("how:N", title="Compared"),
            alt.Tooltip("batch_size:Q", title="Sequences"),
            alt.Tooltip("speedup:Q", title="Times faster", format=".2f"),
        ],
    )
    marks = pd.DataFrame(
        {
            "speedup": [headline, ceiling],
            "name": [f"published {headline:.1f}x", f"ceiling {ceiling:.2f}x at equal batches"],
        }
    )
    rules = alt.Chart(marks).mark_rule(color=NEUTRAL, strokeDash=[5, 4]).encode(y="speedup:Q")
    names = (
        alt.Chart(marks)
        .mark_text(align="left", dx=4, dy=-6, color=NEUTRAL)
        .encode(x=alt.value(0), y="speedup:Q", text="name:N")
    )
    return alt.layer(rules, names, line, dots).properties(height=320)


# Accuracy


def miss_chart(frame: pd.DataFrame) -> Chart:
    """Rows outside their 80 % interval: the interval as a rule, the published value as a mark."""
    order = list(frame["label"])
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=380, labelOverlap=False))
    title = "Points against the full-attention control"
    tooltip = [
        alt.Tooltip("id:N", title="Row"),
        alt.Tooltip("source:N", title="Source"),
        alt.Tooltip("actual:Q", title="Published, points", format="+.1f"),
        alt.Tooltip("median:Q", title="Predicted, points", format="+.1f"),
        alt.Tooltip("low:Q", title="Interval from", format="+.1f"),
        alt.Tooltip("high:Q", title="to", format="+.1f"),
        alt.Tooltip("beyond:Q", title="Beyond it by", format=".1f"),
        alt.Tooltip("level:N", title="Predicted from"),
    ]
    rules = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=4, opacity=0.5, color=BLUE)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q", y=y)
    )
    actual = (
        alt.Chart(frame)
        .mark_point(filled=True, size=90, color=VERMILLION, shape="diamond", opacity=1)
        .encode(x=alt.X("actual:Q", title=title), y=y, tooltip=tooltip)
    )
    zero = reference_rule("x", 0.0)
    return alt.layer(zero, rules, actual).properties(height=60 + 22 * len(order))
