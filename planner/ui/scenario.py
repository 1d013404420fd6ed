"""Scenario: what the sidebar asks and the address bar holds.

Every control is bound to a query parameter of the same name, so a link reopens the same view.
Parameters at their default are left out of the link. The labels in links are a contract: ids and
plain numbers, lengths as "32k".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import streamlit as st

from planner import catalog
from planner.decision.advisor import Device
from planner.decision.use_case import (
    INTENTS,
    Intent,
    Limits,
    UseCase,
    load_use_case,
    use_case_ids,
)
from planner.errors import EnvironmentProblem, UsageError
from planner.quality.absolute import ScoreFloor
from planner.ui import models
from planner.ui.glossary import GLOSSARY
from planner.ui.text import refuse
from planner.workload import format_tokens, parse_lengths, parse_tokens

T = TypeVar("T")

Range = tuple[int, int | None]
"""The least and the greatest whole number that a control takes; None is no greatest."""

LENGTHS = [format_tokens(n) for n in parse_lengths("128:1m")]
NO_LIMIT = "none"
DEVICE_DTYPE = "default"
WEIGHT_DTYPES = (DEVICE_DTYPE, "fp32", "bf16", "fp8", "int8", "int4")
KV_DTYPES = (DEVICE_DTYPE, "fp32", "bf16", "fp8")
DEGREES = ("1", "2", "4", "8")

NUMBER_PARAMETERS: dict[str, Range] = {"concurrency": (1, None), "floor": (0, 110)}
"""The others without a fixed choice are free text: what cannot be read there is said with its
reason, beside the value that stands in for it (`read_or`)."""

FIRST_USE_CASE = "throughput"
"""The filled-in example that a first visit shows."""

PARAMETERS = (
    "use_case", "for", "model", "hardware", "prompt", "output", "concurrency", "floor",
    "score_floor", "ttft_ms", "tpot_ms", "session_mib", "kv_growth", "weights", "kv",
    "tp",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One question to the advisor. `floor_percent` of accuracy to keep; a limit of None is none.

    A dtype of None is the one that the device computes in.
    """

    use_case: str
    intent: Intent
    model: str
    hardware: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    floor_percent: int
    ttft_ms: float | None
    tpot_ms: float | None
    session_mib: float | None
    kv_growth_bytes: float | None
    weights_dtype: str | None
    kv_dtype: str | None
    tensor_parallel: int
    score_floors: tuple[ScoreFloor, ...] = ()

    def to_use_case(self) -> UseCase:
        """The use case with this scenario's numbers. Raises UsageError for one out of range."""
        case = load_use_case(self.use_case).changed(
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            concurrency=self.concurrency,
            retention_floor=self.floor_percent / 100,
            score_floors=self.score_floors,
        )
        limits = Limits(
            ttft_s=_scaled(self.ttft_ms, 1e-3),
            tpot_s=_scaled(self.tpot_ms, 1e-3),
            session_bytes=_scaled(self.session_mib, 2**20),
            kv_slope_bytes=self.kv_growth_bytes,
        )
        return replace(case, limits=limits)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def presets(case: UseCase) -> dict[str, object]:
    """The values that a use case sets, by parameter."""
    limits = case.limits
    return {
        "prompt": format_tokens(case.traffic.prompt_tokens),
        "output": format_tokens(case.traffic.output_tokens),
        "concurrency": case.traffic.concurrency,
        "floor": round(100 * case.floor.retention),
        "score_floor": ", ".join(map(str, case.score_floors)) or NO_LIMIT,
        "ttft_ms": limit_text(_scaled(limits.ttft_s, 1e3)),
        "tpot_ms": limit_text(_scaled(limits.tpot_s, 1e3)),
        "session_mib": limit_text(_scaled(limits.session_bytes, 2**-20)),
        "kv_growth": limit_text(limits.kv_slope_bytes),
    }


def apply_presets() -> None:
    """Sets every number to that of the chosen use case; model, devices and dtypes stay."""
    st.session_state.update(presets(load_use_case(st.session_state["use_case"])))


