"""Measurements: latency over length, stacks against their layers, what failed, every point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from planner.report.csv import safe_csv
from planner.report.provenance import PROFILE_COMMAND, describe
from planner.ui import data, frames, specs
from planner.ui.glossary import GLOSSARY
from planner.ui.scenario import default_device
from planner.ui.text import plain
from planner.workload import format_tokens

ALL = "all"


def render() -> None:
    st.header("Measurements", anchor=False)
    points = data.described_points()
    if points.empty:
        nothing_measured()
        return
    chosen = one_environment(points)
    overview(chosen)
    curves(chosen)
    stacks(chosen)
    failures(chosen)
    every_point(chosen)


def nothing_measured() -> None:
    st.info(
        "The store holds no measurements. On the machine to measure, run:",
        icon=":material/straighten:",
    )
    st.code(f"attn-profile doctor\n{PROFILE_COMMAND}", language="bash")
    st.caption("Points of another machine come in with `attn-profile import FILE.csv`.")


# Which points


def one_environment(points: pd.DataFrame) -> pd.DataFrame:
    """The points of one device and one environment of it, as the sidebar says."""
    with st.sidebar:
        st.subheader("Measured on", anchor=False)
        devices = by_size(points["device_id"])
        usual = default_device(data.devices())
        device = pick("Device", "device", sorted(devices, key=lambda id: id != usual))
        points = points[points["device_id"] == device]
        names = environment_names(points)
        name = pick("Environment", "environment", list(names), help=ENVIRONMENT_HELP)
    return points[points["environment_id"].isin(names[name])]


ENVIRONMENT_HELP = (
    "Device, driver and versions. An upgrade makes another environment, so that points of the two "
    "are never mixed. Your own come first, the newest on top; tables imported from others, each "
    "with its own versions, can be seen together."
)


def environment_names(points: pd.DataFrame) -> dict[str, list[str]]:
    """A name per choice of environments: those measured here, newest first, then imported."""
    imported = points["device_kind"] == "imported"
    found = {name: [id] for name, id in _names(points[~imported]).items()}
    others = _names(points[imported])
    if len(others) > 1:
        found[f"all imported, {len(others)}"] = list(others.values())
    return found | {name: [id] for name, id in others.items()}


def _names(points: pd.DataFrame) -> dict[str, str]:
    """Each environment's versions and newest day; its id where that is not enough."""
    newest = points.groupby("environment_id")["measured_at"].max().sort_values(ascending=False)
    found: dict[str, str] = {}
    for id in newest.index:
        versions = data.environments()[id].versions
        lead = {"torch": versions["torch"]} if "torch" in versions else versions
        name = f"{', '.join(f'{k} {v}' for k, v in lead.items())}, {str(newest[id])[:10]}"
        found[name if name not in found else f"{name}, {id[:6]}"] = id
    return found


def by_size(column: pd.Series) -> list[str]:
    """Its values, the most frequent first."""
    return [str(v) for v in column.value_counts().index]


def pick(label: str, key: str, options: Sequence[str], *, help: str = "") -> str:
    """A selectbox in the link; one option needs no choice but is shown."""
    chosen = st.selectbox(
        label, options, key=key, help=help or GLOSSARY.get(key), bind="query-params"
    )
    return chosen


# What was measured, and on what


def overview(points: pd.DataFrame) -> None:
    counts = points["outcome"].value_counts()
    ok = int(counts.get("ok", 0))
    faults = int(sum(counts.get(k, 0) for k in ("mismatch", "timeout", "error")))
    first, last = (str(v)[:10] for v in (points["measured_at"].min(), points["measured_at"].max()))
    with st.grid(4, min_column_width=160):
        st.metric("Points", f"{len(points):,}", border=True)
        st.metric("Timed", f"{ok:,}", border=True, help=GLOSSARY["outcome"])
        st.metric("Not timed", f"{len(points) - ok:,}", border=True, help=f"{faults:,} faults")
        since = f"the first on {first}" if first != last else None
        st.metric("Measured", last, border=True, help=since)
    ids = list(dict.fromkeys(points["environment_id"]))
    environment = data.environments()[ids[0]]
    kind = "imported from others" if environment.device_kind == "imported" else "measured here"
    many = f", {len(ids)} environments" if len(ids) > 1 else ""
    with st.expander(f"What it ran on: {plain(environment.device)}, {kind}{many}", key="ran_on"):
        described = [describe(data.environments()[id]) for id in ids]
        st.dataframe(
            pd.DataFrame(described).T if len(ids) == 1 else pd.DataFrame(described),
            hide_index=len(ids) > 1,
            alt="Device, driver, versions and switches of the environment",
        )


