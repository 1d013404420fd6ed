"""Our times beside imported ones of the same operation, and what can make them differ.

A ratio is ours over theirs. It is never corrected: a row outside 0.75 to 1.33 gets its causes,
from the facts of both rows, and what would remain if the causes that have a size (a cold cache,
the start of a timing) took all they can. The pairs that are comparable at all are written down
below; imported times are read at our lengths from their own fit, between their points only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from planner.calibration.stacks import ONE_REPLAY
from planner.cost.basis import Basis
from planner.cost.kernel import KernelCost
from planner.cost.observations import Observation, observations
from planner.hardware import Hardware
from planner.store import Environment
from planner.units import bytes_text

LOW, HIGH = 0.75, 1.33

START_S = 13e-6
"""The most that a pair of events around one replay was seen to add on an H200: 2 to 3 us to calls
bound by arithmetic or latency, 7 to 13 us to those that read all they can (docs/log.md)."""

MODE = "graph"


@dataclass(frozen=True)
class Pair:
    """Two providers of one family that are comparable. `theirs` without its version.

    `same_code` where both run releases of one kernel; `why` says what differs else.
    """

    families: tuple[str, ...]
    phases: tuple[str, ...]
    ours: str
    theirs: tuple[str, ...]
    same_code: bool
    why: str


_ATTENTION, _BOTH = ("full_attention", "sliding_window"), ("prefill", "decode")
_DELTA = ("gated_deltanet", "kda")
_FA3 = ("vllm_fa3", "sglang_fa3")
_FA2 = "FlashAttention 2 here, without Hopper's matrix instructions, 3 there"

PAIRS = (
    Pair(_ATTENTION, _BOTH, "sdpa_cudnn", _FA3, False,
         "cuDNN's fused attention here, FlashAttention 3 there"),
    Pair(_ATTENTION, _BOTH, "sdpa_cudnn", ("trtllm",), False,
         "cuDNN's fused attention here, TensorRT-LLM's own there"),
    Pair(_ATTENTION, _BOTH, "triton", (*_FA3, "trtllm"), False,
         "this project's Triton kernel here, a hand-written Hopper kernel there"),
    Pair(_ATTENTION, _BOTH, "sdpa_flash", _FA3, False, _FA2),
    Pair(_ATTENTION, ("prefill",), "varlen", _FA3, False, _FA2),
    Pair(_DELTA, ("prefill",), "fla", ("sglang_chunk", "trtllm_chunk"), True,
         "another release of fla's chunk kernels"),
    Pair(_DELTA, ("prefill",), "fla", ("vllm_flashinfer", "vllm_flashkda"), False,
         "fla's Triton chunk kernels here, kernels written for Hopper there"),
    Pair(_DELTA, ("decode",), "fla", ("sglang_fused_recurrent", "vllm_fused_recurrent"), True,
         "another release of fla's step kernel"),
    Pair(("short_convolution",), _BOTH, "fla", ("vllm_causal_conv1d",), False,
         "fla's Triton convolution here, vLLM's there"),
    Pair(("dense",), ("prefill",), "torch", ("vllm_linear",), True, "another release of cuBLAS"),
)  # fmt: skip

LIBRARY = {
    "sdpa_cudnn": "cudnn",
    "sdpa_flash": "torch",
    "varlen": "torch",
    "triton": "triton",
    "fla": "fla-core",
    "torch": "cuda",
}
"""The package whose release decides a provider's kernel."""

COLUMNS = (
    "family", "phase", "shape", "batch_size", "length", "ours", "theirs", "versions", "ours_s",
    "theirs_s", "ratio", "basis", "outside", "same_code", "why", "causes", "left",
)  # fmt: skip


def beside_imported(
    points: pd.DataFrame, hardware: Hardware, environments: Mapping[str, Environment]
) -> pd.DataFrame:
    """One row per own point in a CUDA graph and comparable imported provider of its operation.

    `points` are one device's. `ratio` is ours over theirs; `left` is what stays of it, no nearer
    than 1, if every cause that has a size takes its most. `causes` is empty inside 0.75 to 1.33.
    """
    own, theirs = _sides(points)
    if own.empty or theirs.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    kernels = KernelCost.fit(observations(theirs), hardware, cache_state="warm")
    seen = {o.key: o for o in observations(own)}
    rows: Any = own[own["key"].isin(seen)].itertuples()
    found = [
        _row(row, o, provider, pair, kernels, environments[row.environment_id])
        for row in rows
        for o in [seen[row.key]]
        for provider, pair in _comparable(o, kernels)
    ]
    return pd.DataFrame([r for r in found if r is not None], columns=list(COLUMNS))


