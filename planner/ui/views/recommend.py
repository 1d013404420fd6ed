"""Recommend: the answer first, then the frontier, then why, then every design."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pandas as pd
import streamlit as st

from planner.report import ReportModel
from planner.report.csv import safe_csv
from planner.report.designs import Design, costs_in_seconds, designs_of, frame_of
from planner.report.figures import length_text
from planner.report.limits import LimitReport
from planner.ui import data, specs
from planner.ui.cards import card
from planner.ui.cost_scenario import cost_link
from planner.ui.glossary import GLOSSARY
from planner.ui.links import report_link, same_tab_link
from planner.ui.models import show_quantised_note
from planner.ui.scenario import Scenario, limit_text, misread, sidebar
from planner.ui.text import basis_badge, ink, plain
from planner.units import percent, seconds_text


def render() -> None:
    report_link("recommend", misread, data.devices())
    scenario = sidebar(data.devices())
    model = data.report(scenario)
    headline(model, scenario)
    show_quantised_note(scenario.model, scenario.weights_dtype)
    if model.answer:
        answer_card(model, scenario)
    else:
        nothing_feasible(model)
    basis_warning(model)
    frontier(model, scenario)
    if model.answer:
        left, right = st.columns([3, 2], gap="large")
        with left:
            why(model)
        with right:
            alternatives(model)
            notes(model)
    else:
        notes(model)
    every_design(model, scenario)
    downloads(model)


def headline(model: ReportModel, scenario: Scenario) -> None:
    st.header(plain(model.question), anchor=False)
    kind = "a new model" if model.intent == "build" else "an existing model"
    prompt, output = length_text(scenario.prompt_tokens), length_text(scenario.output_tokens)
    facts = (
        model.title,
        f"{kind} on {model.model}",
        model.hardware,
        f"{prompt} prompt + {output} output",
        f"{scenario.concurrency} at once",
    )
    st.caption(plain(" · ".join(facts)))


# The answer


def answer_card(model: ReportModel, scenario: Scenario) -> None:
    answer = model.answer
    assert answer is not None
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"### {plain(answer.label)}", width="content")
            st.badge(f"decided by {answer.decided_by}", icon=":material/gavel:", color="primary")
            st.markdown(f"cost {basis_badge(answer.basis)}", width="content")
        st.markdown(plain(sentence(answer.because)))
        strip(model, scenario)
    with st.grid(3, min_column_width=240):
        for figure in model.figures:
            with st.container(border=True, height="stretch", gap="xsmall"):
                card(figure)
    same_tab_link(
        "In dollars, over length and by part", cost_link(scenario, answer.mixer, answer.ratio)
    )


def strip(model: ReportModel, scenario: Scenario) -> None:
    counts = Counter((layer.letter, layer.title) for layer in model.layers)
    legend = " · ".join(f"**{k}** {plain(title)} × {n}" for (k, title), n in counts.items())
    named = ", ".join(f"{n} {title}" for (_, title), n in counts.items())
    pattern = "".join(layer.letter for layer in model.layers)
    st.vega_lite_chart(
        specs.strip(scenario), alt=f"{len(pattern)} layers from first to last, {pattern}: {named}"
    )
    st.caption(f"{legend} · {len(pattern)} layers, the first one left")


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


# Nothing feasible


def nothing_feasible(model: ReportModel) -> None:
    with st.container(border=True):
        st.markdown("### Nothing meets the limits")
        st.markdown(
            f"None of {len(model.designs)} designs meets every limit and the floor on "
            f"{plain(model.hardware)}. What stands in the way, and the nearest value reached:"
        )
        for limit in model.limits:
            binding(limit)


RELAXABLE = {
    "floor": ("floor", 100.0),
    "ttft": ("ttft_ms", 1e3),
    "tpot": ("tpot_ms", 1e3),
    "session_bytes": ("session_mib", 2**-20),
    "kv_slope": ("kv_growth", 1.0),
}
"""Which control sets a limit, and how many of its units one of the model's makes."""


def binding(limit: LimitReport) -> None:
    text, button = st.columns([5, 1], vertical_alignment="center")
    text.markdown(rejection(limit))
    if limit.relax_text:
        button.button(
            "Relax to that",
            key=f"relax_{limit.constraint}",
            help=plain(limit.relax_text),
            on_click=relax,
            args=(limit.constraint, limit.relax_to, limit.relax_dtype),
            width="stretch",
        )


