"""Links: says what a followed link asked for and cannot have."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping

import streamlit as st

from planner.ui.text import plain


def same_tab_link(label: str, address: str) -> None:
    """A plain link: Streamlit's own ones open a new tab."""
    st.html(f'<a href="{html.escape(address)}">{html.escape(label)} →</a>')


def report_link(
    page: str, misread: Callable[[Mapping[str, str], Iterable[str]], list[str]],
    devices: Iterable[str],
) -> None:  # fmt: skip
    """Names it once a session and page, before the controls drop it from the address bar."""
    key = f"link_problems_{page}"
    if key not in st.session_state:
        given = {k: st.query_params[k] for k in st.query_params}
        st.session_state[key] = misread(given, devices)
    problems = st.session_state[key]
    if problems:
        listed = "".join(f"\n- {plain(text)}" for text in problems)
        count = f"{len(problems)} parameter{'s' if len(problems) > 1 else ''}"
        st.warning(f"This link has {count} that were not understood and are ignored:{listed}")
