"""Charts of the pages: DataFrame in, Altair chart out. Those of a recommendation are shared with
the report and live in `planner.report.charts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from planner.report.palette import BLUE, GREEN, GREY, NEUTRAL, ORANGE, OUTLINE, PURPLE, styles_of
from planner.workload import format_tokens

Chart = alt.Chart | alt.LayerChart | alt.FacetChart

LENGTH_LABEL = (
    "datum.value >= 1048576 ? format(datum.value / 1048576, '~f') + 'm' : "
    "datum.value >= 1024 ? format(datum.value / 1024, '~f') + 'k' : format(datum.value, '~f')"
)
"""Lengths on an axis as people write them: 1k is 1,024."""

KIND_LOOKS = {
    "windowed": (ORANGE, "square"),
    "recurrent": (GREEN, "diamond"),
    "sparse": (PURPLE, "triangle-up"),
    "convolution": (GREY, "cross"),
    "full": (BLUE, "circle"),
}


# Encodings that every page's charts share


def length_axis(frame: pd.DataFrame, title: str, *, padding: int = 14) -> alt.X:
    """Lengths in tokens, doubling by doubling, a tick at each that occurs (the first 24)."""
    values = sorted({int(v) for v in frame["length"] if v > 0})
    return alt.X(
        "length:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, nice=False, padding=padding),
        axis=alt.Axis(labelExpr=LENGTH_LABEL, values=values[:24]),
    )


def looks(
    field: str, by_name: Mapping[str, tuple[str, str]], legend: alt.Legend
) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of each value, in one legend, so that neither carries it alone."""
    names = list(by_name)
    colours, shapes = ([look[i] for look in by_name.values()] for i in (0, 1))
    return (
        alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape(f"{field}:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def reference_rule(field: str, value: float, *, across: bool = False) -> alt.Chart:
    """A dashed line at what is compared with: upright at an x, `across` at a y."""
    rule = alt.Chart(pd.DataFrame({field: [value]})).mark_rule(color=NEUTRAL, strokeDash=[5, 4])
    return rule.encode(y=f"{field}:Q") if across else rule.encode(x=f"{field}:Q")


# Measurements and evidence


def _time_axis(frame: pd.DataFrame, field: str = "latency_ms") -> alt.Y:
    """Logarithmic, a line per decade: 0.01, 0.1, 1 …"""
    times = frame[["latency_ms", "roofline_ms"]].to_numpy()
    low = math.floor(math.log10(np.nanmin(times)))
    high = math.ceil(math.log10(np.nanmax(times)))
    return alt.Y(
        f"{field}:Q",
        title="Latency per call, ms",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=alt.Axis(format="~g", values=[10.0**k for k in range(low, high + 1)]),
    )


def latency_chart(frame: pd.DataFrame, *, by: str, length_title: str) -> Chart:
    """Latency over length, both logarithmic: median, p20 to p80 as a band, roofline dashed.

    `by` is the column whose values get a line each: provider or family.
    """
    x, y = length_axis(frame, length_title, padding=20), _time_axis(frame)
    colour, shape = _series(frame, by)
    base = alt.Chart(frame)
    tooltip = [
        alt.Tooltip("family:N", title="Mixer"),
        alt.Tooltip("shape:N", title="Heads x dims"),
        alt.Tooltip("provider:N", title="Provider"),
        alt.Tooltip("length:Q", title="Length, tokens", format=","),
        alt.Tooltip("latency_ms:Q", title="Median, ms", format=".4~g"),
        alt.Tooltip("p20_ms:Q", title="p20, ms", format=".4~g"),
        alt.Tooltip("p80_ms:Q", title="p80, ms", format=".4~g"),
        alt.Tooltip("roofline_ms:Q", title="Roofline, ms", format=".4~g"),
        alt.Tooltip("roofline_share:Q", title="Of the roofline", format=".1%"),
        alt.Tooltip("num_samples:Q", title="Samples"),
    ]
    band = base.mark_area(opacity=0.18).encode(
        x=x, y=_time_axis(frame, "p20_ms"), y2="p80_ms:Q", color=colour
    )
    bound = base.mark_line(strokeDash=[5, 4], strokeWidth=1.5, opacity=0.8).encode(
        x=x,
        y=_time_axis(frame, "roofline_ms"),
        **({"color": colour} if by != "provider" else {"color": alt.value(NEUTRAL)}),
        detail=by,
    )
    line = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    dots = base.mark_point(filled=True, size=75, stroke=OUTLINE, strokeWidth=0.7, opacity=1)
    marks = dots.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)
    return alt.layer(band, bound, line, marks).properties(height=420)


def _series(frame: pd.DataFrame, by: str) -> tuple[alt.Color, alt.Shape]:
    """A mixer's own colour and shape; the theme's for providers."""
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolOpacity=1)
    if by == "provider":
        return alt.Color(f"{by}:N", legend=legend), alt.Shape(f"{by}:N", legend=legend)
    styles = styles_of(frame[by])
    return looks(by, {name: (s.colour, s.shape) for name, s in styles.items()}, legend)


