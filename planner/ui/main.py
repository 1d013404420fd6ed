"""The dashboard: pages, the frame around them, and what happens when the store is unusable.

    streamlit run app.py            # a checkout
    attn-plan app                   # installed

Pages are plain scripts in views/; each draws itself from `planner.ui.data` and returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from planner import __version__
from planner.errors import Infeasible, PlannerError, UsageError
from planner.ui import data
from planner.ui.text import refuse

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class View:
    """A page: its script in views/, how it is called, and what it is for."""

    script: str
    title: str
    icon: str
    help: str


VIEWS = (
    View(
        script="recommend.py",
        title="Recommend",
        icon=":material/recommend:",
        help="Which mixer, ratio and placement for a use case on a device, what it costs, what "
        "accuracy it keeps, and why.",
    ),
    View(
        script="cost.py",
        title="Cost",
        icon=":material/payments:",
        help="What a model and its hybrid cost: TTFT, TPOT, $ a million tokens over context "
        "length, memory by formula and by engine, how many fit.",
    ),
    View(
        script="crossover.py",
        title="Crossover",
        icon=":material/compare_arrows:",
        help="For which contexts and batches one mixer beats another on a device, by how much, "
        "and how sure that is.",
    ),
    View(
        script="measurements.py",
        title="Measurements",
        icon=":material/straighten:",
        help="Every measured kernel: latency over length by provider, how far from the roofline, "
        "what failed, and on what it ran.",
    ),
    View(
        script="evidence.py",
        title="Evidence",
        icon=":material/menu_book:",
        help="Published accuracy against full-attention controls, by mixer, ratio and task, with "
        "every source.",
    ),
    View(
        script="claims.py",
        title="Claims",
        icon=":material/fact_check:",
        help="What the evidence says of the source article, claim by claim: verdict, effect, rows "
        "and sources.",
    ),
    View(
        script="calibration.py",
        title="Calibration",
        icon=":material/target:",
        help="How wrong costs and accuracy have been, on points, stacks, published figures and "
        "sources that were held out.",
    ),
)


def run() -> None:
    """The entry point of every main file."""
    st.set_page_config(
        page_title="Attention Planner",
        page_icon=HERE / "icon.png",
        layout="wide",
        initial_sidebar_state="auto",
    )
    st.logo(HERE / "icon.png", size="large")
    page = st.navigation([_page(view) for view in VIEWS], position="top")
    try:
        _run(page)
        _footer()
    except PlannerError as error:
        refuse(error)


def _run(page: st.Page) -> None:
    """A question that cannot be is one line; the page's controls and the frame stay."""
    try:
        page.run()
    except (UsageError, Infeasible) as error:
        refuse(error)


def _page(view: View) -> st.Page:
    return st.Page(
        HERE / "views" / view.script,
        title=view.title,
        icon=view.icon,
        help=view.help,
        default=view is VIEWS[0],
    )


def _footer() -> None:
    """Version, the age of the data, and a way to read them again."""
    measured = data.points()["measured_at"]
    newest = f"measurements to {str(measured.max())[:10]}" if len(measured) else "no measurements"
    read = data.sources()["read_on"]
    evidence = f"evidence read {str(read.max())[:10]}" if len(read) else "no evidence"
    st.divider()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            f"Attention Planner {__version__} · {newest} · {evidence} · this machine only, "
            "nothing leaves it",
            width="stretch",
        )
        st.button(
            "Reload data",
            icon=":material/refresh:",
            type="tertiary",
            on_click=data.forget,
            help="Reads the store again: measurements made since the dashboard was opened.",
        )
