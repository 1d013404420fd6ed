"""The report as one HTML file: no scripts, no requests, charts as inline SVG, print styles.

Every text goes through jinja2's autoescape and the charts' through Vega's own SVG writer, so a
name from an imported model stays text whatever it contains.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import altair as alt
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from planner.report import charts
from planner.report.palette import style_of
from planner.units import bytes_text, percent, seconds_text, times

if TYPE_CHECKING:
    from planner.report.model import ReportModel

WIDTH = 880
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def render(model: ReportModel) -> str:
    """The whole document. Takes about a second: two charts are drawn."""
    return _template().render(
        m=model,
        frontier=frontier_svg(model),
        strip=strip_svg(model),
        legend=[style_of(name) for name in dict.fromkeys(x.mixer for x in model.layers) if name],
    )


def frontier_svg(model: ReportModel) -> Markup:
    """Cost against accuracy, as SVG; empty where no design has a cost."""
    frame = charts.frontier_frame(model.designs)
    if frame.empty:
        return Markup()
    baseline = next((d.label for d in model.designs if d.is_baseline), "full attention")
    return svg_of(
        charts.frontier_chart(frame, floor=100 * model.floor, baseline=baseline, width=WIDTH)
    )


def strip_svg(model: ReportModel) -> Markup:
    """The layers of the answer, as SVG; empty without an answer."""
    if not model.layers:
        return Markup()
    return svg_of(charts.layers_chart(charts.layers_frame(model.layers), width=WIDTH))


def svg_of(chart: alt.TopLevelMixin) -> Markup:
    """A chart drawn by vl-convert, without a browser and without the network."""
    import vl_convert

    theme = {"font": FONT, "background": "transparent"}
    return Markup(vl_convert.vegalite_to_svg(chart.to_json(), config=theme, allowed_base_urls=[]))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("planner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=seconds_text,
        bytes=bytes_text,
        times=times,
        count=lambda value: f"{value:,.0f}" if value == value else "–",
        percent=lambda share, digits=1: percent(round(share, digits + 2)),
    )
    return environment.get_template("report.html.j2")
