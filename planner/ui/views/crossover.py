"""Crossover: over context and batch, which of two mixers is faster on a device, and how sure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from planner import catalog
from planner.architecture import Architecture
from planner.cost.basis import Basis
from planner.cost.crossover import Crossover, Side
from planner.decision.advisor import Device
from planner.mixers import MIXERS
from planner.report.provenance import PROFILE_COMMAND
from planner.ui import data, specs, surface
from planner.ui.glossary import GLOSSARY
from planner.ui.links import report_link
from planner.ui.scenario import default_device, link_problems
from planner.ui.text import basis_badge, ink, plain
from planner.workload import MixerOp, Op, canonical_json, format_tokens, layer_ops

FASTEST = "fastest"
CONTEXTS = tuple(np.unique(np.geomspace(512, 1 << 20, 60).astype(int)).tolist())
TOLD = (1, 8, 32, 128)
"""Batches that the sentences and the table speak of."""

BATCHES = tuple(np.unique([*TOLD, *np.geomspace(1, 256, 50).astype(int)]).tolist())


SCOPES = ("kernel", "layer")
PHASES: tuple[Literal["prefill"], Literal["decode"]] = ("prefill", "decode")
PARAMETERS = ("hardware", "model", "first", "second", "step", "scope", "first_by", "second_by")


def render() -> None:
    devices = data.devices()
    report_link("crossover", misread, devices)
    with st.sidebar:
        st.subheader("Contest", anchor=False)
        device = devices[_select("Hardware", "hardware", list(devices), default_device(devices))]
        st.caption(f"{device.hardware.name}: {device.basis_note}")
        ids = catalog.model_ids()
        arch = catalog.load_model(_select("Model", "model", ids, "llama-3.1-8b"))
        names = list(MIXERS)
        first = _select("First mixer", "first", names, "full_attention", MIXER_HELP)
        second = _select("Second mixer", "second", names, "gated_deltanet", MIXER_HELP)
        step = _choice("Phase", "step", PHASES, GLOSSARY["phase"])
        phase = PHASES[PHASES.index(step)]
        scope = _choice("Counts", "scope", SCOPES, SCOPE_HELP)
        sides = [
            Side(name, ops(arch, name, scope), provider(device, arch, name, phase, key))
            for name, key in ((first, "first_by"), (second, "second_by"))
        ]
    found = data.crossover(device.id, sides[0], sides[1], CONTEXTS, BATCHES, phase)
    answer(found, device, arch, scope)
    pictures(found, device)
    by_batch(found)
    caveats(found, device)


def misread(parameters: Mapping[str, str], devices: Iterable[str]) -> list[str]:
    """What of a link's parameters cannot be meant: a sentence each, with what is allowed."""
    points = data.points()
    providers = [FASTEST, *sorted(set(points["provider"]))]
    choices: dict[str, Iterable[str]] = {
        "hardware": devices,
        "model": catalog.model_ids(),
        "first": list(MIXERS),
        "second": list(MIXERS),
        "step": PHASES,
        "scope": SCOPES,
        "first_by": providers,
        "second_by": providers,
    }
    return link_problems(parameters, PARAMETERS, choices=choices, numbers={})


MIXER_HELP = (
    "With the dimensions of the model's own layers, or matched to the width of its attention."
)
SCOPE_HELP = (
    "kernel: the mixer and its short convolution. layer: its projections too, which both sides "
    "pay and which draw the two together."
)


def _select(label: str, key: str, options: Sequence[str], default: str, help: str = "") -> str:
    return str(
        st.selectbox(
            label,
            options,
            index=list(options).index(default),
            key=key,
            help=help or GLOSSARY.get(key),
            bind="query-params",
        )
    )


def _choice(label: str, key: str, options: Sequence[str], help: str) -> str:
    return str(
        st.segmented_control(
            label, options, default=options[0], required=True, key=key, help=help,
            width="stretch", bind="query-params",
        )
    )  # fmt: skip


