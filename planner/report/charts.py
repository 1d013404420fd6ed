"""Charts of a recommendation: DataFrame or records in, Altair chart out. Shared by the dashboard
and the report.

Marks carry colour and shape, and every axis its unit. The neutral ink of rules and labels comes
from the theme that draws them, so that both light and dark pages can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from planner.report.designs import Design
from planner.report.model import Layer
from planner.report.palette import GREY, OUTLINE, styles_of

FADED = 0.22
LAYERS_PER_ROW = 48


def frontier_frame(designs: Sequence[Design]) -> pd.DataFrame:
    """One row per design with a cost: accuracy in percent, texts for the tooltip."""
    rows = [
        {
            "label": d.label,
            "short": "full" if d.is_baseline and d.ratio == "0:1" else d.ratio,
            "mixer": d.mixer,
            "role": d.role or ("baseline" if d.is_baseline else "candidate"),
            "cost": d.cost_ratio,
            "cost_low": d.cost_ratio_low,
            "cost_high": d.cost_ratio_high,
            "kept": 100 * d.accuracy_kept,
            "kept_low": 100 * d.accuracy_low,
            "kept_high": 100 * d.accuracy_high,
            "kept_interval": f"{100 * d.accuracy_low:.1f} to {100 * d.accuracy_high:.1f} %",
            "cost_interval": f"{d.cost_ratio_low:.2f}x to {d.cost_ratio_high:.2f}x",
            "feasible": d.feasible,
            "status": "meets every limit" if d.feasible else "; ".join(d.breaks),
            "evidence": f"{d.evidence}: {d.num_sources} sources, {d.num_rows} rows",
            "basis": d.cost_basis,
            "on_frontier": d.on_frontier,
            "covered": math.isfinite(d.accuracy_kept),
        }
        for d in designs
        if math.isfinite(d.cost_ratio)
    ]
    columns = None if rows else ["label", "mixer", "cost", "kept", "covered", "on_frontier"]
    return pd.DataFrame(rows, columns=columns)


def frontier_chart(
    frame: pd.DataFrame, *, floor: float = 0.0, baseline: str = "full attention"
) -> alt.LayerChart:
    """Cost against accuracy kept: intervals as rules, the frontier as a line, the rejected faded.

    `floor` in percent, 0 for none. Designs that the evidence does not cover are ticks along the
    bottom: their cost is known, their accuracy is not.
    """
    covered = frame[frame["covered"]]
    layers = [
        *_floor_rule(floor),
        _frontier_line(covered),
        _interval_rules(covered),
        _points(covered, baseline),
        _labels(covered),
        _uncovered_ticks(frame[~frame["covered"].astype(bool)]),
    ]
    return alt.layer(*layers).properties(height=380).resolve_scale(color="shared", shape="shared")


def _x(baseline: str = "") -> alt.X:
    title = f"GPU time per request, relative to {baseline}" if baseline else ""
    return alt.X(
        "cost:Q",
        title=title,
        scale=alt.Scale(zero=False, nice=True, padding=24),
        axis=alt.Axis(format=".2~f", labelExpr="datum.label + 'x'"),
    )


def _y() -> alt.Y:
    return alt.Y(
        "kept:Q",
        title="Accuracy kept, % of full attention",
        scale=alt.Scale(zero=False, nice=True, padding=18),
    )


def _mixer_scales(frame: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of the mixers on the chart, in one legend, whatever the theme's palette."""
    styles = styles_of(frame["mixer"])
    legend = alt.Legend(title="Mixer", orient="bottom", columns=4, symbolOpacity=1)
    domain = list(styles)
    colour = alt.Color(
        "mixer:N",
        scale=alt.Scale(domain=domain, range=[s.colour for s in styles.values()]),
        legend=legend,
    )
    shape = alt.Shape(
        "mixer:N",
        scale=alt.Scale(domain=domain, range=[s.shape for s in styles.values()]),
        legend=legend,
    )
    return colour, shape


def _floor_rule(floor: float) -> list[alt.Chart]:
    if not floor:
        return []
    data = pd.DataFrame({"kept": [floor], "text": [f"floor {floor:g} %"]})
    rule = alt.Chart(data).mark_rule(strokeDash=[6, 4], color=GREY).encode(y=_y())
    text = (
        alt.Chart(data)
        .mark_text(align="right", dx=-4, dy=-6, color=GREY, fontSize=11)
        .encode(y=_y(), x=alt.value("width"), text="text:N")
    )
    return [rule, text]


def _frontier_line(frame: pd.DataFrame) -> alt.Chart:
    on = frame[frame["on_frontier"].astype(bool)].sort_values("cost")
    return (
        alt.Chart(on)
        .mark_line(interpolate="step-after", color=GREY, strokeWidth=2, opacity=0.7)
        .encode(x=_x(), y=_y(), order="cost:Q")
    )


def _opacity() -> Any:
    return alt.condition("datum.feasible", alt.value(1.0), alt.value(FADED))


