"""Claims: what the evidence says of the source article, claim by claim, with its rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from planner.quality.claims import Claim, Verdict
from planner.ui import data
from planner.ui.text import plain

VERDICTS: dict[Verdict, tuple[str, str, str]] = {
    "supported": ("green", "check_circle", "the evidence agrees"),
    "refined": ("blue", "tune", "true in part or on average, misleading as it stands"),
    "weakly supported": ("orange", "help", "the evidence agrees, and is thin"),
    "contradicted": ("red", "cancel", "the evidence disagrees"),
    "not shown": ("gray", "do_not_disturb_on", "the evidence does not decide it"),
}
"""Colour, icon and meaning. The word stands beside them."""


def render() -> None:
    st.header("Claims", anchor=False)
    st.caption(
        'What the evidence says of "Linear Attention: Is O(n) Worth the Accuracy Tradeoff?" '
        "(2025). Each verdict is computed from the store: other evidence, yours too, gives "
        "another verdict. Intervals are 80 % over rows, every source counting the same."
    )
    claims = data.claims()
    legend(claims)
    for claim in claims:
        card(claim)


def legend(claims: list[Claim]) -> None:
    counts = pd.Series([c.verdict for c in claims]).value_counts()
    parts = [
        f"{badge(verdict)} {counts[verdict]} · {meaning}"
        for verdict, (_, _, meaning) in VERDICTS.items()
        if verdict in counts
    ]
    st.markdown("  \n".join(parts))


def badge(verdict: Verdict) -> str:
    colour, icon, _ = VERDICTS[verdict]
    return f":{colour}-badge[:material/{icon}: {verdict}]"


def card(claim: Claim) -> None:
    with st.container(border=True):
        st.markdown(f"{badge(claim.verdict)}  \n**{plain(claim.claim)}**")
        st.markdown(plain(claim.effect[:1].upper() + claim.effect[1:]))
        st.caption(plain(f"But: {claim.caveat}."))
        if not claim.row_ids:
            st.caption(plain("From: " + ("; ".join(claim.sources) or "nothing in the store")))
            return
        keys = ", ".join(claim.sources)
        with st.expander(plain(f"{len(claim.row_ids)} rows of {keys}"), key=claim.id):
            rows_table(claim)


# The rows behind a claim

COLUMNS = (
    "source", "location", "model", "mixer", "ratio", "placement", "task", "k_shot", "eval_length",
    "metric", "value", "control_value", "points",
)  # fmt: skip


def rows_table(claim: Claim) -> None:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    st.dataframe(
        claim_rows(claim, data.evidence(), data.comparisons()),
        hide_index=True,
        placeholder="–",
        column_config={
            "source": text("Source", pinned=True),
            "location": text("Where"),
            "model": text("Model"),
            "mixer": text("Mixer"),
            "ratio": text("Linear : full"),
            "placement": text("Placement"),
            "task": text("Task"),
            "k_shot": number("Shots"),
            "eval_length": number("Evaluated at, tokens", format="%,d"),
            "metric": text("Metric"),
            "value": number("Value", format="%.2f"),
            "control_value": number("Full attention", format="%.2f"),
            "points": number("Difference", format="%+.2f"),
        },
        alt=f"The rows behind: {claim.claim}",
    )


def claim_rows(claim: Claim, evidence: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """The claim's numbers, each with its control's where it has one."""
    rows = evidence[evidence["id"].isin(claim.row_ids)]
    controls: Any = comparisons.set_index("id")[["control_value", "points"]]
    found = rows.join(controls, on="id")[list(COLUMNS)]
    return found.sort_values(["source", "location", "model"])


render()
