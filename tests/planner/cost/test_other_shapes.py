"""Other shapes: a shape left out of every provider, and how wrong the fastest prediction is.

What a user with an unmeasured shape gets, on the shipped points of this project: the errors of
one provider (`attn-plan calibrate`) do not show that a bad donor makes another provider the
fastest. The figures are printed; `pytest -s` shows them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from planner.cost.kernel import KernelCost
from planner.cost.observations import Observation
from planner.decision.advisor import Advisor
from planner.store import Store
from planner.workload import MixerOp, Op

DEVICES = ("h100-sxm", "h200-sxm")
SHORTEST = 512
"""Tokens from which on calls are judged: below, all of them take a launch."""

Workload = tuple[int, int, int]


class Miss(NamedTuple):
    phase: str
    what: str
    provider: str
    error: float
    inside: bool


@pytest.fixture(scope="module")
def misses(tmp_path_factory: pytest.TempPathFactory) -> list[Miss]:
    advisor = Advisor(Store.open(str(tmp_path_factory.mktemp("store") / "store.db")))
    return [miss for device in DEVICES for miss in left_out(advisor, device)]


def left_out(advisor: Advisor, device_id: str) -> Iterator[Miss]:
    """Mixers in bf16 and CUDA graphs, as measured here; shapes of a mixer that has others."""
    device = advisor.device(device_id)
    by_family: dict[str, list[Observation]] = defaultdict(list)
    for o in advisor.observations(device):
        own = not (o.imported or o.flagged or o.training)
        if own and o.mode == "graph" and o.dtype == "bf16" and isinstance(o.op, MixerOp):
            by_family[o.op.family].append(o)
    for points in by_family.values():
        ops = sorted({o.op for o in points}, key=lambda op: op.short())
        for op in ops if len(ops) > 1 else ():
            kernels = KernelCost.fit((o for o in points if o.op != op), device.hardware)
            for at, seconds in fastest(points, op).items():
                b, new, cached = at
                found = kernels.predict_one(op, b, new, cached, dtype="bf16", mode="graph")
                if found.outcome == "ok" and max(new, cached) >= SHORTEST:
                    yield Miss(
                        phase="decode" if new == 1 else "segment" if cached else "prefill",
                        what=f"{device_id} {op.short()} b{b} {new} after {cached}",
                        provider=found.provider,
                        error=math.log(found.latency_s / seconds),
                        inside=found.low_s <= seconds <= found.high_s,
                    )


def fastest(points: list[Observation], op: Op) -> dict[Workload, float]:
    times: dict[Workload, float] = {}
    for o in points:
        if o.op == op and o.outcome == "ok":
            at = o.batch_size, o.new_tokens, o.cached_tokens
            times[at] = min(o.latency_s, times.get(at, math.inf))
    return times


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_fastest_of_a_shape_that_nobody_measured(phase: str, misses: list[Miss]) -> None:
    mine = [m for m in misses if m.phase == phase]
    size = np.array([abs(m.error) for m in mine])
    median, p90 = np.expm1(np.quantile(size, [0.5, 0.9]))
    print(
        f"\n{phase}: {len(mine)} calls, {median:.1%} off in the median, {p90:.0%} at the 90th "
        f"percentile, {int((size > math.log(2)).sum())} by a factor of two, inside "
        f"{np.mean([m.inside for m in mine]):.0%}"
    )
    for m in sorted(mine, key=lambda m: -abs(m.error))[:5]:
        print(f"  {math.exp(m.error):.2f} times, {m.what}, {m.provider}")
    assert len(mine) > 150
    assert median < 0.1 and p90 < 0.6
