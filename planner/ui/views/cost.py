"""Cost: what a model and its hybrid cost side by side, over length, in memory and by part."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from planner.report.cost import CostReport
from planner.report.cost_figures import cost_figures
from planner.report.cost_text import crossing_text, energy_text, notes, price_text
from planner.report.csv import safe_csv
from planner.report.figures import length_text
from planner.report.palette import BLUE, style_of
from planner.ui import cost_charts, cost_frames, data
from planner.ui.cards import card
from planner.ui.cost_scenario import CostScenario, misread, sidebar
from planner.ui.glossary import GLOSSARY
from planner.ui.links import report_link
from planner.ui.models import show_quantised_note
from planner.ui.text import plain

CHART_WIDTH = 380
"""Pixels below which two charts stand under each other: their legends need as much."""


def render() -> None:
    report_link("cost", misread, data.devices())
    scenario = sidebar(data.devices())
    report = data.cost_report(scenario)
    headline(report, scenario)
    show_quantised_note(scenario.model, scenario.weights_dtype)
    cards(report)
    remarks(report)
    over_length(report, scenario)
    where_time_goes(report)
    memory(report, scenario)
    every_call(report)
    st.caption("The same on the command line:")
    st.code(scenario.command(), language="bash", wrap_lines=True)


def headline(report: CostReport, scenario: CostScenario) -> None:
    first, d = report.models[0], report.deployment
    st.header(plain(f"What does {first.name} cost?"), anchor=False)
    devices = f"{d.tensor_parallel} × " if d.tensor_parallel > 1 else ""
    facts = (
        f"{devices}{d.hardware.name}",
        f"{length_text(scenario.prompt_tokens)} prompt + {length_text(scenario.output_tokens)} "
        f"output, {scenario.concurrency} at once",
        f"weights {d.weights_dtype}, KV {d.kv_dtype}, {d.mode} mode",
        f"memory as {d.rules.name}",
        price_text(report),
    )
    st.caption(plain(" · ".join(facts)))


# The answer


def cards(report: CostReport) -> None:
    """The other model's figures beside the first one's; the first one's alone without another."""
    shown, base = report.models[-1], report.models[0]
    if shown is not base:
        st.markdown(f"### {plain(shown.name)}, beside {plain(base.name)} as it is")
    with st.grid(3, min_column_width=240):
        for figure in cost_figures(report):
            with st.container(border=True, height="stretch", gap="xsmall"):
                card(figure)


def remarks(report: CostReport) -> None:
    lines = [f"{m.name}: {note}" for m in report.models for note in notes(m)]
    missing = report.models[-1].energy
    if missing.input is None:
        lines.append(f"energy a token is not measured here ({', '.join(missing.missing)})")
    else:
        lines.append(
            f"energy: {energy_text(missing.input)} an input token, {energy_text(missing.output)} "
            "an output token"
        )
    st.markdown("\n".join(f"- {plain(line)}" for line in lines))


# Over length


def over_length(report: CostReport, scenario: CostScenario) -> None:
    st.subheader("Price over context length", anchor=False, help=GLOSSARY["price_over_length"])
    prices = cost_frames.prices(report)
    if prices.empty:
        st.info(
            plain(f"No price: {price_text(report)}") if report.price is None else "Nothing fits."
        )
        return
    crossings = cost_frames.crossings(report)
    with st.grid(2, min_column_width=CHART_WIDTH):
        for side in ("input tokens", "output tokens"):
            st.altair_chart(
                cost_charts.price_chart(prices, crossings, side, looks(report, scenario)),
                alt=f"Dollars a million {side} against the prompt's length",
            )
    for m in report.models[1:]:
        for side, found in m.crossings.items():
            st.markdown(
                f"- **{side.capitalize()} tokens** of {plain(m.name)}: "
                f"{plain(crossing_text(found, m))} than {plain(report.models[0].name)}"
            )
    table = length_table(report)
    with st.expander("The same as a table", icon=":material/table:"):
        st.dataframe(table, hide_index=True, column_config=_length_columns(table))
        st.download_button(
            "CSV", data=lambda: safe_csv(prices), file_name="price_over_length.csv",
            mime="text/csv", icon=":material/download:", on_click="ignore",
        )  # fmt: skip


def length_table(report: CostReport) -> pd.DataFrame:
    frame = cost_frames.prices(report)
    wide = frame.pivot_table(index="length", columns=["model", "side"], values="usd")
    wide.columns = pd.Index([f"{column[0]}: {column[1]}" for column in wide.columns])
    return wide.reset_index()


def _length_columns(table: pd.DataFrame) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    money = {c: number(c, format="$%.4f") for c in table.columns if c != "length"}
    return {"length": number("Prompt, tokens", format="%,d"), **money}


def looks(report: CostReport, scenario: CostScenario) -> dict[str, str]:
    """A colour for each model: blue for what is, the mixer's for what it would be."""
    names = [m.name for m in report.models]
    return dict(
        zip(
            names,
            [BLUE, *([style_of(scenario.mixer).colour] if scenario.mixer else [])],
            strict=True,
        )
    )


# Parts and memory


def where_time_goes(report: CostReport) -> None:
    st.subheader("Where the time goes", anchor=False)
    parts = cost_frames.parts(report)
    if parts.empty:
        st.info("The profile has no figure for this scenario.")
        return
    names = [m.name for m in report.models]
    with st.grid(2, min_column_width=CHART_WIDTH):
        for phase in ("TTFT", "TPOT"):
            st.altair_chart(
                cost_charts.parts_chart(parts, phase, names),
                alt=f"{phase} by part, a bar for each model",
            )


def memory(report: CostReport, scenario: CostScenario) -> None:
    st.subheader("Memory: by formula, and as the engine reserves it", anchor=False)
    names = [m.name for m in report.models]
    first = report.models[0].reserved
    st.altair_chart(
        cost_charts.memory_chart(cost_frames.memory(report), names, first.capacity / 2**30),
        alt="GiB of weights, KV cache and state on one device, ideal and reserved",
    )
    rules = report.deployment.rules
    st.caption(
        plain(
            f"{rules.name}: {rules.notes or 'every byte of the device, none of them rounded.'} "
            f"The rule is what it may use. Source, read {rules.read_on}: {rules.source}"
        )
    )
    st.subheader("Sequences that fit over their length", anchor=False)
    fits = cost_frames.fits(report)
    if fits.empty:
        st.info("Not one sequence fits.")
        return
    st.altair_chart(
        cost_charts.fit_chart(fits, looks(report, scenario)),
        alt="Sequences that fit against their length, reserved and ideal",
    )


def every_call(report: CostReport) -> None:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    calls = cost_frames.calls(report)
    with st.expander("Every kernel, with its basis and provider", icon=":material/list:"):
        st.dataframe(
            calls,
            hide_index=True,
            column_config={
                "model": text("Model", pinned=True),
                "phase": text("Phase"),
                "role": text("Role"),
                "part": text("Part"),
                "calls": number("Calls"),
                "ms": number("ms", format="%.4g"),
                "low": number("80 % from", format="%.4g"),
                "high": number("to", format="%.4g"),
                "share": number("Share, %", format="%.1f"),
                "basis": text("Basis", help=GLOSSARY["basis"]),
                "provider": text("Provider", help=GLOSSARY["provider"]),
            },
        )
        st.download_button(
            "CSV", data=lambda: safe_csv(calls), file_name="kernels.csv", mime="text/csv",
            icon=":material/download:", on_click="ignore", key="kernels_csv",
        )  # fmt: skip


render()
