"""Charts of the Crossover page: DataFrame in, Altair chart out. Contexts and batches are on log
axes, a cell of the surface reaches half way to its neighbours."""

from __future__ import annotations

import altair as alt
import pandas as pd

from planner.cost.basis import Basis
from planner.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, style_of
from planner.ui.charts import LENGTH_LABEL, Chart
from planner.workload import parse_lengths

MOST_DOUBLINGS = 4.0
"""Colours end at 16x: beyond it the winner is not in doubt."""

BASIS_COLOURS = {
    Basis.MEASURED: GREEN,
    Basis.INTERPOLATED: BLUE,
    Basis.SCALED: PURPLE,
    Basis.EXTRAPOLATED: ORANGE,
    Basis.ANALYTIC: GREY,
}

EVEN = "#D9D9D9"
"""Between the two mixers' colours: neither is ahead."""


def surface_chart(
    cells: pd.DataFrame, line: pd.DataFrame, *, first: str, second: str, length_title: str,
    ink: str,
) -> Chart:  # fmt: skip
    """Who is faster and by how much, the line between them and its 80 % interval.

    `first` and `second` are mixers. Faded cells: ahead by less than the interval. Left of the
    dotted line both take less than 30 us.
    """
    colours = [style_of(first).colour, EVEN, style_of(second).colour]
    tiles = _tiles(cells, length_title).encode(
        color=alt.Color(
            "doublings:Q",
            title=f"{second} is faster, times",
            scale=alt.Scale(
                domain=(-MOST_DOUBLINGS, 0, MOST_DOUBLINGS), range=colours, clamp=True
            ),
            legend=alt.Legend(
                orient="bottom",
                gradientLength=360,
                titleLimit=400,
                values=[-4, -2, 0, 2, 4],
                labelExpr="datum.value < 0 ? '1/' + pow(2, -datum.value) : pow(2, datum.value)",
            ),
        ),
        opacity=alt.Opacity(
            "sure:Q", scale=alt.Scale(domain=(0, 1), range=(0.35, 1)), legend=None
        ),
        tooltip=_tooltip(first, second),
    )
    y = alt.Y("batch_size:Q")
    base = alt.Chart(line).transform_filter("isValid(datum.context)")
    interval = base.mark_area(opacity=0.28, color=ink, orient="horizontal").encode(
        x=alt.X("low:Q"), x2="high:Q", y=y
    )
    middle = base.mark_line(color=ink, strokeWidth=2.5, orient="horizontal", order=True).encode(
        x=alt.X("context:Q"), y=y, order="batch_size:Q"
    )
    launches = (
        alt.Chart(line)
        .transform_filter("isValid(datum.launch_bound)")
        .mark_line(color=ink, strokeDash=[2, 4], strokeWidth=1.5)
        .encode(x=alt.X("launch_bound:Q"), y=y, order="batch_size:Q")
    )
    return alt.layer(tiles, interval, middle, launches).properties(height=430)


def basis_chart(cells: pd.DataFrame, measured: pd.DataFrame, *, length_title: str) -> Chart:
    """What each cell rests on, the worse of its two sides; dots where both were measured."""
    there = [b for b in Basis if b.label in set(cells["basis"])]
    tiles = _tiles(cells, length_title).encode(
        color=alt.Color(
            "basis:N",
            scale=alt.Scale(
                domain=[b.label for b in there], range=[BASIS_COLOURS[b] for b in there]
            ),
            legend=alt.Legend(title=None, orient="bottom"),
        ),
        tooltip=[*_PLACE, alt.Tooltip("basis:N", title="Basis")],
    )
    dots = (
        alt.Chart(measured)
        .mark_point(filled=True, size=26, color="#000000", opacity=0.8)
        .encode(x="context:Q", y="batch_size:Q", tooltip=_PLACE)
    )
    return alt.layer(tiles, dots).properties(height=260)


_PLACE = [
    alt.Tooltip("context:Q", title="Context, tokens", format=","),
    alt.Tooltip("batch_size:Q", title="Batch"),
]


def _tooltip(first: str, second: str) -> list[alt.Tooltip]:
    return [
        *_PLACE,
        alt.Tooltip("verdict:N", title="Ahead"),
        alt.Tooltip("first_ms:Q", title=f"{first}, ms", format=".4~g"),
        alt.Tooltip("second_ms:Q", title=f"{second}, ms", format=".4~g"),
        alt.Tooltip("interval:N", title="80 % interval of the ratio"),
        alt.Tooltip("first_provider:N", title=f"{first} by"),
        alt.Tooltip("second_provider:N", title=f"{second} by"),
        alt.Tooltip("basis:N", title="Basis"),
    ]


def _tiles(cells: pd.DataFrame, length_title: str) -> alt.Chart:
    low, high = int(cells["context_low"].min()), int(cells["context_high"].max())
    lengths = [n for n in parse_lengths("256:1m") if low <= n <= high]
    batches = [2**k for k in range(11) if cells["batch_low"].min() <= 2**k]
    return (
        alt.Chart(cells)
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X(
                "context_low:Q",
                title=length_title,
                scale=alt.Scale(type="log", base=2, nice=False, domain=(low, high)),
                axis=alt.Axis(labelExpr=LENGTH_LABEL, values=lengths, grid=False),
            ),
            x2="context_high:Q",
            y=alt.Y(
                "batch_low:Q",
                title="Batch, sequences",
                scale=alt.Scale(
                    type="log",
                    base=2,
                    nice=False,
                    domain=(float(cells["batch_low"].min()), float(cells["batch_high"].max())),
                ),
                axis=alt.Axis(values=batches, format="d", grid=False),
            ),
            y2="batch_high:Q",
        )
    )