def _interval_rules(frame: pd.DataFrame) -> alt.LayerChart:
    colour, _ = _mixer_scales(frame)
    fade = alt.condition("datum.feasible", alt.value(0.45), alt.value(0.12))
    shared = {"color": colour, "opacity": fade}
    vertical = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=1.5)
        .encode(x=_x(), y=alt.Y("kept_low:Q"), y2="kept_high:Q", **shared)
    )
    horizontal = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=1.5)
        .encode(x=alt.X("cost_low:Q"), x2="cost_high:Q", y=_y(), **shared)
    )
    return alt.layer(vertical, horizontal)


def _points(frame: pd.DataFrame, baseline: str) -> alt.Chart:
    colour, shape = _mixer_scales(frame)
    big = "datum.role == 'recommended'"
    return (
        alt.Chart(frame)
        .mark_point(filled=True, stroke=OUTLINE)
        .encode(
            x=_x(baseline),
            y=_y(),
            color=colour,
            shape=shape,
            opacity=_opacity(),
            size=alt.condition(big, alt.value(320), alt.value(90)),
            strokeWidth=alt.condition(big, alt.value(2.5), alt.value(0.8)),
            tooltip=[
                alt.Tooltip("label:N", title="Design"),
                alt.Tooltip("cost:Q", title="Cost", format=".3~f"),
                alt.Tooltip("cost_interval:N", title="Cost, 80 %"),
                alt.Tooltip("kept:Q", title="Accuracy kept, %", format=".1f"),
                alt.Tooltip("kept_interval:N", title="Accuracy, 80 %"),
                alt.Tooltip("evidence:N", title="Evidence"),
                alt.Tooltip("basis:N", title="Cost basis"),
                alt.Tooltip("status:N", title="Limits"),
            ],
        )
    )


def _labels(frame: pd.DataFrame) -> alt.Chart:
    """The ratio beside the points one looks for: the frontier, the answer and the baseline."""
    named = frame["on_frontier"].astype(bool) | frame["role"].isin(
        ("recommended", "runner-up", "baseline")
    )
    colour, _ = _mixer_scales(frame)
    return (
        alt.Chart(frame[named])
        .mark_text(align="left", dx=11, dy=-9, fontSize=12, fontWeight="bold")
        .encode(x=_x(), y=_y(), text="short:N", color=colour, opacity=_opacity())
    )


def _uncovered_ticks(frame: pd.DataFrame) -> alt.Chart:
    data = frame.assign(why="no accuracy evidence: cost only") if len(frame) else frame
    return (
        alt.Chart(data)
        .mark_tick(thickness=2, height=12, color=GREY, orient="vertical")
        .encode(
            x=_x(),
            y=alt.value(alt.expr("height - 7")),
            tooltip=[
                alt.Tooltip("label:N", title="Design"),
                alt.Tooltip("cost:Q", title="Cost", format=".3~f"),
                alt.Tooltip("why:N", title="Accuracy"),
            ],
        )
    )


def layers_frame(layers: Sequence[Layer]) -> pd.DataFrame:
    """One row per layer with its place in the strip; long stacks wrap into equal rows."""
    rows = math.ceil(len(layers) / LAYERS_PER_ROW)
    per_row = math.ceil(len(layers) / rows) if rows else 1
    return pd.DataFrame(
        [
            {
                "layer": layer.index,
                "row": layer.index // per_row,
                "column": layer.index % per_row,
                "letter": layer.letter,
                "mixer": layer.mixer or "none",
                "title": layer.title,
                "dimensions": layer.dimensions,
            }
            for layer in layers
        ]
    )


def layers_chart(frame: pd.DataFrame) -> alt.LayerChart:
    """The stack as a strip: one cell per layer, first layer left, its letter on its colour."""
    mixers = [m for m in dict.fromkeys(frame["mixer"]) if m != "none"]
    styles = styles_of(mixers)
    colours = {**{m: s.colour for m, s in styles.items()}, "none": "#BBBBBB"}
    inks = {**{m: s.ink for m, s in styles.items()}, "none": "#000000"}
    names = [m for m in colours if m in set(frame["mixer"])]
    num_rows = int(frame["row"].max()) + 1
    x = alt.X("column:O", axis=None, scale=alt.Scale(paddingInner=0.12, paddingOuter=0))
    y = alt.Y("row:O", axis=None, scale=alt.Scale(paddingInner=0.2, paddingOuter=0))
    base = alt.Chart(frame).encode(x=x, y=y)
    cells = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color(
            "mixer:N",
            scale=alt.Scale(domain=names, range=[colours[m] for m in names]),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("layer:Q", title="Layer (from 0)"),
            alt.Tooltip("title:N", title="Mixer"),
            alt.Tooltip("dimensions:N", title="Dimensions"),
        ],
    )
    letters = base.mark_text(fontWeight="bold", fontSize=11).encode(
        text="letter:N",
        color=alt.Color(
            "mixer:N",
            scale=alt.Scale(domain=names, range=[inks[m] for m in names]),
            legend=None,
        ),
    )
    return (
        alt.layer(cells, letters)
        .resolve_scale(color="independent")
        .properties(height=30 * num_rows)
        .configure_view(strokeWidth=0)
    )
