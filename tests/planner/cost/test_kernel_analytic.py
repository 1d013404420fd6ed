"""The typical efficiencies are those of the imported tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from planner.catalog import load_hardware
from planner.cost.analytic import EFFICIENCY, bound_s, kind_of
from planner.cost.observations import Observation

SYSTEMS = {
    "a100_sxm": "a100-80g-sxm",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
}


@pytest.mark.slow
def test_efficiencies_are_the_tables(imported: Callable[[str], list[Observation]]) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for system, id in SYSTEMS.items():
        hardware = load_hardware(id)
        for o in imported(system):
            if o.flagged or o.mode != "graph" or o.latency_s < 30e-6:
                continue
            at = (np.array([v]) for v in (o.batch_size, o.new_tokens, o.cached_tokens))
            bound = bound_s(o.op, *at, dtype=o.dtype, hardware=hardware)
            found[kind_of(o.op), o.phase].append(float(bound[0]) / o.latency_s)
    for use, e in EFFICIENCY.items():
        quantiles = np.quantile(found[use], (0.1, 0.5, 0.9))
        assert [e.low, e.typical, e.high] == pytest.approx(quantiles, abs=0.02), use


def test_no_efficiency_reaches_the_bound() -> None:
    for e in EFFICIENCY.values():
        assert 0 < e.low < e.typical < e.high < 1
