"""Charts of a recommendation: DataFrame or records in, Altair chart out. Shared by the dashboard
and the report.

Marks carry colour and shape, and every axis its unit. The neutral ink of rules and labels comes
from the theme that draws them, so that both light and dark pages can.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from planner.report.designs import Design, costs_in_seconds
from planner.report.model import Layer
from planner.report.palette import NEUTRAL, OUTLINE, styles_of

Chart = alt.LayerChart | alt.FacetChart

FADED = 0.35
LAYERS_PER_ROW = 48


def frontier_frame(designs: Sequence[Design]) -> pd.DataFrame:
    """One row per design with a cost, the answer last, so that it is drawn on top: accuracy in
    percent, texts for the tooltip and for screen readers. Costs are factors of the baseline's; GPU
    seconds a request, all of them, where no session of the baseline fits."""
    in_seconds = costs_in_seconds(d.cost_ratio for d in designs)
    rows = [
        {
            "label": d.label,
            "short": "full" if d.is_baseline and d.ratio == "0:1" else d.ratio,
            "mixer": d.mixer,
            "role": _role(d),
            "in_seconds": in_seconds,
            "cost": d.gpu_seconds_per_request if in_seconds else d.cost_ratio,
            "cost_low": d.gpu_seconds_low if in_seconds else d.cost_ratio_low,
            "cost_high": d.gpu_seconds_high if in_seconds else d.cost_ratio_high,
            "cost_text": d.cost_text,
            "kept": 100 * d.accuracy_kept,
            "kept_low": 100 * d.accuracy_low,
            "kept_high": 100 * d.accuracy_high,
            "kept_interval": f"{100 * d.accuracy_low:.1f} to {100 * d.accuracy_high:.1f} %",
            "cost_interval": d.cost_interval,
            "feasible": d.feasible,
            "status": "meets every limit" if d.feasible else "; ".join(d.breaks),
            "evidence": f"{d.evidence}: {d.num_sources} sources, {d.num_rows} rows",
            "basis": d.cost_basis,
            "spoken": f"{d.label}: cost {d.cost_text}, accuracy kept "
            f"{100 * d.accuracy_kept:.1f} %, {'passes' if d.feasible else 'rejected'}",
            "on_frontier": d.on_frontier,
            "covered": math.isfinite(d.accuracy_kept),
        }
        for d in sorted(designs, key=lambda d: d.role == "recommended")
        if math.isfinite(d.gpu_seconds_per_request if in_seconds else d.cost_ratio)
    ]
    columns = None if rows else ["label", "mixer", "cost", "kept", "covered", "on_frontier"]
    return pd.DataFrame(rows, columns=columns)


def _role(design: Design) -> str:
    if design.role in ("recommended", "runner-up"):
        return design.role
    return "baseline" if design.is_baseline else "candidate"


def frontier_chart(
    frame: pd.DataFrame,
    *,
    floor: float = 0.0,
    baseline: str = "full attention",
    ink: str = "#31333F",
    width: int | None = None,
    height: int = 400,
) -> Chart:
    """Cost against accuracy kept: intervals as rules, the frontier as a line, the rejected faded.

    `floor` in percent, 0 for none; `ink` is the page's text colour. Designs far below the floor
    stand on the bottom edge; those that the evidence does not cover are ticks there: their cost is
    known, their accuracy is not.
    """
    axes = _Axes.over(frame, floor, baseline)
    covered = frame[frame["covered"].astype(bool)]
    chosen, feasible = covered["role"] == "recommended", covered["feasible"].astype(bool)
    covered = covered.assign(
        shown=covered["kept"].clip(lower=axes.y_span[0]),
        inside=covered["kept"] >= axes.y_span[0],
        opacity=feasible.map({True: 1.0, False: FADED}),
        size=chosen.map({True: 380, False: 95}),
        outline=chosen.map({True: 2.5, False: 0.8}),
        rule_opacity=chosen.map({True: 0.95, False: 0.4}),
    )
    layers = [
        *_floor_rule(floor, axes),
        _frontier_line(covered, axes),
        *_interval_rules(covered, axes),
        _points(covered, axes),
        _labels(covered, axes, ink),
        _uncovered_ticks(frame[~frame["covered"].astype(bool)], axes),
    ]
    return alt.layer(*layers, height=height, **_width(width))


@dataclass(frozen=True)
class _Axes:
    """Shared positions: every point is inside, far ends of intervals may be cut."""

    baseline: str
    in_seconds: bool
    x_span: tuple[float, float]
    y_span: tuple[float, float]

    @classmethod
    def over(cls, frame: pd.DataFrame, floor: float, baseline: str) -> _Axes:
        named = frame[frame["role"].isin(NAMED)]
        cost, kept, floors = frame["cost"], frame["kept"].dropna(), [floor] if floor else []
        room = (cost.max() - cost.min() or cost.max()) / 2
        wide = named[["cost_low", "cost_high"]].clip(cost.min() - room, cost.max() + room)
        lowest = min([*named["kept"].dropna(), *floors, 100.0]) - NEAR
        tall = named[["kept_low", "kept_high"]].clip(lower=lowest)
        return cls(
            baseline,
            bool(frame["in_seconds"].any()),
            _span([*cost, *wide.to_numpy().ravel()]),
            _span([*kept.clip(lower=lowest), *floors, *tall.to_numpy().ravel()]),
        )

    def along_x(self, field: str = "cost") -> alt.X:
        title = "GPU time per request"
        label = "format(datum.value, '.3~f') + ' s'"
        if not self.in_seconds:
            title = f"{title}, relative to {self.baseline}"
            label = "format(datum.value, '.2~f') + 'x'"
        return alt.X(
            f"{field}:Q",
            title=title,
            scale=alt.Scale(domain=self.x_span, nice=False),
            axis=alt.Axis(labelExpr=label, tickCount=8),
        )

    def along_y(self, field: str = "shown") -> alt.Y:
        return alt.Y(
            f"{field}:Q",
            title=f"Accuracy kept, % of {self.baseline}",
            scale=alt.Scale(domain=self.y_span, nice=False),
            axis=alt.Axis(tickCount=6),
        )

    @property
    def x(self) -> alt.X:
        return self.along_x()

    @property
    def y(self) -> alt.Y:
        return self.along_y()

    def apart(self, one: Any, other: Any) -> bool:
        """Whether two points are far enough from each other for a label each."""
        dx = abs(one.cost - other.cost) / (self.x_span[1] - self.x_span[0])
        dy = abs(one.shown - other.shown) / (self.y_span[1] - self.y_span[0])
        return bool(dx > 0.08 or dy > 0.07)


NEAR = 30.0
"""Points of accuracy below the floor that are still drawn to scale; a pure window at a long
context may be at 3 %, and would press everything else together."""

NAMED = ("recommended", "runner-up", "baseline")


def _span(values: Iterable[float]) -> tuple[float, float]:
    """From the least to the most, with a margin of 6 %; what has no figure is left out."""
    known = [v for v in values if math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _mixer_scales(frame: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of the mixers on the chart, in one legend, whatever the theme's palette."""
    styles = styles_of(frame["mixer"])
    legend = alt.Legend(
        title=None, orient="bottom", symbolOpacity=1, symbolSize=110, columnPadding=14
    )
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


