"""Calibration: how wrong it has been, misses first, for costs on a device and for accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from planner.calibration import Published
from planner.calibration.imported import HIGH, LOW
from planner.report.csv import safe_csv
from planner.ui import calibration_frames as frames
from planner.ui import data, specs
from planner.ui.links import report_link
from planner.ui.scenario import default_device, link_problems
from planner.ui.text import plain
from planner.workload import format_tokens

MAX_MISSES = 25


PARAMETERS = ("subject", "hardware", "fold_phase")
SUBJECTS = ("cost", "accuracy")
PHASES = ("prefill", "decode", "training")


def render() -> None:
    report_link("calibration", misread, data.devices())
    st.header("How wrong has it been?", anchor=False)
    st.caption(
        "Predictions of what was held out, beside what was measured or published. Nothing here "
        "changes a prediction."
    )
    subject = st.segmented_control(
        "Subject",
        SUBJECTS,
        default=SUBJECTS[0],
        required=True,
        key="subject",
        label_visibility="collapsed",
        bind="query-params",
    )
    if subject == "cost":
        cost(device_control())
    else:
        accuracy()


def misread(parameters: Mapping[str, str], devices: Iterable[str]) -> list[str]:
    """What of a link's parameters cannot be meant: a sentence each, with what is allowed."""
    choices = {"subject": SUBJECTS, "hardware": devices, "fold_phase": ("all", *PHASES)}
    return link_problems(parameters, PARAMETERS, choices=choices, numbers={})


def device_control() -> str:
    devices = data.devices()
    ids = list(devices)
    with st.sidebar:
        chosen = st.selectbox(
            "Hardware",
            ids,
            index=ids.index(default_device(devices)),
            key="hardware",
            bind="query-params",
        )
        st.caption(f"{devices[chosen].hardware.name}: {devices[chosen].basis_note}")
    return str(chosen)


# Cost


def cost(device: str) -> None:
    """What is quick to judge first; kernels and imported times take some seconds."""
    with st.grid(4, min_column_width=180):
        inside, beyond, blocks, models = (st.container() for _ in range(4))
    st.subheader("Where it fails", anchor=False)
    misses = st.container()
    stacks = frames.stacks(data.stack_residuals(device), data.stack_kernel_sums(device))
    claims = data.end_to_end(device)
    with blocks:
        stack_metric(stacks)
    with models:
        claim_metric(claims)
    misses.markdown("\n".join(f"- {t}" for t in (*stack_misses(stacks), *claim_misses(claims))))
    published(claims)
    for one, curve in data.headlines(device):
        headline(one, curve)
    stack_section(stacks)
    kernels = data.kernel_calibration(device)
    with inside:
        fold_metric(kernels, "leave_one_out", "Kernels, inside")
    with beyond:
        fold_metric(kernels, "leave_end_out_4x", "Kernels, 4x beyond")
    misses.markdown("\n".join(f"- {text}" for text in kernel_misses(kernels)))
    kernel_section(kernels)
    imported_section(data.beside_imported(device))


def metric(label: str, value: str, below: str, help: str = "") -> None:
    with st.container(border=True, height="stretch", gap="xsmall"):
        st.metric(label, value, help=help or None)
        st.caption(below)


def fold_metric(kernels: pd.DataFrame, fold: str, label: str) -> None:
    rows = kernels
    if len(rows):
        rows = rows[(rows["fold"] == fold) & (rows["mode"] == "graph")]
    if rows.empty:
        metric(label, "–", "No kernel here has enough points in CUDA graphs.")
        return
    metric(
        label,
        f"{rows['median_ape'].median():.1f} %",
        f"{len(rows)} kernels, {rows['n'].sum():,} points; "
        f"{100 * frames.per_point(rows, 'coverage80'):.0f} % inside 80 % intervals",
        "Median error of the middle kernel, each on points that it was not shown.",
    )


def stack_metric(stacks: pd.DataFrame) -> None:
    label = "Blocks of layers"
    found = stacks[stacks["way"] == frames.AS_MODEL]
    if found.empty:
        metric(label, "–", "No stack of blocks was measured here in CUDA graphs.")
        return
    layers = stacks[stacks["way"] == frames.LESS_STARTS]
    metric(
        label,
        f"{found['percent'].median():+.0f} %",
        f"{len(found)} stacks; from single layers {layers['percent'].abs().median():.1f} % off",
        "As the cost model adds kernels up, middle signed error: below 0, blocks run as one, in "
        "unfused torch calls, took longer.",
    )


