"""Text on the page: names shown as they are written, badges for basis and kind."""

from __future__ import annotations

import re

import streamlit as st

from planner.errors import PlannerError
from planner.report.markdown import escape

_STREAMLIT = re.compile(r"[$:]")

_BADGES = {
    "measured": ("green", "straighten"),
    "interpolated": ("blue", "timeline"),
    "scaled": ("violet", "aspect_ratio"),
    "extrapolated": ("orange", "trending_up"),
    "analytic": ("gray", "architecture"),
    "formula": ("green", "functions"),
    "definition": ("green", "functions"),
    "published": ("blue", "menu_book"),
    "imported": ("green", "upload_file"),
}
"""Colour and icon by basis; the word stands beside them, so that neither carries it alone."""


def plain(text: str) -> str:
    """`text` shown literally by st.markdown: no markup, formulas or directives from it."""
    return _STREAMLIT.sub(lambda m: "\\" + m[0], escape(text))


def refuse(error: PlannerError, instead: str = "") -> None:
    """The one line of an error, with what stands `instead` until it is corrected."""
    meanwhile = f". Until that is corrected: {instead}" if instead else ""
    st.error(plain(f"{error}{meanwhile}"), icon=":material/error:")


def basis_badge(basis: str) -> str:
    """A badge in Markdown: "measured", "published, kind and ratio", "analytic (prefill: …)"."""
    word = re.match(r"\w+", basis)
    colour, icon = _BADGES.get(word[0] if word else "", ("gray", "info"))
    label = plain(basis).replace("]", "\\]")
    return f":{colour}-badge[:material/{icon}: {label}]"


def ink() -> str:
    """The colour of text on the page that the visitor sees, for labels inside charts."""
    return "#FAFAFA" if st.context.theme.type == "dark" else "#31333F"
