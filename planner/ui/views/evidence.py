"""Evidence: accuracy kept by mixer kind, ratio and task, its sources, and every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from planner.decision.use_case import TASK_CLASSES
from planner.report.csv import safe_csv
from planner.report.evidence import source_url
from planner.ui import data, frames, specs
from planner.ui.glossary import GLOSSARY
from planner.ui.text import basis_badge, plain

CLASS_TITLES = {
    "retrieval": "retrieval",
    "icl": "in-context learning",
    "multi_hop": "multi-hop",
    "summarization": "summarization",
    "general": "general",
}


def render() -> None:
    st.header("Evidence", anchor=False)
    st.caption(
        "Accuracy, published and your own, of models whose full-attention control was trained by "
        "the same recipe. Accuracy kept is value over control; 100 % is parity."
    )
    comparisons = data.comparisons()
    if comparisons.empty:
        st.info("The store holds no accuracy evidence. `attn-plan db info` says what it holds.")
        return
    overview(comparisons)
    own_results()
    rows = filtered(frames.retention(comparisons))
    retention(rows)
    sources(comparisons)
    effective()
    left_out(comparisons)
    every_row(rows)


def overview(comparisons: pd.DataFrame) -> None:
    use = comparisons["use"].value_counts()
    with st.grid(4, min_column_width=160):
        st.metric("Numbers", f"{len(data.evidence()):,}", border=True)
        st.metric("Comparisons", f"{len(comparisons):,}", border=True)
        st.metric("Fitted", f"{use.get('fit', 0) + use.get('evaluate', 0):,}", border=True,
                  help=GLOSSARY["use"])  # fmt: skip
        st.metric("Sources", f"{comparisons['source'].nunique():,}", border=True)


def own_results() -> None:
    """The user's own sources, or how to make one."""
    table = data.sources()
    own = table[table["tier"] == "imported"]
    if own.empty:
        st.markdown(
            "Measure on your own tasks: `attn-plan evidence import results.json --name mine "
            "--config config.json --control full.json` makes them a source of their own, which "
            "outweighs published ones. It reads lm-evaluation-harness, RULER, HELMET, Inspect "
            "and CSV."
        )
        return
    compared = set(data.comparisons()["source"])
    for key, title in zip(own["key"], own["title"], strict=True):
        how = "compared with its control" if key in compared else "an absolute level only"
        st.markdown(f"{basis_badge('imported')} **{plain(key)}**: {plain(title)}, {how}")


# Which rows