def claim_metric(claims: pd.DataFrame) -> None:
    metric(
        "Whole models",
        f"{100 * claims['error'].abs().median():.0f} %",
        f"{int(claims['inside'].sum())} of {len(claims)} figures inside 80 % intervals",
        "Middle error against published times and speed-ups, of other people's engines.",
    )


def stack_misses(stacks: pd.DataFrame) -> Iterator[str]:
    found = stacks[stacks["way"] == frames.AS_MODEL]
    if found.empty:
        return
    alone = stacks[stacks["way"] == frames.FROM_KERNELS]
    full = found[found["ratio"] == "0:1"]
    at_best = f"; blocks of full attention alone by {by_phase(full)}" if len(full) else ""
    yield (
        f"**Blocks**: against blocks run as one the cost model is off by {by_phase(found)} "
        f"(kernels alone by {by_phase(alone)}{at_best}); inside the interval are "
        f"{inside_by_phase(found)}. Norms, gates, splits and residuals are unfused "
        "torch calls in these blocks; the cost model counts the launches of an engine that fuses "
        "them, and recurrent mixers have more of them: where nothing is fused a hybrid saves less "
        "than it says."
    )


def inside_by_phase(rows: pd.DataFrame) -> str:
    inside = rows.groupby("phase")["inside"].agg(["sum", "size"])
    return " and ".join(f"{n} of {size} in {phase}" for phase, n, size in inside.itertuples())


def by_phase(rows: pd.DataFrame) -> str:
    middles = rows.groupby("phase")["percent"].median()
    return " and ".join(f"{value:+.0f} % in {phase}" for phase, value in middles.items())


def claim_misses(claims: pd.DataFrame) -> Iterator[str]:
    far = claims[~claims["inside"]].sort_values("error", key=lambda e: -e.abs())
    if far.empty:
        return
    row = far.iloc[0]
    yield (
        f"**Published figures**: {len(far)} of {len(claims)} are outside the prediction's "
        f"interval, which knows kernels' errors only. Farthest: {plain(row['what'])}, "
        f"{row['phase']} at {format_tokens(int(row['context']))}: "
        f"{figure(row['predicted'], row['unit'])} predicted, "
        f"{figure(row['published'], row['unit'])} published."
    )


def kernel_misses(kernels: pd.DataFrame) -> Iterator[str]:
    if kernels.empty:
        return
    shapes = kernels[(kernels["fold"] == "leave_shape_out") & (kernels["mode"] == "graph")]
    if len(shapes):
        worst = shapes.sort_values("median_ape").iloc[-1]
        yield (
            f"**Other shapes**: one that nobody measured is off by "
            f"{shapes['median_ape'].median():.0f} % at the middle kernel, by "
            f"{worst['median_ape']:.0f} % for {worst['family']} {worst['phase']} by "
            f"{plain(worst['provider'])}. Such times are marked scaled."
        )
    narrow = kernels[(kernels["coverage80"] < 0.65) & (kernels["n"] >= 20)]
    if len(narrow):
        columns = (narrow[c] for c in ("family", "phase", "provider", "fold", "coverage80"))
        listed = "; ".join(
            f"{family} {phase} by {plain(provider)}, {frames.FOLDS[fold]}, {100 * coverage:.0f} %"
            for family, phase, provider, fold, coverage in zip(*columns, strict=True)
        )
        yield f"**Intervals too narrow** (under 65 % inside, of 20 points or more): {listed}."