def ops(arch: Architecture, mixer: str, scope: str) -> tuple[Op, ...]:
    """What a side runs: its kernel and convolution, or the whole mixer layer."""
    spec = arch.spec_for(mixer)
    parts = layer_ops(spec, arch.hidden_size)
    return tuple(p for p in parts if scope == "layer" or p.family != "dense")


def provider(
    device: Device, arch: Architecture, mixer: str, phase: str, key: str
) -> dict[str, str]:
    """The control for one side's provider; empty for the fastest."""
    kernels = data.advisor().kernels(device)
    op = MixerOp(arch.spec_for(mixer))
    known = kernels.providers(op, phase=phase, dtype=data.compute_dtype(device))
    chosen = _select(f"{mixer} by", key, [FASTEST, *known], FASTEST, GLOSSARY["provider"])
    return {} if chosen == FASTEST else {op.family: chosen}


# The answer


def answer(found: Crossover, device: Device, arch: Architecture, scope: str) -> None:
    one, two = found.first.name, found.second.name
    st.header(plain(f"When does {two} beat {one}?"), anchor=False)
    st.caption(
        plain(
            f"{found.phase} · {scope} · dimensions of {arch.name} · {device.hardware.name} · "
            f"{data.compute_dtype(device)}"
        )
    )
    lines = "\n".join(f"- {sentence(found, batch)}" for batch in TOLD if batch in found.batches)
    st.markdown(lines)
    shares = surface.cells(found)["basis"].value_counts(normalize=True)
    badges = " ".join(f"{basis_badge(str(b))} {100 * s:.0f} %" for b, s in shares.items())
    st.markdown(f"Share of the surface by basis: {badges}")


def sentence(found: Crossover, batch: int) -> str:
    """What happens along one batch, in words, each figure with its basis."""
    i = int(np.flatnonzero(found.batches == batch)[0])
    line = found.line
    context, low, high = (float(v[i]) for v in (line.context, line.low, line.high))
    last = format_tokens(int(found.contexts[-1]))
    lead, two = f"**Batch {batch}**:", plain(found.second.name)
    ahead = found.log_ratio[i, -1]
    at_end = ""
    if np.isfinite(ahead):
        half = found.half[i, -1]
        slow, fast = (times_text(np.exp(ahead + sign * half)) for sign in (-1, 1))
        at_end = (
            f" At {last} it is {times_text(np.exp(ahead))} as fast (80 %: {slow} to {fast}; "
            f"{basis_at(found, i, -1)})."
        )
    if np.isnan(context):
        surely = "" if np.isnan(low) else f", though within the error it could from {tokens(low)}"
        return f"{lead} {two} never stays ahead up to {last}{surely}.{at_end}"
    if context == found.contexts[0]:
        return f"{lead} {two} is ahead from the first context, {tokens(context)}, on.{at_end}"
    end = f"beyond {last}" if np.isnan(high) else tokens(high)
    there = int(np.searchsorted(found.contexts, context))
    return (
        f"{lead} {two} stays ahead from **{tokens(context)}** tokens (80 %: {tokens(low)} to "
        f"{end}; {basis_at(found, i, there)}).{at_end}"
    )


def basis_at(found: Crossover, batch: int, context: int) -> str:
    return Basis(int(found.basis[batch, context])).label


def times_text(ratio: float) -> str:
    """Three digits: "0.85x", "12.3x", "1,960x"."""
    return f"{float(f'{ratio:.3g}'):,.10g}x"


def tokens(count: float) -> str:
    """Three digits: "964", "4,120"."""
    return f"{float(f'{count:.3g}'):,.0f}"


# The surface