def relax(constraint: str, value: float, dtype: str) -> None:
    """Sets the limit's control to the nearest value that lets a design pass."""
    if constraint == "memory":
        st.session_state["weights"] = dtype
        return
    key, scale = RELAXABLE[constraint]
    if constraint == "floor":
        st.session_state[key] = math.floor(value * scale + 1e-6)
    else:
        st.session_state[key] = limit_text(float(math.ceil(value * scale)))


def basis_warning(model: ReportModel) -> None:
    """Says plainly where a device has no measurements of its own, and what to run."""
    p = model.provenance
    if p.advice:
        show = st.info if p.imported_points else st.warning
        show(f"{plain(p.advice)}  \n`{p.profile_command}`", icon=":material/architecture:")


# The frontier


def frontier(model: ReportModel, scenario: Scenario) -> None:
    st.subheader("Cost against accuracy", anchor=False, help=GLOSSARY["retention"])
    spec = specs.frontier(scenario, ink())
    if spec is None:
        st.info(no_cost(model))
        return
    st.vega_lite_chart(spec, alt=frontier_alt(model))
    st.caption(
        "One mark per mixer and ratio. Rules are 80 % intervals, the line is the Pareto frontier; "
        "faded designs miss a limit or the floor. On the bottom edge: designs far below it and, "
        "as ticks, designs without accuracy evidence."
    )


def no_cost(model: ReportModel) -> str:
    """That there is nothing to draw, and what keeps even the nearest design from a cost."""
    reasons = (
        f" Nearest is {x.nearest}: {x.nearest_text}."
        for x in model.limits
        if x.constraint in ("memory", "profile")
    )
    return plain(f"No design has a cost on this device.{next(reasons, '')}")


def frontier_alt(model: ReportModel) -> str:
    chosen = model.answer.label if model.answer else "none"
    on = sum(d.on_frontier for d in model.designs)
    return (
        f"Cost against accuracy kept of {len(model.designs)} designs, {on} of them on the Pareto "
        f"frontier; recommended: {chosen}"
    )


# Why, and what else


def why(model: ReportModel) -> None:
    st.subheader("Why", anchor=False)
    for reason in model.reasons:
        if reason.kind != "limit":
            st.markdown(f"**{reason.kind.capitalize()}.** {plain(sentence(reason.text))}")
            st.caption(f"{basis_badge(reason.basis)} {plain(reason.source)}")
    limits = [r for r in model.reasons if r.kind == "limit"]
    if limits:
        st.markdown("**Limits.**")
        st.markdown(
            "\n".join(
                f"- {plain(sentence(r.text))} :small[{basis_badge(r.basis)}]" for r in limits
            )
        )


def alternatives(model: ReportModel) -> None:
    if model.runner_up:
        st.subheader("Runner-up", anchor=False)
        runner_up(model.runner_up, model)
    if model.limits:
        st.subheader("Rejected, by limit", anchor=False)
        st.markdown("\n".join(f"- {rejection(limit)}" for limit in model.limits))


def rejection(limit: LimitReport) -> str:
    """One limit in a sentence: how many it rejects, who is nearest, what would let it pass."""
    alone = f", {limit.rejects_alone} for this alone" if limit.rejects_alone else ""
    relaxed = f" {plain(sentence(limit.relax_text))}" if limit.relax_text else ""
    return (
        f"**{limit.title}** rejects {limit.rejects} of {limit.designs}{alone}. Nearest is "
        f"{plain(limit.nearest)}: {plain(limit.nearest_text)}.{relaxed}"
    )


def runner_up(other: Design, model: ReportModel) -> None:
    chosen = next(d for d in model.designs if d.role == "recommended")
    more = other.gpu_seconds_per_request / chosen.gpu_seconds_per_request - 1
    st.markdown(
        f"**{plain(other.label)}**: {other.cost_phrase} ({100 * more:+.0f} % on the "
        f"recommendation), accuracy kept "
        f"{percent(round(other.accuracy_kept, 3))} (80 %: {percent(round(other.accuracy_low, 3))} "
        f"to {percent(round(other.accuracy_high, 3))}), TTFT {seconds_text(other.ttft_s)}, TPOT "
        f"{seconds_text(other.tpot_s)}, {other.max_concurrency:,} sessions fit."
    )