def _as_given(channel: Any, field: str) -> Any:
    """A channel whose values the frame holds as they are to be drawn. (Conditions would do, but
    Altair takes 20 ms to check each.)"""
    return channel(f"{field}:Q", scale=None, legend=None)


def _floor_rule(floor: float, axes: _Axes) -> list[Any]:
    if not floor:
        return []
    data = pd.DataFrame({"shown": [floor], "text": [f"floor {floor:g} %"]})
    base = alt.Chart(data).encode(y=axes.y)
    text = base.mark_text(align="right", dx=-4, dy=9, color=NEUTRAL, fontSize=12)
    return [
        base.mark_rule(strokeDash=[6, 4], color=NEUTRAL, aria=False),
        text.encode(x=alt.value("width"), text="text:N"),
    ]


def _frontier_line(frame: pd.DataFrame, axes: _Axes) -> Any:
    on = frame[frame["on_frontier"].astype(bool)].sort_values("cost")
    line = alt.Chart(on).mark_line(
        interpolate="step-after", color=NEUTRAL, strokeWidth=2, aria=False
    )
    return line.encode(x=axes.x, y=axes.y, order="cost:Q")


def _interval_rules(frame: pd.DataFrame, axes: _Axes) -> list[Any]:
    """Accuracy intervals of the feasible frontier and the named, cost intervals of the named: all
    would hide all."""
    colour, _ = _mixer_scales(frame)
    on_frontier = frame["feasible"].astype(bool) & frame["on_frontier"].astype(bool)
    tall = frame[on_frontier | frame["role"].isin(NAMED)]
    named = frame[frame["role"].isin(NAMED)]
    strong = _as_given(alt.Opacity, "rule_opacity")
    vertical = alt.Chart(tall).mark_rule(strokeWidth=1.8, clip=True, aria=False)
    horizontal = alt.Chart(named).mark_rule(strokeWidth=1.8, clip=True, aria=False)
    low, high = axes.along_y("kept_low"), alt.Y2("kept_high:Q")
    left, right = axes.along_x("cost_low"), alt.X2("cost_high:Q")
    return [
        vertical.encode(x=axes.x, y=low, y2=high, color=colour, opacity=strong),
        horizontal.encode(x=left, x2=right, y=axes.y, color=colour, opacity=strong),
    ]