def figure(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{value:.2f} {unit}"


# Published figures


def published(claims: pd.DataFrame) -> None:
    st.subheader("Whole models against published figures", anchor=False)
    for (what, unit), rows in frames.claims(claims).groupby(["what", "unit"], sort=False):
        first = rows.iloc[0]
        st.markdown(f"**{plain(str(what))}**, predicted for {plain(str(first['device']))}")
        title = "Times faster" if unit == "x" else "Time per output token, ms"
        st.vega_lite_chart(specs.claims(rows, title), alt=claims_alt(str(what), rows))
        st.caption(plain(f"{first['notes']} Source: {first['source']}; read {first['read_on']}."))


def claims_alt(what: str, rows: pd.DataFrame) -> str:
    figures = zip(rows["label"], rows["published"], rows["predicted"], strict=True)
    parts = [f"{label} published {a:.3g} predicted {b:.3g}" for label, a, b in figures]
    return f"{what}: {'; '.join(parts)}"


def headline(one: Published, curve: pd.DataFrame) -> None:
    """Takes a headline without a batch apart: what it can be, by the batch on either side."""
    h = one.headline
    assert h is not None
    ceiling, first, last = float(curve["ceiling"].iloc[0]), curve.iloc[0], curve.iloc[-1]
    batch = int(last["batch_size"])
    st.markdown(
        f"**Why {h.speedup:g}x needs large batches** ({plain(h.where)}, at {h.context} tokens). "
        f"At equal batches it cannot be: a sequence adds {ceiling:.2f} times the cache to read to "
        f"a step of the other model, which bounds the gain. Predicted are {first['equal']:.2f}x "
        f"for one sequence and {last['equal']:.2f}x at {batch}. But a token of one sequence alone "
        f"takes the other model {first['against_ms']:.1f} ms (published: {h.against_ms:.2f}), one "
        f"of {batch} at once takes this model {last['model_ms']:.2f} ms (published: "
        f"{h.model_ms:.2f}): **{last['against_one']:.1f}x, between different batches.**"
    )
    st.vega_lite_chart(
        specs.by_batch(curve, h.speedup, ceiling),
        alt=f"Speed-up over batch: equal batches end at {last['equal']:.2f}x, a batch of {batch} "
        f"against one sequence at {last['against_one']:.2f}x; published {h.speedup:g}x",
    )


# Stacks


def stack_section(stacks: pd.DataFrame) -> None:
    st.subheader("Stacks against their layers and kernels", anchor=False)
    if stacks.empty:
        st.info("No stack was measured in a CUDA graph here: `attn-profile run --ratios 3:1,1:0`.")
        return
    order = sorted(set(stacks["ratio"]), key=frames.linear_share)
    phases = list(stacks.groupby("phase"))
    for column, (phase, rows) in zip(st.columns(len(phases)), phases, strict=True):
        with column:
            st.markdown(f"**{str(phase).capitalize()}**")
            st.vega_lite_chart(specs.stack_errors(rows, order), alt=stacks_alt(str(phase), rows))
    st.caption(
        "Blocks run as one, 100 µs and more. Below 0: predicted too short. A layer timed alone "
        "holds the start of its timing, a stack holds one for all its layers; “less starts” takes "
        "the others off, as long as stacks of the *other* mixers say."
    )
    st.dataframe(
        frames.stack_errors(stacks),
        hide_index=True,
        column_config=error_columns(),
        alt="Errors of stacks by phase, way of predicting and ratio",
    )


def stacks_alt(phase: str, rows: pd.DataFrame) -> str:
    middles = rows.groupby("way")["percent"].median()
    named = "; ".join(f"{way} {value:+.1f} %" for way, value in middles.items())
    return f"{phase} stacks, middle error: {named}"


def error_columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    score = "Width plus ten times what lies outside, in log time: smaller is better"
    return {
        "family": text("Operation", pinned=True),
        "provider": text("Provider"),
        "phase": text("Phase"),
        "mode": text("Runtime"),
        "dtype": text("Dtype"),
        "what": text("Left out"),
        "way": text("Predicted from"),
        "ratio": text("Linear : full"),
        "n": number("Points", format="%,d"),
        "median_ape": number("Median error, %", format="%.1f"),
        "p90_ape": number("90 % below, %", format="%.1f"),
        "signed": number("Middle, signed, %", format="%+.1f"),
        "coverage80": number("Inside 80 %", format="percent"),
        "interval_score": number("Interval score", format="%.3f", help=score),
        "constant_width_score": number("Of a constant width", format="%.3f", help=score),
    }


# Kernels

KERNEL_TABLE = [
    "family", "provider", "phase", "mode", "dtype", "what", "n", "median_ape", "p90_ape",
    "coverage80", "interval_score", "constant_width_score",
]  # fmt: skip


def kernel_section(kernels: pd.DataFrame) -> None:
    st.subheader("Kernels, on points they were not shown", anchor=False)
    if kernels.empty:
        st.info("No kernel of this device has the eight points that judging one takes.")
        return
    frame = frames.kernels(kernels)
    phases = [p for p in PHASES if p in set(frame["phase"])]
    phase = st.segmented_control(
        "Phase",
        ["all", *phases],
        default="all",
        required=True,
        key="fold_phase",
        bind="query-params",
    )
    shown = frame if phase == "all" else frame[frame["phase"] == phase]
    order = [what for what in frames.FOLDS.values() if what in set(shown["what"])]
    left, right = st.columns([3, 2])
    left.vega_lite_chart(specs.folds(shown, order), alt=folds_alt(shown, order))
    right.vega_lite_chart(specs.coverage(shown, order), alt="Shares inside the 80 % interval")
    st.caption(
        "A mark is one provider of one operation; a bar, the middle one. Widths are learnt on "
        "half of the shapes and judged on the other half."
    )
    st.dataframe(
        frame[KERNEL_TABLE],
        hide_index=True,
        column_config=error_columns(),
        alt="Errors and coverage of every kernel by what was left out",
    )
    download("kernels", kernels)


def folds_alt(frame: pd.DataFrame, order: list[str]) -> str:
    middles = frame.groupby("what")["median_ape"].median()
    named = "; ".join(f"{what} {middles[what]:.1f} %" for what in order)
    return f"Median error of the middle kernel: {named}"


def download(name: str, frame: pd.DataFrame) -> None:
    st.download_button(
        "CSV",
        data=lambda: safe_csv(frame),
        file_name=f"calibration-{name}.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv_{name}",
    )


# Ours beside imported


def imported_section(rows: pd.DataFrame) -> None:
    st.subheader("Our times beside imported ones", anchor=False)
    if rows.empty:
        st.info("This device has no operation that both we and an imported table measured.")
        return
    judged = frames.ratios(rows)
    counts = judged["verdict"].value_counts()
    far = len(rows) - int(counts.get(frames.INSIDE, 0))
    st.markdown(
        f"Of {len(rows):,} pairs of one operation, shape, batch and length **{far:,}** are "
        f"outside {LOW} to {HIGH}. In {int(counts.get(frames.SIZED, 0)):,} a cold cache or the "
        "start of a timing can be all of it; in the others the kernels differ by design or "
        "release. None is adjusted."
    )
    st.vega_lite_chart(
        specs.ratios(judged),
        alt=f"Our time over imported times of {len(rows)} pairs: middle "
        f"{rows['ratio'].median():.2f}, {far} outside {LOW} to {HIGH}",
    )
    st.dataframe(
        frames.outside(rows),
        hide_index=True,
        column_config=imported_columns(),
        alt=f"Every ratio outside {LOW} to {HIGH} with its causes",
    )
    download("imported", rows)


def imported_columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "family": text("Operation", pinned=True),
        "phase": text("Phase"),
        "shape": text("Heads × dims"),
        "batch_size": number("Batch"),
        "length": number("Length, tokens", format="%,d"),
        "versions": text("Versions, ours and theirs"),
        "ours": text("Ours"),
        "theirs": text("Theirs"),
        "ratio": number("Ratio", format="%.2f"),
        "left": number(
            "Left of it",
            format="%.2f",
            help="If a cold cache and the start of a timing took the most they can.",
        ),
        "causes": text("Causes", width="large"),
    }


