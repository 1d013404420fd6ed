"""Launches: host times from calls measured in both modes, and what a stack's own code adds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from planner.catalog import data_dir
from planner.cost.launch import ANY_CALL_S, GLUE, HostTimes
from planner.cost.observations import Observation, observations
from planner.store import Store
from planner.workload import Op, StackOp

OPS_OF = {"dense": "torch", "short_convolution": "fla"}


@cache
def h200() -> list[Observation]:
    store = Store.open("sqlite:///:memory:", shipped=False)
    store.import_csv(data_dir() / "measurements" / "h200-sxm.csv")
    return observations(store.points())


def host_time(host: HostTimes, op: Op, mixer_provider: dict[str, str]) -> float:
    provider = OPS_OF.get(op.family) or mixer_provider[op.family]
    found = host.of_call(op.family, provider, "decode")
    assert found.measured, op.short()
    return found.seconds


def test_a_matrix_product_takes_the_host_some_thirty_microseconds() -> None:
    found = HostTimes.of(h200()).of_call("dense", "torch", "prefill")
    assert found.measured and 20e-6 < found.seconds < 40e-6


def test_what_was_not_measured_in_both_modes_is_said() -> None:
    assert HostTimes.of([]).of_call("dense", "torch", "prefill") == (ANY_CALL_S, False)


def test_the_glue_is_that_of_the_measured_stacks() -> None:
    """Eager decode steps that the host holds up, over the host times of their large kernels."""
    host, points = HostTimes.of(h200()), h200()
    mixers = {"full_attention": "sdpa_cudnn", "gated_deltanet": "fla", "mamba2": "mamba_ssm"}
    stacks: dict[tuple[object, ...], dict[str, Observation]] = {}
    for o in points:
        if isinstance(o.op, StackOp) and o.outcome == "ok" and o.phase == "decode":
            stacks.setdefault((o.op, o.batch_size, o.cached_tokens), {})[o.mode] = o
    shares = [
        m["eager"].latency_s / sum(host_time(host, part, mixers) for part in m["eager"].op.parts())
        for m in stacks.values()
        if len(m) == 2 and m["graph"].latency_s < m["eager"].latency_s / 2
        and isinstance(m["eager"].op, StackOp)
    ]  # fmt: skip
    print(f"{len(shares)} stacks: {np.round(sorted(shares), 2)}")
    assert len(shares) == 5
    assert pytest.approx((min(shares), np.median(shares), max(shares)), abs=0.1) == (
        GLUE.low, GLUE.typical, GLUE.high,
    )  # fmt: skip
