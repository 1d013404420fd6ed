"""Observation: one measured kernel call, statistics derived; what the cost model is fitted on.

A store's rows become observations here, without importing what the store is built on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.errors import PlannerError
from planner.workload import Op, Phase, operation_from

SLOW_IMPORT_FLAG = "slow"
"""Key of a point's telemetry by which an importer marks a slow-but-consistent row."""

SKIPPED = "skipped"
"""Outcome of a point that was left out on purpose."""

Z80 = 1.2816
"""Half-width of a normal's central 80 % in standard deviations."""

MEDIAN_OVER_MEAN_ERROR = math.sqrt(math.pi / 2)
"""Standard error of a median over that of a mean, for a normal."""


class BadObservation(PlannerError):
    """A latency that cannot be: NaN, infinite, zero or negative."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One point: an operation under one provider, and how long it took or why it did not.

    `latency_s` is the median of the raw samples, NaN unless the outcome is ok; `noise` is the
    relative 80 % half-width of that median, NaN where the source keeps no samples. A `flagged`
    point is slow but consistent (one public windowed kernel skips no tiles): it is shown, and
    used when its provider is asked for, but never taken as the fastest.
    """

    op: Op
    provider: str
    mode: str
    cache_state: str
    dtype: str
    training: bool
    batch_size: int
    new_tokens: int
    cached_tokens: int
    outcome: str
    latency_s: float
    noise: float
    device: str
    imported: bool = False
    flagged: bool = False
    key: str

    def __post_init__(self) -> None:
        if self.outcome == "ok" and not (math.isfinite(self.latency_s) and self.latency_s > 0):
            raise BadObservation(
                f"latency must be finite and positive, got {self.latency_s} for "
                f"{self.op.short()} by {self.provider} (batch {self.batch_size}, "
                f"{self.new_tokens} new, {self.cached_tokens} cached; key {self.key})"
            )
        if self.noise < 0:
            raise BadObservation(f"noise must not be negative, got {self.noise} (key {self.key})")

    @property
    def phase(self) -> Phase:
        if self.training:
            return "training"
        return "decode" if self.new_tokens == 1 and self.cached_tokens > 0 else "prefill"


def median_noise(count: int, median: float, p20: float, p80: float) -> float:
    """Relative 80 % half-width of the median of `count` samples; NaN for fewer than three.

    From the central 60 % (p20 to p80), which outliers do not move: a normal spans 1.683 standard
    deviations there, and its median errs by 1.2533 sigma / sqrt(n).
    """
    if count < 3:
        return math.nan
    sigma = (p80 - p20) / 1.683
    return Z80 * MEDIAN_OVER_MEAN_ERROR * sigma / math.sqrt(count) / median


def observations(frame: Any) -> list[Observation]:
    """The rows of `Store.points()` as observations, in order; skipped ones say nothing, and none
    those that a newer version of their kernel has overtaken.

    A row's variant other than "" makes its provider "provider[variant]": another way to run a
    kernel is another curve. Raises: BadObservation.
    """
    old = overtaken(frame)
    columns = [frame[name].tolist() for name in COLUMNS]
    ops: dict[tuple[str, str], Op] = {}
    outcome = COLUMNS.index("outcome")
    rows = enumerate(zip(*columns, strict=True))
    return [_observation(ops, *row) for i, row in rows if row[outcome] != SKIPPED and i not in old]


def overtaken(frame: Any) -> set[int]:
    """Rows, by position, of an older version of a kernel between two lengths of a newer one.

    One curve of two kernels has steps that neither has, and its ends are read beyond them. What
    lies outside of the newer points is still the best that is known there.
    """
    versions = [kernel_version(text) for text in frame["method_version"]]
    changed = {provider for provider, v in zip(frame["provider"], versions, strict=True) if v > 0}
    if not changed:
        return set()
    curves: dict[tuple[Any, ...], list[tuple[int, int, int]]] = {}
    rows = zip(*(frame[name].tolist() for name in CURVE), strict=True)
    for i, (provider, outcome, batch, new, cached, *rest) in enumerate(rows):
        if provider in changed and outcome == "ok":
            step = new == 1 and cached > 0
            curve = (provider, batch, step, 0 if step else cached, *rest)
            curves.setdefault(curve, []).append((cached if step else new, versions[i], i))
    found: set[int] = set()
    for points in curves.values():
        newest = max(version for _, version, _ in points)
        lengths = [length for length, version, _ in points if version == newest]
        found |= {
            i
            for length, version, i in points
            if version < newest and min(lengths) < length < max(lengths)
        }
    return found


def kernel_version(method_version: str) -> int:
    """How new the kernels are: the sum of what follows the timing method's version, a number for
    each kernel that has one. Whichever of a stack's is bumped or gets its first, it grows. What a
    plugin calls by no number has no order.

    >>> kernel_version("3+2"), kernel_version("3+2+2"), kernel_version("2"), kernel_version("2+b")
    (2, 4, 0, 0)
    """
    _, *kernels = str(method_version).split("+")
    return sum(int(kernel) for kernel in kernels if kernel.isdecimal())


CURVE = (
    "provider", "outcome", "batch_size", "new_tokens", "cached_tokens", "environment_id", "family",
    "spec", "variant", "mode", "cache_state", "dtype", "training",
)  # fmt: skip

COLUMNS = (
    "key", "family", "spec", "provider", "variant", "mode", "cache_state", "dtype", "training",
    "batch_size", "new_tokens", "cached_tokens", "outcome", "samples_s", "median_s", "p20_s",
    "p80_s", "device", "device_kind", "telemetry",
)  # fmt: skip


def _observation(
    ops: dict[tuple[str, str], Op],
    key: str, family: str, spec: str, provider: str, variant: str, mode: str, cache_state: str,
    dtype: str, training: bool, batch_size: int, new_tokens: int, cached_tokens: int,
    outcome: str, samples_s: Sequence[float], median_s: float, p20_s: float, p80_s: float,
    device: str, device_kind: str, telemetry: str | None,
) -> Observation:  # fmt: skip
    name = (family, spec)
    if name not in ops:
        ops[name] = operation_from(family, json.loads(spec))
    ok = outcome == "ok"
    return Observation(
        op=ops[name],
        provider=f"{provider}[{variant}]" if variant else provider,
        mode=mode,
        cache_state=cache_state,
        dtype=dtype,
        training=bool(training),
        batch_size=int(batch_size),
        new_tokens=int(new_tokens),
        cached_tokens=int(cached_tokens),
        outcome=outcome,
        latency_s=float(median_s) if ok else math.nan,
        noise=median_noise(len(samples_s), median_s, p20_s, p80_s) if ok else math.nan,
        device=device,
        imported=device_kind == "imported",
        flagged=_is_flagged(telemetry or ""),
        key=key,
    )


def _is_flagged(telemetry: str) -> bool:
    """Whether the telemetry has the flag as a key; most has not the word at all."""
    return SLOW_IMPORT_FLAG in telemetry and SLOW_IMPORT_FLAG in json.loads(telemetry)