# Accuracy

ACCURACY_METRICS = {
    "coverage, pooled": "Inside 80 % intervals",
    "hybrids up to 7:1: median error, points": "Median error, hybrids",
    "pure recurrent: median error, points": "Median error, pure recurrent",
}


def accuracy() -> None:
    if data.comparisons().empty:
        st.info("The store holds no accuracy evidence. `attn-plan db info` says what it holds.")
        return
    bars, misses = data.quality_calibration(), data.quality_misses()
    with st.grid(3, min_column_width=180):
        for what, label in ACCURACY_METRICS.items():
            row = bars[bars["what"].str.startswith(what)].iloc[0]
            share = what.startswith("coverage")
            value = f"{100 * row['figure']:.0f} %" if share else f"{row['figure']:.1f} points"
            st.metric(label, value, border=True, help=plain(row["what"]))
    st.subheader("Where it fails", anchor=False)
    shown = frames.misses(misses.head(MAX_MISSES))
    sources = ", ".join(f"{s} {n}" for s, n in misses["source"].value_counts().items())
    st.markdown(
        f"{len(misses)} published numbers lie outside the 80 % interval that the *other* sources "
        f"gave them: {plain(sources)}. The {len(shown)} farthest:"
    )
    st.vega_lite_chart(
        specs.misses(shown),
        alt=f"The {len(shown)} farthest of {len(misses)} published numbers outside their interval",
    )
    download("accuracy-misses", misses)
    st.subheader("Each source predicted from the others", anchor=False)
    st.dataframe(
        bars,
        hide_index=True,
        column_config=bar_columns(),
        placeholder="–",
        alt="Interval scores, errors and coverage of the accuracy model, with their limits",
    )


def bar_columns() -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    kinds = (
        "a: hybrids; b: pure recurrent; c: coverage; d: beyond what was fitted; needle: one "
        "table left out"
    )
    return {
        "bar": text("Kind", help=kinds),
        "what": text("Figure of", width="large"),
        "figure": number("Figure", format="%.2f"),
        "low": number("From", format="%.2f"),
        "high": number("To", format="%.2f"),
        "limit": text("Should be"),
        "met": st.column_config.CheckboxColumn("Holds"),
    }


render()