def sidebar(devices: Mapping[str, Device]) -> Scenario:
    """Draws the controls and returns what they say; for text that cannot be read, says so and
    takes the use case's own value."""
    with st.sidebar:
        st.subheader("Scenario", anchor=False)
        case = _use_case()
        intent = _intent()
        model = _select("Model", "model", catalog.model_ids(), case.model_for(intent), typed=True)
        hardware = _hardware(devices)
        degree = tensor_parallel()
        prompt = _length("Prompt", "prompt", case.traffic.prompt_tokens)
        output = _length("Output", "output", case.traffic.output_tokens)
        concurrency = _concurrency(case)
        floor = _floor(case)
        score_floors = _score_floors(case)
        limits = _limits(case)
        weights, kv = _dtypes()
        st.button("Reset to the use case", on_click=apply_presets, width="stretch")
        st.caption("The address bar holds this scenario: copy it to share.")
    own = presets(case)

    def limit(key: str) -> float | None:
        return read_or(partial(parse_limit, key), limits[key], str(own[key]), LIMITS[key])

    return Scenario(
        use_case=case.id,
        intent=intent,
        model=read_or(models.loadable, model, case.model_for(intent), "model"),
        hardware=hardware,
        prompt_tokens=read_length("prompt", prompt, str(own["prompt"])),
        output_tokens=read_length("output", output, str(own["output"])),
        concurrency=concurrency,
        floor_percent=floor,
        ttft_ms=limit("ttft_ms"),
        tpot_ms=limit("tpot_ms"),
        session_mib=limit("session_mib"),
        kv_growth_bytes=limit("kv_growth"),
        weights_dtype=None if weights == DEVICE_DTYPE else weights,
        kv_dtype=None if kv == DEVICE_DTYPE else kv,
        tensor_parallel=degree,
        score_floors=read_or(
            parse_score_floors, score_floors, str(own["score_floor"]), "Score floor"
        ),
    )


def read_or(read: Callable[[str], T], text: str, default: str, label: str) -> T:
    """What `text` says; where it says nothing that can be meant, one line about it and what
    `default` says: a page keeps its answer and its controls while a value is corrected."""
    try:
        return read(text)
    except (UsageError, EnvironmentProblem) as error:
        refuse(error, f"{label} {default}")
        return read(default)


def read_length(key: str, text: str, default: str) -> int:
    """A length of at least one token."""

    def read(text: str) -> int:
        tokens = parse_tokens(text)
        if tokens < 1:
            raise UsageError(f"{key}_tokens must be at least 1, got {text!r}")
        return tokens

    return read_or(read, text, default, f"{key} length")


def _select(label: str, key: str, options: list[str], default: str, *, typed: bool = False) -> str:
    """A selectbox in the link; `typed` ones take any text."""
    chosen = st.selectbox(
        label,
        options,
        index=options.index(default),
        key=key,
        help=GLOSSARY.get(key),
        accept_new_options=typed,
        bind="query-params",
    )
    return str(chosen)


def _use_case() -> UseCase:
    ids = use_case_ids()
    chosen = st.selectbox(
        "Use case",
        ids,
        index=ids.index(FIRST_USE_CASE),
        key="use_case",
        help=GLOSSARY["use_case"],
        on_change=apply_presets,
        bind="query-params",
    )
    case = load_use_case(chosen)
    st.caption(case.title)
    return case


def _intent() -> Intent:
    chosen = st.segmented_control(
        "For",
        INTENTS,
        default="build",
        required=True,
        key="for",
        help=GLOSSARY["for"],
        width="stretch",
        bind="query-params",
    )
    return chosen


def _hardware(devices: Mapping[str, Device]) -> str:
    ids = list(devices)
    chosen = _select("Hardware", "hardware", ids, default_device(devices))
    st.caption(f"{devices[chosen].hardware.name}: {devices[chosen].basis_note}")
    return chosen


def tensor_parallel() -> int:
    """The control for how many devices share every layer, here and on the Cost page."""
    return int(_select("Tensor-parallel devices", "tp", list(DEGREES), DEGREES[0]))


def default_device(devices: Mapping[str, Device]) -> str:
    """The GPU of the catalog with the most points, an H200 where none has any."""
    known = [d for d in devices.values() if d.id in catalog.hardware_ids()]
    best = max(known, key=lambda d: (d.measured_points, d.imported_points, d.id == "h200-sxm"))
    return best.id


