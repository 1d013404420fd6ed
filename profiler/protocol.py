"""What a sweep and its workers say to each other.

Start → Hello,  Prepare → Ready,  Measure → Timed,  Reference → Ceilings,  or Failed to any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.store.records import CacheState, Mode, Outcome
from planner.workload import Workload
from profiler.device import Device
from profiler.measure.ceilings import Ceilings
from profiler.measure.memory import Memory
from profiler.measure.timing import Limits

CONTEXT_BYTES = 600 << 20
"""What the driver and the libraries of a worker take of a GPU's memory, beside its tensors."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first message: what the worker will run on, and on a GPU where turns are kept."""

    device: Device
    turns: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is asked to set up: a provider on a workload, run in one way."""

    workload: Workload
    provider: str
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Compile, tune, gate, see the memory. `ragged` also checks a whole output at the gate's
    length; a job that is known from before, and must only be there again, is called once."""

    job: Job
    ragged: bool
    known: bool = False


@dataclass(frozen=True, kw_only=True)
class Measure:
    mode: Mode
    cache: CacheState
    limits: Limits
    energy: bool = False
    rotation: int | None = None
    """Copies that an earlier turn of the point rotated over; this one does as it did."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Measure the device's ceilings."""

    dtype: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """Drop tensors and cached memory."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Sent once, when the worker's imports are done."""

    import_s: float


@dataclass(frozen=True, kw_only=True)
class Ready:
    """`gate_error` is the worst relative RMS error seen; `seconds` says where the time went."""

    gate_error: float | None
    memory: Memory | None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timed:
    samples_s: tuple[float, ...]
    method: str
    rotation: int
    telemetry: dict[str, Any]
    energy_j: float | None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A row without a time. After a fatal one the worker is gone.

    `whole`: the provider failed the comparison that speaks for every length. `lacked_bytes`: what
    was wanting of a GPU's memory, where this worker alone would have had room; others took it.
    """

    outcome: Outcome
    reason: str
    fatal: bool = False
    whole: bool = False
    lacked_bytes: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


Request = Start | Prepare | Measure | Reference | Release
Reply = Hello | Ready | Timed | Failed | Ceilings
