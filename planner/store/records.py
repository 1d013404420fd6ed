"""What goes into the store and comes out: frozen snapshots, never database rows.

    Environment   the machine and the versions that a time depends on
    Point         one (workload, provider, variant, mode, cache state) measured once: its outcome
    Run           a named group of points, from one command

A point's key is a hash of all that makes it the same measurement again. Resuming skips finished
keys; an upgrade of torch, triton or a provider is another environment and so another key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from planner.errors import UsageError
from planner.workload import Workload, canonical_json

MAX_SAMPLES = 64
"""Raw samples kept per point; more are thinned evenly in time order."""

Mode = Literal["eager", "graph"]
CacheState = Literal["cold", "warm"]


class Outcome(StrEnum):
    """How a point ended. The first three are results, the last three faults; between them what
    was left out on purpose, which says nothing of the kernel and is decided anew by each run."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"
    MISMATCH = "mismatch"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def is_fault(self) -> bool:
        return self in (Outcome.MISMATCH, Outcome.TIMEOUT, Outcome.ERROR)


def content_hash(data: Any) -> str:
    """The first 16 bytes of the SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The device and software that a time depends on.

    `facts` are descriptive and may change without making a new environment (clock limits, host
    memory); `device`, `versions` and `switches` are its identity.
    """

    device: str
    device_kind: Literal["cuda", "cpu", "imported"]
    versions: Mapping[str, str] = field(hash=False)
    switches: Mapping[str, str] = field(default_factory=dict, hash=False)
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        return content_hash(
            {
                "device": self.device,
                "device_kind": self.device_kind,
                "versions": dict(self.versions),
                "switches": dict(self.switches),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "device_kind": self.device_kind,
            "versions": dict(self.versions),
            "switches": dict(self.switches),
            "facts": dict(self.facts),
        }


def point_key(
    workload: Workload,
    *,
    provider: str,
    variant: str,
    mode: str,
    cache_state: str,
    method_version: str,
    environment_id: str,
) -> str:
    return content_hash(
        {
            **workload.identity(),
            "provider": provider,
            "variant": variant,
            "mode": mode,
            "cache_state": cache_state,
            "method_version": method_version,
            "environment": environment_id,
        }
    )


def thin(samples: Sequence[float], limit: int = MAX_SAMPLES) -> list[float]:
    """At most `limit` samples, evenly spaced in the order they were taken, ends included."""
    if len(samples) <= limit:
        return list(samples)
    step = (len(samples) - 1) / (limit - 1)
    return [samples[round(i * step)] for i in range(limit)]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finished measurement, of whatever outcome. Times in seconds, sizes in bytes.

    `variant` names a way of running the same kernel (such as "segments=8192"); `gate_error` is
    the relative RMS error against the reference that admitted the time.
    """

    workload: Workload
    provider: str
    environment_id: str
    outcome: Outcome
    reason: str = ""
    variant: str = ""
    mode: Mode = "eager"
    cache_state: CacheState = "cold"
    method_version: str = "1"
    samples_s: Sequence[float] = ()
    num_samples: int = 0
    timing_method: str = ""
    peak_bytes: int | None = None
    workspace_bytes: int | None = None
    energy_j: float | None = None
    gate_error: float | None = None
    telemetry: Mapping[str, Any] = field(default_factory=dict, hash=False)
    measured_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if self.outcome is Outcome.OK:
            if not self.samples_s:
                raise UsageError(f"an ok point needs samples: {self.workload.short()}")
            bad = [s for s in self.samples_s if not (math.isfinite(s) and s > 0)]
            if bad:
                raise UsageError(
                    f"latency must be finite and positive, got {bad[0]}: "
                    f"{self.workload.short()} {self.provider}"
                )
        elif not self.reason:
            raise UsageError(f"outcome {self.outcome} needs a reason: {self.workload.short()}")

    @property
    def key(self) -> str:
        return point_key(
            self.workload,
            provider=self.provider,
            variant=self.variant,
            mode=self.mode,
            cache_state=self.cache_state,
            method_version=self.method_version,
            environment_id=self.environment_id,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A named group of points from one command."""

    id: int
    name: str
    environment_id: str
    command: str
    started_at: datetime
    ended_at: datetime | None
    status: Literal["running", "done", "interrupted"]
    planned_points: int
    tool_version: str
    commit: str


def to_the_second(when: datetime) -> str:
    """A time as the store keeps it: UTC (taken for it where none is said), comparable as text."""
    return (
        (when if when.tzinfo else when.replace(tzinfo=UTC))
        .astimezone(UTC)
        .isoformat(timespec="seconds")
    )