def residual_chart(frame: pd.DataFrame) -> Chart:
    """How far each measured stack is from the sum of its layers, in percent, by mixer."""
    lengths = sorted(set(frame["length"]))
    order = [format_tokens(int(length)) for length in lengths]
    data = frame.assign(
        percent=100 * frame["residual"],
        at=[format_tokens(int(length)) for length in frame["length"]],
    )
    colour, shape = _series(data, "mixer")
    zero = reference_rule("percent", 0.0, across=True)
    dots = alt.Chart(data).mark_point(filled=True, size=75, opacity=0.75)
    points = dots.encode(
        x=alt.X("at:N", title="Length, tokens", sort=order, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("mixer:N"),
        y=alt.Y("percent:Q", title="Measured over the sum of layers, %"),
        color=colour,
        shape=shape,
        tooltip=[
            alt.Tooltip("label:N", title="Stack"),
            alt.Tooltip("pattern:N", title="Layers"),
            alt.Tooltip("phase:N", title="Phase"),
            alt.Tooltip("batch_size:Q", title="Batch"),
            alt.Tooltip("length:Q", title="Length, tokens", format=","),
            alt.Tooltip("measured_ms:Q", title="Measured, ms", format=".4~g"),
            alt.Tooltip("predicted_ms:Q", title="Sum of layers, ms", format=".4~g"),
            alt.Tooltip("percent:Q", title="Difference, %", format="+.1f"),
            alt.Tooltip("provider:N", title="Providers"),
        ],
    )
    return alt.layer(zero, points).properties(height=340)


def retention_chart(rows: pd.DataFrame, bands: pd.DataFrame, *, order: Sequence[str]) -> Chart:
    """Accuracy kept by ratio band and mixer kind: every comparison a faint dot, quartiles a bar,
    the median a mark. `order` is that of the bands, top down."""
    kinds = [k for k in KIND_LOOKS if k in set(bands["kind"])]
    legend = alt.Legend(title=None, orient="bottom", symbolOpacity=1, symbolSize=110)
    shown = [name for name in order if name in set(bands["band"])]
    y = alt.Y("band:N", title="Linear : full", sort=shown, axis=alt.Axis(grid=False))
    offset = alt.YOffset("kind:N", sort=kinds)
    colour, shape = looks("kind", {k: KIND_LOOKS[k] for k in kinds}, legend)
    title = "Accuracy kept, % of the full-attention control"
    x = alt.X("percent:Q", title=title, scale=alt.Scale(zero=False, nice=True))
    dots = (
        alt.Chart(rows.assign(percent=100 * rows["retention"]))
        .mark_point(filled=True, size=26, opacity=0.28)
        .encode(
            x=x,
            y=y,
            yOffset=offset,
            color=colour,
            tooltip=[
                alt.Tooltip("model:N", title="Model"),
                alt.Tooltip("task:N", title="Task"),
                alt.Tooltip("value:Q", title="Value", format=".1f"),
                alt.Tooltip("control_value:Q", title="Control", format=".1f"),
                alt.Tooltip("points:Q", title="Points", format="+.1f"),
                alt.Tooltip("eval_length:Q", title="Evaluated at, tokens", format=","),
                alt.Tooltip("params_b:Q", title="Parameters, 10^9"),
                alt.Tooltip("source:N", title="Source"),
            ],
        )
    )
    percent = bands.assign(
        percent=100 * bands["median"], low=100 * bands["q1"], high=100 * bands["q3"]
    )
    base = alt.Chart(percent).encode(y=y, yOffset=offset, color=colour)
    bars = base.mark_rule(strokeWidth=4, opacity=0.65).encode(
        x=alt.X("low:Q", title=title), x2="high:Q"
    )
    medians = base.mark_point(filled=True, size=150, stroke=OUTLINE, opacity=1).encode(
        x=x,
        shape=shape,
        tooltip=[
            alt.Tooltip("kind:N", title="Mixer kind"),
            alt.Tooltip("band:N", title="Linear : full"),
            alt.Tooltip("percent:Q", title="Median, %", format=".1f"),
            alt.Tooltip("low:Q", title="Lower quartile, %", format=".1f"),
            alt.Tooltip("high:Q", title="Upper quartile, %", format=".1f"),
            alt.Tooltip("rows:Q", title="Rows"),
            alt.Tooltip("sources:Q", title="Sources"),
        ],
    )
    control = (
        alt.Chart(pd.DataFrame({"percent": [100.0]}))
        .mark_rule(color=NEUTRAL, strokeDash=[5, 4])
        .encode(x=x)
    )
    height = 60 + 34 * max(1, len(shown)) * max(1, len(kinds))
    return alt.layer(control, dots, bars, medians).properties(height=height)
