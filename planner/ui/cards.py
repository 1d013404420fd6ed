"""Cards: one figure each, with its basis, interval and what it is compared with."""

from __future__ import annotations

import streamlit as st

from planner.report.figures import Figure
from planner.ui.text import basis_badge, plain


def card(figure: Figure) -> None:
    change = figure.change
    moved = change == change and abs(change) >= 0.0005
    st.metric(
        figure.label,
        figure.text,
        delta=change_text(change) if moved else None,
        delta_color="normal" if figure.more_is_better else "inverse",
        help=figure.help,
    )
    st.markdown(f"{basis_badge(figure.basis)} :small[{plain(figure.interval)}]")
    if figure.baseline:
        st.caption(plain(figure.baseline))


def change_text(change: float) -> str:
    """A relative change: "-7.8 %", "+96 %", "16x" from ten times on."""
    if change >= 9:
        return f"{1 + change:,.0f}x"
    return f"{100 * change:+.0f} %" if abs(change) >= 0.1 else f"{100 * change:+.1f} %"