# Latency over length


def curves(points: pd.DataFrame) -> None:
    st.subheader("Latency over length", anchor=False, help=GLOSSARY["roofline"])
    families = frames.mixer_families(points)
    if not families:
        st.info("No mixer was measured in this environment.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        compare = segmented("Compare", "compare", ["mixers", "providers"])
        phase = segmented("Phase", "phase", ordered_phases(points))
        shown = points[(points["phase"] == phase) & points["family"].isin(families)]
        shown = narrowed(shown, compare)
    ok = shown[shown["outcome"] == "ok"]
    if compare == "mixers":
        ok = frames.fastest(ok)
    if ok.empty:
        st.info("Nothing was timed under these conditions.")
        return
    title = "Cached tokens" if phase == "decode" else "New tokens"
    by = "family" if compare == "mixers" else "provider"
    st.vega_lite_chart(specs.latency(ok, by, title), alt=curves_alt(ok, by))
    st.caption(curves_note(ok, compare))


def segmented(label: str, key: str, options: Sequence[str]) -> str:
    chosen = st.segmented_control(
        label,
        options,
        default=options[0],
        required=True,
        key=key,
        help=GLOSSARY.get(key),
        bind="query-params",
    )
    return chosen


def ordered_phases(points: pd.DataFrame) -> list[str]:
    there = set(points["phase"])
    return [p for p in ("prefill", "decode", "training") if p in there]


def narrowed(points: pd.DataFrame, compare: str) -> pd.DataFrame:
    """The points under one batch, dtype and mode; of one mixer and shape to compare providers."""
    columns = ["batch_size", "dtype", "mode"]
    if compare == "providers":
        columns = ["family", "shape", *columns]
    for column in columns:
        options = sorted(by_size(points[column]), key=natural)
        if options:
            usual = by_size(points[column])[0]
            chosen = st.selectbox(
                CONDITIONS[column],
                options,
                index=options.index(usual),
                key=f"curve_{column}",
                width=150 if column != "shape" else 230,
            )
            points = points[points[column].astype(str) == chosen]
    return points


CONDITIONS = {
    "family": "Mixer",
    "shape": "Heads × dims",
    "batch_size": "Batch",
    "dtype": "Dtype",
    "mode": "Runtime",
}


def natural(text: str) -> tuple[int, str]:
    """Numbers by value, words by spelling."""
    return (int(text), "") if text.isdigit() else (0, text)


def curves_alt(frame: pd.DataFrame, by: str) -> str:
    low, high = int(frame["length"].min()), int(frame["length"].max())
    names = ", ".join(str(v) for v in dict.fromkeys(frame[by]))
    return f"Latency from {format_tokens(low)} to {format_tokens(high)} tokens of {names}"


def curves_note(frame: pd.DataFrame, compare: str) -> str:
    shapes = dict(zip(frame["family"], frame["shape"], strict=True))
    named = ", ".join(f"{plain(family)} {plain(shape)}" for family, shape in shapes.items())
    line = (
        f"Each mixer by its fastest provider, on its most measured shape: {named}."
        if compare == "mixers"
        else f"Every provider of {named}."
    )
    return (
        f"{line} Median of the samples, p20 to p80 as a band; dashed, the roofline: no kernel can "
        "be faster. The mixer's kernel alone, without projections."
    )


# Stacks


def stacks(points: pd.DataFrame) -> None:
    st.subheader("Do layers add up?", anchor=False)
    residuals = frames.stack_residuals(points)
    if residuals.empty:
        st.info(
            "No mixed stack was measured beside its pure ones. `attn-profile run --ratios "
            "0:1,1:1,3:1,1:0` measures both."
        )
        return
    middle = residuals["residual"].median()
    worst = residuals["residual"].abs().max()
    way = "in a CUDA graph" if (residuals["mode"] == "graph").all() else "eagerly"
    st.markdown(
        f"A model's time is taken as the sum of its layers. Of {len(residuals)} mixed stacks that "
        f"were run as one {way}, the median is **{100 * middle:+.1f} %** off that sum and the "
        f"farthest **{100 * worst:.1f} %**."
    )
    st.vega_lite_chart(
        specs.residuals(residuals),
        alt=f"Measured stacks against the sum of their layers, median {100 * middle:+.1f} percent",
    )


# What failed


def failures(points: pd.DataFrame) -> None:
    st.subheader("Not timed", anchor=False, help=GLOSSARY["outcome"])
    bad = points[points["outcome"] != "ok"]
    if bad.empty:
        st.markdown("Every point was timed.")
        return
    columns = ["outcome", "family", "shape", "provider", "phase", "length", "batch_size", "reason"]
    st.dataframe(
        bad[columns].sort_values(["outcome", "family", "provider", "length"]),
        hide_index=True,
        column_config=point_columns(),
        alt="Points that were not timed, with outcome and reason",
    )


# Every point


def every_point(points: pd.DataFrame) -> None:
    st.subheader("Every point", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for column, label in FILTERS.items():
            options = sorted(str(v) for v in points[column].unique())
            chosen = st.multiselect(
                label, options, key=f"filter_{column}", placeholder=ALL, width=210
            )
            if chosen:
                points = points[points[column].astype(str).isin(chosen)]
    table = points[list(TABLE)].sort_values(["family", "shape", "provider", "phase", "length"])
    st.dataframe(
        table,
        hide_index=True,
        column_config=point_columns(),
        placeholder="–",
        alt="Every measured point with its conditions, times and outcome",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(table):,} points", width="content")
        st.download_button(
            "CSV",
            data=lambda: safe_csv(points.drop(columns="telemetry")),
            file_name="points.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )


FILTERS = {
    "family": "Operation",
    "provider": "Provider",
    "phase": "Phase",
    "outcome": "Outcome",
    "batch_size": "Batch",
}

TABLE = (
    "family", "shape", "provider", "variant", "phase", "new_tokens", "cached_tokens",
    "batch_size", "dtype", "mode", "outcome", "latency_ms", "p20_ms", "p80_ms", "num_samples",
    "roofline_share", "peak_bytes", "gate_error", "measured_at", "length",
)  # fmt: skip


def point_columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "family": text("Operation", pinned=True),
        "shape": text("Heads × dims", help="query/value heads × head dims, window"),
        "provider": text("Provider", help=GLOSSARY["provider"]),
        "variant": text("Variant"),
        "phase": text("Phase", help=GLOSSARY["phase"]),
        "new_tokens": number("New tokens", format="%,d"),
        "cached_tokens": number("Cached tokens", format="%,d"),
        "length": number("Length, tokens", format="%,d"),
        "batch_size": number("Batch"),
        "dtype": text("Dtype"),
        "mode": text("Runtime", help="eager, or replayed from a CUDA graph"),
        "outcome": text("Outcome", help=GLOSSARY["outcome"]),
        "reason": text("Reason", width="large"),
        "latency_ms": number("Median, ms", format="%.4f"),
        "p20_ms": number("p20, ms", format="%.4f"),
        "p80_ms": number("p80, ms", format="%.4f"),
        "num_samples": number("Samples"),
        "roofline_share": number("Of roofline", format="percent", help=GLOSSARY["roofline"]),
        "peak_bytes": number("Peak memory, bytes", format="%,d"),
        "gate_error": number(
            "Gate error",
            format="scientific",
            help="Relative RMS against the reference; what admitted the time",
        ),  # fmt: skip
        "measured_at": text("Measured at"),
    }


render()
