"""Inputs: what was asked, what was assumed, and the command that asks it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from planner import catalog
from planner.decision.recommendation import Recommendation
from planner.decision.use_case import UseCase, load_use_case, use_case_ids
from planner.report.figures import length_text
from planner.units import bytes_text, percent, seconds_text
from planner.workload import format_tokens


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input as a person would write it, and where it came from."""

    name: str
    value: str
    source: str


def inputs_of(found: Recommendation) -> tuple[Input, ...]:
    """Every input of the recommendation, those of the use case marked as such or as changed."""
    case, traffic, deployment = found.use_case, found.use_case.traffic, found.deployment
    hardware, tp = deployment.hardware, deployment.tensor_parallel
    rows = [
        ("use case", f"{case.title} ({case.id})", case.source),
        ("for", "a new model" if found.intent == "build" else "an existing model", "request"),
        ("model", found.model.name, _model_source(found)),
        ("hardware", f"{hardware.name} ({hardware.id})", hardware.source),
        ("prompt length", f"{length_text(traffic.prompt_tokens)} tokens", _of(found, "prompt")),
        ("output length", f"{length_text(traffic.output_tokens)} tokens", _of(found, "output")),
        ("concurrency", f"{traffic.concurrency} sequences", _of(found, "concurrency")),
        ("prefix-cache hits", percent(traffic.prefix_hit_rate), "use case"),
        ("retention floor", percent(case.floor.retention), _of(found, "floor")),
        *(("score floor", str(f), _of(found, "score_floors")) for f in case.score_floors),
        ("floor met when", f"P(accuracy kept >= floor) >= {case.floor.level:g}", "use case"),
        ("task weights", _weights(found), "use case"),
        ("tolerance", f"{case.tolerance_points:g} points may be traded for cost", "use case"),
        ("evidence wanted", f"{case.evidence} or stronger", "use case"),
        *_limit_rows(case),
        ("weights dtype", deployment.weights_dtype, "request"),
        ("KV cache dtype", deployment.kv_dtype, "request"),
        ("compute dtype", deployment.compute_dtype, "hardware"),
        ("state dtype", deployment.state_dtype, "default"),
        ("devices", f"{tp} (tensor parallel)", "default" if tp == 1 else "request"),
    ]
    return tuple(Input(name=name, value=value, source=source) for name, value, source in rows)


def assumptions_of(found: Recommendation) -> tuple[str, ...]:
    """What the numbers take for granted, in sentences."""
    rules = found.deployment.rules
    return (
        "Lengths count tokens; 1k is 1,024. Sizes are binary: 1 GiB is 2^30 bytes.",
        "Intervals hold the true value with 80 % probability. Layers that run one kernel share "
        "its error; different kernels err independently.",
        "A model's time is the sum of its kernels and, as launches and bytes of fused ones, of "
        "norms, residuals, gates and sampling; an engine's work between steps, scheduling and "
        "queueing are not modelled.",
        "TTFT is the prefill of one request alone. TPOT is undisturbed decoding of the batch.",
        f"An engine may use {rules.usable_fraction:.0%} of the memory and reserves the KV cache "
        f"in pages of {rules.page_tokens} tokens ({rules.source}).",
        "Accuracy kept is accuracy over that of a full-attention control of the same recipe, "
        "weighted over the task classes.",
        "Placement moves no cost: the layers are the same ones in another order.",
    )


def command_of(found: Recommendation) -> str:
    """The command line that asks the same; "" where something was changed that has no flag, or the
    model is not of the catalog."""
    case, traffic, deployment = found.use_case, found.use_case.traffic, found.deployment
    if case.id not in use_case_ids() or _model_id(found) not in catalog.model_ids():
        return ""
    limits, usual = case.limits, load_use_case(case.id).limits
    changed = [(n, v) for n, v in vars(limits).items() if v != vars(usual)[n]]
    if any(value is None for _, value in changed):
        return ""
    asked = [word for name, value in changed for word in _limit_words(name, value)]
    parts = (
        "attn-plan", "recommend",
        "--use-case", case.id,
        "--for", found.intent,
        "--model", _model_id(found),
        "--hardware", deployment.hardware.id,
        "--prompt", format_tokens(traffic.prompt_tokens),
        "--output-length", format_tokens(traffic.output_tokens),
        "--concurrency", str(traffic.concurrency),
        "--retention-floor", f"{case.floor.retention:g}",
        "--weights", deployment.weights_dtype,
        "--kv", deployment.kv_dtype,
        *(["--tp", str(deployment.tensor_parallel)] if deployment.tensor_parallel > 1 else []),
        *asked,
        *(word for floor in case.score_floors for word in ("--floor", floor.spelled)),
    )  # fmt: skip
    return shlex.join(parts)


def _limit_words(name: str, value: float) -> tuple[str, str]:
    """The option that sets a limit, and its value in the option's unit."""
    flag, scale, unit = {
        "ttft_s": ("--ttft", 1.0, "s"),
        "tpot_s": ("--tpot", 1.0, "s"),
        "session_bytes": ("--session-mib", 2.0**-20, ""),
        "kv_slope_bytes": ("--kv-growth", 1.0, ""),
    }[name]
    return flag, _plain(value * scale) + unit


def _plain(value: float) -> str:
    """Without an exponent: "0.000001", "10"."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _model_id(found: Recommendation) -> str:
    """The catalog's id of the model; its name for a model that is not in the catalog."""
    named = (i for i in catalog.model_ids() if catalog.load_model(i).name == found.model.name)
    return next(named, found.model.name)


def _model_source(found: Recommendation) -> str:
    model_id = _model_id(found)
    known = model_id in catalog.model_ids()
    return catalog.model_entry(model_id).source if known else "request"


def _of(found: Recommendation, what: str) -> str:
    """Says "use case" for a number as its data file has it, "changed" for another."""
    case = found.use_case
    if case.id not in use_case_ids():
        return "request"
    original = load_use_case(case.id)
    same = {
        "prompt": case.traffic.prompt_tokens == original.traffic.prompt_tokens,
        "output": case.traffic.output_tokens == original.traffic.output_tokens,
        "concurrency": case.traffic.concurrency == original.traffic.concurrency,
        "floor": math.isclose(case.floor.retention, original.floor.retention),
        "score_floors": case.score_floors == original.score_floors,
    }
    return "use case" if same[what] else "changed from the use case"


def _weights(found: Recommendation) -> str:
    return ", ".join(f"{name} {w:.0%}" for name, w in found.use_case.task_weights.items())


def _limit_rows(case: UseCase) -> list[tuple[str, str, str]]:
    """(name, value, where from) of each limit there is."""
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "ttft_s": ("TTFT limit", seconds_text),
        "tpot_s": ("TPOT limit", seconds_text),
        "session_bytes": ("memory per session limit", bytes_text),
        "kv_slope_bytes": ("KV growth limit", lambda v: f"{v:,.0f} bytes per token"),
    }
    usual = vars(load_use_case(case.id).limits) if case.id in use_case_ids() else {}
    rows = []
    for name, value in vars(case.limits).items():
        if value is not None:
            title, text = shown[name]
            source = "use case" if usual.get(name) == value else "changed from the use case"
            rows.append((title, text(value), source if usual else "request"))
    return rows