def _sides(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    timed = points[(points["outcome"] == "ok") & (points["mode"] == MODE) & ~points["training"]]
    imported = timed["device_kind"] == "imported"
    families = {family for pair in PAIRS for family in pair.families}
    return (
        timed[~imported & timed["family"].isin(families)],
        timed[imported & timed["family"].isin(families)],
    )


def _comparable(o: Observation, kernels: KernelCost) -> Iterator[tuple[str, Pair]]:
    phase = "prefill" if o.op.family == "dense" else o.phase
    for provider in kernels.providers(o.op, phase=phase, dtype=o.dtype):
        for pair in PAIRS:
            if (
                o.op.family in pair.families
                and phase in pair.phases
                and o.provider == pair.ours
                and provider.partition("@")[0] in pair.theirs
            ):
                yield provider, pair


def _row(
    row: Any, o: Observation, provider: str, pair: Pair, kernels: KernelCost, env: Environment
) -> dict[str, Any] | None:
    """None where their time would be one of another shape or beyond their points."""
    one = kernels.predict_one(
        o.op, o.batch_size, o.new_tokens, o.cached_tokens, dtype=o.dtype, provider=provider,
        mode=MODE,
    )  # fmt: skip
    if one.outcome != "ok" or one.basis > Basis.INTERPOLATED:
        return None
    ratio = o.latency_s / one.latency_s
    sized = _sized_causes(row, o, env, kernels.hardware)
    outside = not LOW <= ratio <= HIGH
    library = LIBRARY[o.provider]
    return {
        "family": o.op.family,
        "phase": o.phase,
        "shape": o.op.short().removeprefix(o.op.family).strip(),
        "batch_size": o.batch_size,
        "length": o.cached_tokens if o.phase == "decode" else o.new_tokens,
        "ours": o.provider,
        "theirs": provider,
        "versions": f"{library} {env.versions.get(library, 'not told')}, {provider}",
        "ours_s": o.latency_s,
        "theirs_s": one.latency_s,
        "ratio": ratio,
        "basis": one.basis.label,
        "outside": outside,
        "same_code": pair.same_code,
        "why": pair.why,
        "causes": "; ".join((pair.why, *_causes(row, sized, ratio, env))) if outside else "",
        "left": max(1.0, ratio - sum(sized.values()) / one.latency_s) if ratio > 1 else ratio,
    }


def _sized_causes(
    row: Any, o: Observation, env: Environment, hardware: Hardware
) -> dict[str, float]:
    """Seconds that ours may hold and theirs does not: at most so many."""
    found = {}
    cache = float(env.facts.get("cache_bytes", 0))
    if o.cache_state == "cold" and row.min_bytes <= cache:
        cold = f"cold cache here, warm there: its {bytes_text(row.min_bytes)} stay in the cache"
        found[cold] = row.min_bytes / hardware.bandwidth
    if row.timing_method in ONE_REPLAY:
        found["a pair of events around one replay here"] = START_S
    return found


def _causes(row: Any, sized: Mapping[str, float], ratio: float, env: Environment) -> Iterator[str]:
    if ratio > 1:
        for cause, seconds in sized.items():
            if seconds >= 0.05 * row.median_s:
                yield f"{cause} (at most {1e6 * seconds:.1f} us)"
    clocks = json.loads(row.telemetry or "{}").get("after", {}).get("sm_mhz")
    fastest = env.facts.get("max_sm_mhz")
    if clocks and fastest and clocks < 0.97 * fastest:
        yield f"SM clock at {clocks} of {fastest} MHz here"


def ratios_by_pair(rows: pd.DataFrame) -> pd.DataFrame:
    """`beside_imported` by family, phase and pair: how many, the middle, the ends, how many are
    outside 0.75 to 1.33, and how many of those nothing with a size explains."""
    by = ["family", "phase", "ours", "theirs"]
    grouped = rows.groupby(by, sort=True)
    unsized = rows["outside"] & ~rows["left"].between(LOW, HIGH)
    return pd.DataFrame(
        {
            "n": grouped.size(),
            "median": grouped["ratio"].median(),
            "least": grouped["ratio"].min(),
            "most": grouped["ratio"].max(),
            "outside": grouped["outside"].sum(),
            "unsized": unsized.groupby([rows[c] for c in by]).sum(),
            "why": grouped["why"].first(),
        }
    ).reset_index()
