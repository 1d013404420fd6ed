"""Energy: joules a token, from the power that each kernel was measured to draw.

A kernel's power above idle varies little with its length, so a phase's energy is its parts' times
multiplied by their kernels' measured watts. A phase with a kernel whose power nobody measured has
no figure: nothing is filled in. What runs between kernels (launches, norms, gates) has no power of
its own to measure: it draws between nothing and the most that a measured kernel draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.cost.basis import Basis, worst
from planner.cost.model import ModelCost, Part, PhaseCost
from planner.cost.price import Estimate


@dataclass(frozen=True, kw_only=True)
class Power:
    """Watts above idle of one kernel family in one phase: median, p10 and p90 of `points`."""

    watts: float
    low: float
    high: float
    points: int


Powers = Mapping[tuple[str, str], Power]
"""By (family, phase)."""

BETWEEN = ("launch", "elementwise")
"""Roles of parts that have no power of their own to measure."""


def measured_powers(frame: Any) -> dict[tuple[str, str], Power]:
    """The powers in the rows of `Store.points()`: energy per call over the call's median time.

    Only of a graph's warm rows: the counter needs seconds, so energy is measured over calls
    replayed back to back, and no other median is the time of those calls. A cold one is longer by
    the reads from memory, an eager one by the launches, and either would give too few watts.

    A product of one token a sequence is a decode step's: it waits for weights, and draws less.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    timed_alike = frame[
        (frame["outcome"] == "ok") & (frame["mode"] == "graph") & (frame["cache_state"] == "warm")
    ]
    columns = (timed_alike[c] for c in ("family", "phase", "new_tokens", "energy_j", "median_s"))
    for family, phase, new, joules, seconds in zip(*columns, strict=True):
        if joules is not None and joules == joules:
            use = "decode" if phase == "prefill" and new == 1 else phase
            found[family, use].append(joules / seconds)
    return {use: _power(np.array(watts)) for use, watts in found.items()}


def _power(watts: Any) -> Power:
    low, middle, high = np.quantile(watts, (0.1, 0.5, 0.9))
    return Power(watts=float(middle), low=float(low), high=float(high), points=len(watts))


@dataclass(frozen=True, kw_only=True)
class TokenEnergy:
    """Joules of all devices a token; None where not every kernel's power was measured."""

    input: Estimate | None
    output: Estimate | None
    missing: tuple[str, ...]


def token_energy(cost: ModelCost, powers: Powers) -> TokenEnergy:
    """`missing` names the kernel families without a measured power."""
    missing = sorted(
        {
            _family(part)
            for phase, name in ((cost.prefill, "prefill"), (cost.decode, "decode"))
            for part in phase.parts
            if part.seconds and part.role not in BETWEEN and not _power_of(part, name, powers)
        }
    )
    new = cost.traffic.prompt_tokens
    return TokenEnergy(
        input=_joules(cost.prefill, "prefill", powers, cost.devices / new),
        output=_joules(cost.decode, "decode", powers, cost.devices / max(cost.batch_size, 1)),
        missing=tuple(missing),
    )


def _joules(phase: PhaseCost, name: str, powers: Powers, per_token: float) -> Estimate | None:
    drawn = [(p, _power_of(p, name, powers)) for p in phase.parts if p.seconds]
    known = [(part, power) for part, power in drawn if power is not None]
    if phase.blocked or len(known) < len(drawn):
        return None
    return Estimate(
        value=sum(p.seconds * w.watts for p, w in known),
        low=sum(p.low * w.low for p, w in known),
        high=sum(p.high * w.high for p, w in known),
        basis=worst((Basis.SCALED, phase.basis)),
    ).scaled(per_token)


def _power_of(part: Part, phase: str, powers: Powers) -> Power | None:
    """Matrix products and experts of which no decode step was measured: as in a prefill."""
    if part.role in BETWEEN:
        return _between(powers)
    family = _family(part)
    return powers.get((family, phase)) or powers.get((family, "prefill"))


def _between(powers: Powers) -> Power | None:
    most = max((p.high for p in powers.values()), default=None)
    return None if most is None else Power(watts=most / 2, low=0.0, high=most, points=0)


def _family(part: Part) -> str:
    if part.role == "mixer":
        return part.name
    if part.role == "convolution":
        return "short_convolution"
    if part.role == "all_reduce":
        return part.role
    return "experts" if part.name == "experts" else "dense"