def pictures(found: Crossover, device: Device) -> None:
    title = "Context, cached tokens" if found.phase == "decode" else "Context, new tokens"
    cells, line = surface.cells(found), surface.line(found)
    one, two = found.first.name, found.second.name
    st.vega_lite_chart(
        specs.surface(cells, line, one, two, title, ink()),
        alt=f"Speed of {two} over {one} by context and batch; "
        + " ".join(plain(sentence(found, b)) for b in TOLD),
    )
    st.caption(
        "Full colour: ahead by more than the 80 % interval; faded: no clear winner. The line is "
        "where the lead changes for good, its band the 80 % interval. Left of the dotted line "
        "both take less than 30 µs."
    )
    st.subheader("What it rests on", anchor=False, help=GLOSSARY["basis"])
    measured = both_measured(found, device)
    st.vega_lite_chart(
        specs.basis(cells, measured, title),
        alt=f"Basis of each cell; {len(measured)} were measured on both sides",
    )
    st.caption(
        "The worse of the two sides. Dots: both sides' kernels were measured there, in this shape."
    )


def both_measured(found: Crossover, device: Device) -> pd.DataFrame:
    """Contexts and batches where every operation of both sides has a point in this shape."""
    points = data.points()
    points = points[(points["device_id"] == device.id) & (points["outcome"] == "ok")]
    length = "cached_tokens" if found.phase == "decode" else "new_tokens"
    wanted = points[
        (points["phase"] == found.phase) & (points["dtype"] == data.compute_dtype(device))
    ]
    shared: set[tuple[int, int]] | None = None
    for op in (found.first.ops[0], found.second.ops[0]):
        own = wanted[(wanted["family"] == op.family) & (wanted["spec"] == spec_text(op))]
        places = set(zip(own[length].astype(int), own["batch_size"].astype(int), strict=True))
        shared = places if shared is None else shared & places
    inside = [
        (context, batch)
        for context, batch in sorted(shared or ())
        if found.contexts[0] <= context <= found.contexts[-1] and batch <= found.batches[-1]
    ]
    return pd.DataFrame(inside, columns=["context", "batch_size"])


def spec_text(op: Op) -> str:
    return canonical_json(op.to_dict())


def by_batch(found: Crossover) -> None:
    line = surface.line(found)
    line = line[line["batch_size"].isin(TOLD)]
    index = [int(np.flatnonzero(found.batches == b)[0]) for b in line["batch_size"]]
    table = pd.DataFrame(
        {
            "batch": line["batch_size"],
            "context": line["context"],
            "low": line["low"],
            "high": line["high"],
            "first": [", ".join(providers(found.first_provider[i])) for i in index],
            "second": [", ".join(providers(found.second_provider[i])) for i in index],
        }
    )
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    st.dataframe(
        table,
        hide_index=True,
        placeholder="never",
        column_config={
            "batch": number("Batch"),
            "context": number("Stays ahead from, tokens", format="%,.0f"),
            "low": number("80 %, from", format="%,.0f"),
            "high": number("80 %, to", format="%,.0f"),
            "first": text(f"{found.first.name} by", width="medium"),
            "second": text(f"{found.second.name} by", width="medium"),
        },
        alt="Where the lead changes, by batch, with the providers on either side",
    )


def providers(names: Sequence[str]) -> list[str]:
    """In the order they take over along the context."""
    return [str(n) for n in dict.fromkeys(names)]


def caveats(found: Crossover, device: Device) -> None:
    notes = [
        "Kernels only: an 8B model's prefill at 4k is mostly matrix products, so a mixer that is "
        "twice as fast may save a few percent of the model. The Recommend page costs whole "
        "models.",
        "The line moves with the kernel's version as much as with the architecture: choose other "
        "providers on the left to see it move.",
    ]
    share = surface.launch_bound_share(found)
    if share:
        notes.append(
            f"In {100 * share:.0f} % of the surface both sides take less than 30 µs: there "
            "launches decide, and whether calls run from CUDA graphs (here they do, where so "
            "measured)."
        )
    if not device.measured_points:
        notes.append(
            f"Nothing was measured on {plain(device.hardware.name)} by you: `{PROFILE_COMMAND}`."
        )
    notes.append("Whether a context and batch fit the memory is not asked here.")
    st.markdown("\n".join(f"- {note}" for note in notes))


render()