def _points(frame: pd.DataFrame, axes: _Axes) -> Any:
    colour, shape = _mixer_scales(frame)
    return (
        alt.Chart(frame)
        .mark_point(filled=True, stroke=OUTLINE)
        .encode(
            x=axes.x,
            y=axes.y,
            color=colour,
            shape=shape,
            description="spoken:N",
            opacity=_as_given(alt.Opacity, "opacity"),
            size=_as_given(alt.Size, "size"),
            strokeWidth=_as_given(alt.StrokeWidth, "outline"),
            tooltip=[
                alt.Tooltip("label:N", title="Design"),
                alt.Tooltip("cost_text:N", title="Cost"),
                alt.Tooltip("cost_interval:N", title="Cost, 80 %"),
                alt.Tooltip("kept:Q", title="Accuracy kept, %", format=".1f"),
                alt.Tooltip("kept_interval:N", title="Accuracy, 80 %"),
                alt.Tooltip("evidence:N", title="Evidence"),
                alt.Tooltip("basis:N", title="Cost basis"),
                alt.Tooltip("status:N", title="Limits"),
            ],
        )
    )


def _labels(frame: pd.DataFrame, axes: _Axes, ink: str) -> Any:
    """Names for the answer, the runner-up and the baseline; ratios along the frontier where
    there is room. The runner-up's name stands below its mark: it is often beside the answer."""
    data = pd.DataFrame(
        [
            {
                "cost": r.cost,
                "shown": r.shown,
                "text": r.label.split(",")[0] if r.role in NAMED else r.short,
                "opacity": 1.0 if r.feasible else 0.55,
                "align": "right" if r.cost > sum(axes.x_span) * 0.5 else "left",
                "dx": -10 if r.cost > sum(axes.x_span) * 0.5 else 10,
                "dy": {"recommended": -17, "runner-up": 19}.get(r.role, -13),
            }
            for r in _labelled(frame, axes)
        ],
        columns=["cost", "shown", "text", "opacity", "align", "dx", "dy"],
    )
    text = alt.Chart(data).mark_text(
        fontSize=12,
        fontWeight=600,
        color=ink,
        align=alt.expr("datum.align"),
        dx=alt.expr("datum.dx"),
        dy=alt.expr("datum.dy"),
        aria=False,
    )
    opacity = _as_given(alt.Opacity, "opacity")
    return text.encode(x=axes.x, y=axes.y, text="text:N", opacity=opacity)


def _labelled(frame: pd.DataFrame, axes: _Axes) -> list[Any]:
    """The rows that get a label: the named ones, then the frontier's that stand apart."""
    order = {role: i for i, role in enumerate(NAMED)}
    on = frame[(frame["on_frontier"].astype(bool) & frame["inside"]) | frame["role"].isin(NAMED)]
    rows: Any = on.itertuples()
    found: list[Any] = []
    for row in sorted(rows, key=lambda r: (order.get(r.role, len(order)), -r.cost)):
        if row.role in NAMED or all(axes.apart(row, other) for other in found):
            found.append(row)
    return found


def _uncovered_ticks(frame: pd.DataFrame, axes: _Axes) -> Any:
    data = frame.assign(why="no accuracy evidence: cost only")
    return (
        alt.Chart(data)
        .mark_tick(thickness=2, height=12, color=NEUTRAL, orient="vertical")
        .encode(
            x=axes.x,
            y=alt.value(alt.expr("height - 7")),
            tooltip=[
                alt.Tooltip("label:N", title="Design"),
                alt.Tooltip("cost_text:N", title="Cost"),
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


def _width(width: int | None) -> dict[str, int]:
    """Nothing where the page decides."""
    return {} if width is None else {"width": width}


def layers_chart(frame: pd.DataFrame, *, width: int | None = None, extra_height: int = 0) -> Chart:
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
    return alt.layer(
        cells,
        letters,
        resolve=alt.Resolve(scale=alt.ScaleResolveMap(color="independent")),
        height=30 * num_rows + extra_height,
        config=alt.Config(view=alt.ViewConfig(strokeWidth=0)),
        **_width(width),
    )