def _length(label: str, key: str, default_tokens: int) -> str:
    """Powers of two to choose from; any other length can be typed, as "3000" or "96k"."""
    default = format_tokens(default_tokens)
    options = LENGTHS if default in LENGTHS else [default, *LENGTHS]
    chosen = st.selectbox(
        f"{label} length, tokens",
        options,
        index=options.index(default),
        key=key,
        help=GLOSSARY["length"],
        accept_new_options=True,
        bind="query-params",
    )
    return str(chosen)


def _concurrency(case: UseCase) -> int:
    return st.number_input(
        "Concurrency, sequences",
        min_value=1,
        value=case.traffic.concurrency,
        key="concurrency",
        help=GLOSSARY["concurrency"],
        bind="query-params",
    )


def _floor(case: UseCase) -> int:
    return int(
        st.slider(
            "Retention floor, %",
            min_value=0,
            max_value=110,
            value=round(100 * case.floor.retention),
            key="floor",
            help=GLOSSARY["floor"].format(level=case.floor.level),
            bind="query-params",
        )
    )


def _score_floors(case: UseCase) -> str:
    return st.text_input(
        "Score floor",
        value=str(presets(case)["score_floor"]),
        key="score_floor",
        help=GLOSSARY["score_floor"],
        bind="query-params",
    )


def parse_score_floors(text: str) -> tuple[ScoreFloor, ...]:
    """Reads "RULER>=85@128k", several with commas, "none" or nothing. Raises UsageError."""
    if text.strip().lower() in ("", NO_LIMIT):
        return ()
    return tuple(ScoreFloor.parse(part) for part in text.replace(" at ", "@").split(","))


LIMITS = {
    "ttft_ms": "TTFT at most, ms",
    "tpot_ms": "TPOT at most, ms",
    "session_mib": "Memory per session at most, MiB",
    "kv_growth": "KV growth at most, bytes per token",
}


def _limits(case: UseCase) -> dict[str, str]:
    """The four limits. Typed as text, so that a limit can be taken away and a link can say so."""
    defaults = presets(case)
    with st.expander("Limits", icon=":material/speed:"):
        return {
            key: st.text_input(
                label,
                value=str(defaults[key]),
                key=key,
                help=GLOSSARY[key],
                bind="query-params",
            )
            for key, label in LIMITS.items()
        }


def limit_text(value: float | None) -> str:
    return NO_LIMIT if value is None else f"{value:.6g}"


def parse_limit(key: str, text: str) -> float | None:
    """Reads "50" as 50.0, "none" or nothing as None. Raises UsageError."""
    if text.strip().lower() in ("", NO_LIMIT):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{LIMITS[key]}: must be a number of at least 0, or none; got {text!r}")
    return value


def _dtypes() -> tuple[str, str]:
    with st.expander("Data types", icon=":material/memory:"):
        weights = _select("Weights", "weights", list(WEIGHT_DTYPES), DEVICE_DTYPE)
        kv = _select("KV cache", "kv", list(KV_DTYPES), DEVICE_DTYPE)
    return weights, kv


# Links


def misread(parameters: Mapping[str, str], devices: Iterable[str]) -> list[str]:
    """What of a link's parameters cannot be meant: a sentence each, with what is allowed."""
    choices: dict[str, Iterable[str]] = {
        "use_case": use_case_ids(),
        "for": INTENTS,
        "hardware": devices,
        "weights": WEIGHT_DTYPES,
        "kv": KV_DTYPES,
        "tp": DEGREES,
    }
    return link_problems(parameters, PARAMETERS, choices=choices, numbers=NUMBER_PARAMETERS)


def link_problems(
    parameters: Mapping[str, str], known: Sequence[str], *,
    choices: Mapping[str, Iterable[str]], numbers: Mapping[str, Range],
) -> list[str]:  # fmt: skip
    """Unknown names, and values that are no choice or no number.

    Streamlit drops such parameters without a word; a person who followed the link has to know.
    """
    found = []
    for name, value in parameters.items():
        if name not in known:
            found.append(f"{name}: no such parameter; there are {', '.join(known)}")
        elif name in choices and value not in choices[name]:
            found.append(f"{name}={value}: must be one of {', '.join(choices[name])}")
        elif name in numbers and not _within(value, numbers[name]):
            low, high = numbers[name]
            bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
            found.append(f"{name}={value}: must be a whole number {bounds}")
    return found


def _within(text: str, bounds: Range) -> bool:
    low, high = bounds
    return text.isdecimal() and low <= int(text) and (high is None or int(text) <= high)