def filtered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that the sidebar asks for; by default those that the fit uses."""
    with st.sidebar:
        st.subheader("Rows", anchor=False)
        use = st.segmented_control(
            "Use", ["fitted", "all"], default="fitted", required=True, key="use",
            help=GLOSSARY["use"], bind="query-params",
        )  # fmt: skip
        if use == "fitted":
            rows = rows[rows["use"].isin(("fit", "evaluate"))]
        for column, label in (("origin", "Origin"), ("kind", "Mixer kind"), ("mixer", "Mixer"),
                              ("tier", "Tier"), ("source", "Source")):  # fmt: skip
            options = sorted(str(v) for v in rows[column].unique() if v)
            chosen = st.multiselect(
                label, options, key=column, placeholder="all", help=GLOSSARY.get(column),
                bind="query-params",
            )  # fmt: skip
            if chosen:
                rows = rows[rows[column].isin(chosen)]
    return rows


# Accuracy kept


def retention(rows: pd.DataFrame) -> None:
    st.subheader("Accuracy kept, by ratio and mixer kind", anchor=False)
    counts = rows["task_class"].value_counts()
    classes = [c for c in TASK_CLASSES if counts.get(c, 0)]
    if not classes:
        st.info("No comparison matches these filters.")
        return
    task_class = class_control(classes)
    shown = rows[(rows["task_class"] == task_class) & ~rows["band"].isin(("0:1", "unknown"))]
    if shown.empty:
        st.info("No comparison of this class has a known ratio.")
        return
    bands = frames.retention_bands(shown)
    st.vega_lite_chart(
        specs.retention(shown, bands, frames.BANDS),
        alt=retention_alt(bands, task_class),
    )
    st.caption(
        f"{len(shown):,} comparisons of {shown['source'].nunique()} sources. Mark: median; bar: "
        "quartiles; dots: single comparisons. Sources differ in size, data and length: a spread, "
        "not a curve."
    )
    st.dataframe(
        band_table(bands),
        hide_index=True,
        column_config=band_columns(),
        alt="Median and quartiles of accuracy kept, by mixer kind and ratio",
    )


def class_control(classes: Sequence[str]) -> str:
    chosen = st.segmented_control(
        "Task class",
        classes,
        default=classes[0],
        required=True,
        key="task_class",
        help="; ".join(f"{c}: {CLASS_TITLES[c]}" for c in classes if c != CLASS_TITLES[c]) or None,
        bind="query-params",
    )
    return chosen


def retention_alt(bands: pd.DataFrame, task_class: str) -> str:
    rows: Any = bands.itertuples()
    parts = [f"{r.kind} {r.band} {100 * r.median:.0f} %" for r in rows]
    return f"Median accuracy kept on {task_class}: {'; '.join(parts)}"


def band_table(bands: pd.DataFrame) -> pd.DataFrame:
    percent = {c: 100 * bands[c] for c in ("median", "q1", "q3", "lowest", "highest")}
    return bands.drop(columns="task_class").assign(**percent)


def band_columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "kind": text("Mixer kind"),
        "band": text("Linear : full", help=GLOSSARY["ratio"]),
        "median": number("Median, %", format="%.1f", help=GLOSSARY["retention"]),
        "q1": number("Lower quartile, %", format="%.1f"),
        "q3": number("Upper quartile, %", format="%.1f"),
        "lowest": number("Lowest, %", format="%.1f"),
        "highest": number("Highest, %", format="%.1f"),
        "rows": number("Comparisons"),
        "sources": number("Sources"),
    }


# Absolute levels


def effective() -> None:
    st.subheader("How far models can be read, by RULER", anchor=False)
    table = data.effective_contexts().sort_values("effective", ascending=False)
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    st.dataframe(
        table.assign(full_share=100 * table["full_share"]),
        hide_index=True,
        placeholder="–",
        height=240,
        column_config={
            "source": text("Source", pinned=True),
            "model": text("Model"),
            "mixer": text("Mixer"),
            "kind": text("Mixer kind"),
            "full_share": number("Full layers, %", format="%.0f"),
            "effective": number("Effective, tokens", format="%,d", help=GLOSSARY["effective"]),
            "longest": number("Longest tried, tokens", format="%,d"),
            "score_at_longest": number("Score there, %", format="%.1f"),
        },
        alt="Effective context of models by RULER's threshold of 85.6",
    )
    st.caption(
        "Scores as they were reported, without a control: size, data and training differ between "
        "models, so they anchor levels and say nothing of a mixer. `attn-plan recommend --floor "
        "'RULER>=85@128k'` asks of models alike."
    )


# Where it comes from


def sources(comparisons: pd.DataFrame) -> None:
    st.subheader("Sources", anchor=False)
    counts = comparisons.groupby("source").size()
    table = data.sources()
    shown = pd.DataFrame(
        {
            "key": table["key"],
            "title": table["title"],
            "authors": table["authors"],
            "year": table["year"],
            "tier": table["tier"],
            "comparisons": [int(counts.get(key, 0)) for key in table["key"]],
            "link": [source_url(text) or None for text in table["source"]],
            "read_from": table["read_from"],
            "read_on": table["read_on"],
        }
    )
    link, number, text = (
        st.column_config.LinkColumn, st.column_config.NumberColumn, st.column_config.TextColumn
    )  # fmt: skip
    st.dataframe(
        shown.sort_values("comparisons", ascending=False),
        hide_index=True,
        column_config={
            "key": text("Source", pinned=True),
            "title": text("Title", width="large"),
            "authors": text("Authors"),
            "year": number("Year", format="%d"),
            "tier": text("Tier", help=GLOSSARY["tier"]),
            "comparisons": number("Comparisons"),
            "link": link("Link", display_text=r"https?://(?:www\.)?(.*)"),
            "read_from": text("Read from"),
            "read_on": text("Read on"),
        },
        alt="Sources of accuracy evidence with tier, link and number of comparisons",
    )


def left_out(comparisons: pd.DataFrame) -> None:
    """What is shown but not used, by reason; and what was mended in the files."""
    shown = comparisons[comparisons["use"] == "show"]
    with st.expander(f"Shown, not used: {len(shown):,} comparisons, by reason", key="left_out"):
        reasons = shown["reason"].value_counts()
        st.dataframe(
            pd.DataFrame({"reason": reasons.index, "comparisons": reasons.to_numpy()}),
            hide_index=True,
            column_config={"reason": "Reason", "comparisons": "Comparisons"},
            alt="Why comparisons are not used in the fit",
        )
    changes = data.published_changes()
    if changes:
        with st.expander("What was mended in the published numbers", key="mended"):
            st.markdown(changes)


# Every row

ROW_COLUMNS = (
    "source", "location", "model", "mixer", "ratio", "origin", "params_b", "task_class", "task",
    "eval_length", "value", "control_value", "points", "retention", "use", "reason", "tier",
    "figure_read", "assumed", "note",
)  # fmt: skip


def every_row(rows: pd.DataFrame) -> None:
    st.subheader("Every comparison", anchor=False)
    table = rows[list(ROW_COLUMNS)].assign(retention=100 * rows["retention"])
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    check = st.column_config.CheckboxColumn
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        column_config={
            "source": text("Source", pinned=True),
            "location": text("Where"),
            "model": text("Model"),
            "mixer": text("Mixer", help=GLOSSARY["mixer"]),
            "ratio": text("Linear : full", help=GLOSSARY["ratio"]),
            "origin": text("Origin", help="trained from scratch, or converted"),
            "params_b": number("Parameters, 10⁹"),
            "task_class": text("Class"),
            "task": text("Task"),
            "eval_length": number("Evaluated at, tokens", format="%,d"),
            "value": number("Value, %", format="%.1f"),
            "control_value": number("Control, %", format="%.1f"),
            "points": number("Points", format="%+.1f"),
            "retention": number("Kept, %", format="%.1f", help=GLOSSARY["retention"]),
            "use": text("Use", help=GLOSSARY["use"]),
            "reason": text("Reason"),
            "tier": text("Tier", help=GLOSSARY["tier"]),
            "figure_read": check("Read off a figure"),
            "assumed": check("Control assumed"),
            "note": text("Note", width="large"),
        },
        alt="Every comparison with its control, use and note",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(rows):,} comparisons", width="content")
        st.download_button(
            "CSV",
            data=lambda: safe_csv(rows),
            file_name="comparisons.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )


render()
