"""Observation: one measured kernel call, statistics derived; what the cost model is fitted on.

A store's rows become observations here, without importing what the store is built on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.errors import PlannerError
from planner.workload import Op, Phase, operation_from

SLOW_IMPORT_FLAG = "slow"
"""Key of a point's telemetry by which an importer marks a slow-but-consistent row."""

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


def median_noise(samples: Sequence[float]) -> float:
    """Relative 80 % half-width of the median of `samples`; NaN for fewer than three.

    From the central 60 % (p20 to p80), which outliers do not move: a normal spans 1.683 standard
    deviations there, and its median errs by 1.2533 sigma / sqrt(n).
    """
    if len(samples) < 3:
        return math.nan
    low, middle, high = np.quantile(samples, (0.2, 0.5, 0.8))
    sigma = (high - low) / 1.683
    return float(Z80 * MEDIAN_OVER_MEAN_ERROR * sigma / math.sqrt(len(samples)) / middle)


def observations(frame: Any) -> list[Observation]:
    """The rows of `Store.points()` as observations, in order.

    A row's variant other than "" makes its provider "provider[variant]": another way to run a
    kernel is another curve. Raises: BadObservation.
    """
    columns = {name: list(frame[name]) for name in COLUMNS}
    ops: dict[tuple[str, str], Op] = {}
    rows: Iterable[tuple[Any, ...]] = zip(*columns.values(), strict=True)
    return [_observation(dict(zip(columns, row, strict=True)), ops) for row in rows]


COLUMNS = (
    "key", "family", "spec", "provider", "variant", "mode", "cache_state", "dtype", "training",
    "batch_size", "new_tokens", "cached_tokens", "outcome", "median_s", "samples_s",
    "device", "device_kind", "telemetry",
)  # fmt: skip


def _observation(row: dict[str, Any], ops: dict[tuple[str, str], Op]) -> Observation:
    name = (row["family"], row["spec"])
    if name not in ops:
        ops[name] = operation_from(row["family"], json.loads(row["spec"]))
    ok = row["outcome"] == "ok"
    provider = f"{row['provider']}[{row['variant']}]" if row["variant"] else row["provider"]
    return Observation(
        op=ops[name],
        provider=provider,
        mode=row["mode"],
        cache_state=row["cache_state"],
        dtype=row["dtype"],
        training=bool(row["training"]),
        batch_size=int(row["batch_size"]),
        new_tokens=int(row["new_tokens"]),
        cached_tokens=int(row["cached_tokens"]),
        outcome=row["outcome"],
        latency_s=float(row["median_s"]) if ok else math.nan,
        noise=median_noise(row["samples_s"]) if ok else math.nan,
        device=row["device"],
        imported=row["device_kind"] == "imported",
        flagged=SLOW_IMPORT_FLAG in json.loads(row["telemetry"] or "{}"),
        key=row["key"],
    )
