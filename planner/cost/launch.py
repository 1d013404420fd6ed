"""Launch: what the host takes to issue calls in eager mode, and how much of it shows.

A host issues the calls of a pass one after another while the device works them off: a pass takes
the longer of the two. In a CUDA graph the host is out of the way; the gaps between kernels are
in the times measured there.

    eager pass = max(device's time, GLUE x sum of the calls' host times)

A call's host time is the median time of eager calls that the device, by the same calls in a
graph, finishes in less than half of it. A model's own code issues more than its large kernels
(norms, residuals, splits, copies): GLUE is what eager decode steps of whole stacks took on the
H200 over the host times of their layers (`tests/planner/cost/test_launch.py` makes it again).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.cost.curves import Identity
from planner.cost.observations import Observation

ANY_CALL_S = 25e-6
"""Host time of a call whose family was not measured in both modes: the H200's dense layers take
30 us, vLLM's all-reduce 21 to 45 on four devices."""


@dataclass(frozen=True)
class Glue:
    """Least, typical and greatest host time of a stack over that of its large kernels."""

    low: float
    typical: float
    high: float


GLUE = Glue(1.8, 2.9, 4.3)

MIN_PAIRS = 2


class HostTime(NamedTuple):
    """Of one call; `measured` is false where any call's stands for it."""

    seconds: float
    measured: bool


@dataclass(frozen=True)
class HostTimes:
    """Seconds that the host takes for a call, by (family, provider, phase)."""

    seconds: Mapping[tuple[str, str, str], float]

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> HostTimes:
        """From calls measured both eagerly and in a graph."""
        times: dict[tuple[object, ...], dict[str, Observation]] = {}
        for o in observations:
            if o.outcome == "ok":
                call = (o.op, o.provider, o.cache_state, o.dtype, o.training)
                at = (o.batch_size, o.new_tokens, o.cached_tokens)
                times.setdefault((*call, *at), {})[o.mode] = o
        found: dict[tuple[str, str, str], list[float]] = {}
        for modes in times.values():
            if len(modes) == 2 and modes["graph"].latency_s < modes["eager"].latency_s / 2:
                i = Identity.of(modes["eager"])
                use = (i.family, i.provider, i.phase)
                found.setdefault(use, []).append(modes["eager"].latency_s)
        return cls({u: float(np.median(t)) for u, t in found.items() if len(t) >= MIN_PAIRS})

    def of_call(self, family: str, provider: str, phase: str) -> HostTime:
        """One phase's stands in for the other's, since the host issues much the same; the quickest
        other provider's for one that was not measured in both modes."""
        for known in (phase, "decode", "prefill"):
            if (family, provider, known) in self.seconds:
                return HostTime(self.seconds[family, provider, known], True)
        others = [s for (name, _, _), s in self.seconds.items() if name == family]
        return HostTime(min(others, default=ANY_CALL_S), bool(others))