def notes(model: ReportModel) -> None:
    if model.notes:
        st.subheader("Notes", anchor=False)
        st.markdown("\n".join(f"- {plain(sentence(note))}" for note in model.notes))


# Everything, and taking it away


def every_design(model: ReportModel, scenario: Scenario) -> None:
    st.subheader("Every design", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        placements = st.toggle(
            "All placements",
            key="placements",
            help="Placement moves no cost; without evidence it is uniform, by convention.",
        )
        designs = model.designs
        if placements:
            designs = designs_of(data.recommendation(scenario), all_placements=True)
        frame = frame_of(designs)
        st.download_button(
            "CSV",
            data=lambda: safe_csv(frame),
            file_name="designs.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
    st.dataframe(
        design_table(frame),
        hide_index=True,
        column_config=design_columns(in_seconds=costs_in_seconds(frame["cost_ratio"])),
        placeholder="–",
        alt="Every design with its cost, accuracy, memory and the limits it misses",
    )


def design_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The designs in display units; costs in GPU seconds where no session of the baseline fits."""
    cost = "gpu_seconds_per_request", "gpu_seconds_low", "gpu_seconds_high"
    if not costs_in_seconds(frame["cost_ratio"]):
        cost = "cost_ratio", "cost_ratio_low", "cost_ratio_high"
    value, low, high = (frame[name] for name in cost)
    return pd.DataFrame(
        {
            "design": frame["label"],
            "verdict": frame["verdict"],
            "cost": value,
            "cost_low": low,
            "cost_high": high,
            "kept": 100 * frame["accuracy_kept"],
            "kept_low": 100 * frame["accuracy_low"],
            "kept_high": 100 * frame["accuracy_high"],
            "evidence": frame["evidence"],
            "rows": frame["num_rows"],
            "ttft": 1e3 * frame["ttft_s"],
            "tpot": 1e3 * frame["tpot_s"],
            "batch": frame["batch_size"],
            "session": frame["session_bytes"] / 2**20,
            "fit": frame["max_concurrency"],
            "basis": frame["cost_basis"],
        }
    )


def design_columns(*, in_seconds: bool) -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    unit, what = "%.2fx", "GPU time per request over the baseline's"
    if in_seconds:
        unit, what = "%.3g s", "GPU time per request: no session of the baseline fits"
    return {
        "design": text("Design", pinned=True),
        "verdict": text("Verdict", help="Its role, or the limits it misses"),
        "cost": number("Cost", format=unit, help=what),
        "cost_low": number("Cost, low", format=unit, help="80 % interval"),
        "cost_high": number("Cost, high", format=unit, help="80 % interval"),
        "kept": number("Kept, %", format="%.1f", help=GLOSSARY["retention"]),
        "kept_low": number("Kept, low", format="%.0f", help="80 % interval"),
        "kept_high": number("Kept, high", format="%.0f", help="80 % interval"),
        "evidence": text("Evidence"),
        "rows": number("Rows", help="Accuracy rows behind the score"),
        "ttft": number("TTFT, ms", format="%,.0f"),
        "tpot": number("TPOT, ms", format="%.1f"),
        "batch": number("Batch", help="Sequences decoded together: what was asked and fits"),
        "session": number("Session, MiB", format="%,.0f"),
        "fit": number("Sessions that fit", format="%,d"),
        "basis": text("Cost basis", help=GLOSSARY["basis"]),
    }


def downloads(model: ReportModel) -> None:
    st.subheader("Take it along", anchor=False)
    st.caption("The report repeats inputs, assumptions, reasons, basis, provenance and sources.")
    forms = (
        ("HTML", "html", "text/html", model.to_html),
        ("Markdown", "md", "text/markdown", model.to_markdown),
        ("JSON", "json", "application/json", model.to_json),
    )
    with st.container(horizontal=True):
        for label, suffix, mime, make in forms:
            st.download_button(
                f"Report, {label}",
                data=make,
                file_name=f"attention-plan.{suffix}",
                mime=mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"report_{suffix}",
            )
    if model.command:
        st.caption("The same question on the command line:")
        st.code(model.command, language="bash", wrap_lines=True)


render()
