"""Crossover: where the line is, by hand, and what an interval does to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.catalog import load_hardware
from planner.cost.basis import Basis
from planner.cost.crossover import Crossover, Side, crossover
from planner.cost.curves import Floats
from planner.cost.kernel import KernelCost, Observation
from planner.errors import UsageError
from planner.mixers import MixerSpec
from planner.workload import ConvOp, MixerOp, Op

H200 = load_hardware("h200-sxm")
CONTEXTS = np.array([1024, 2048, 4096, 8192, 16384])
BATCHES = np.array([1, 4])

FULL = MixerOp(
    MixerSpec(
        mixer="full_attention",
        num_q_heads=16,
        num_k_heads=2,
        num_v_heads=2,
        k_head_dim=256,
        v_head_dim=256,
    )
)
GDN = MixerOp(
    MixerSpec(
        mixer="gated_deltanet",
        num_q_heads=16,
        num_k_heads=16,
        num_v_heads=32,
        k_head_dim=128,
        v_head_dim=128,
    )
)
CONV = ConvOp(8192, 4)


def points(op: Op, seconds: Callable[[int, int], float], provider: str) -> list[Observation]:
    return [
        Observation(
            op=op, provider=provider, mode="graph", cache_state="cold", dtype="bf16",
            training=False, batch_size=b, new_tokens=t, cached_tokens=0, outcome="ok",
            latency_s=seconds(b, t), noise=0.01, device="NVIDIA H200", key=f"{provider}{b}{t}",
        )
        for b in BATCHES.tolist() for t in CONTEXTS.tolist()
    ]  # fmt: skip


def quadratic(b: int, t: int) -> float:
    return b * t * t * 1e-12


def linear(b: int, t: int) -> float:
    return 4e-6 + b * t * 4e-9


KERNELS = KernelCost.fit(
    [
        *points(FULL, quadratic, "flash"),
        *points(GDN, linear, "chunk"),
        *points(GDN, lambda b, t: 3 * linear(b, t), "slow"),
        *points(CONV, lambda b, t: b * t * 1e-9, "conv"),
    ],
    H200,
)


def surface(first: Side, second: Side) -> Crossover:
    return crossover(KERNELS, first, second, CONTEXTS, BATCHES, phase="prefill")


def test_the_line_is_where_the_two_laws_meet() -> None:
    found = surface(Side("full", (FULL,)), Side("GDN", (GDN,)))
    # b t^2 1e-12 = 4e-6 + b t 4e-9: t = 2000 + sqrt(2000^2 + 4e6 / b)
    for b, line in zip(BATCHES, found.line.context, strict=True):
        assert line == pytest.approx(2000 + math.sqrt(2000**2 + 4e6 / b), rel=0.03)
    assert (found.line.low < found.line.context).all()
    assert (found.line.context < found.line.high).all()
    assert found.speedup[0, -1] == pytest.approx(quadratic(1, 16384) / linear(1, 16384))
    assert found.winner[0].tolist()[0] == 1 and found.winner[0].tolist()[-1] == 2
    assert (found.basis == Basis.MEASURED).all()


def test_it_moves_with_the_provider_and_with_the_convolution() -> None:
    full = Side("full", (FULL,))
    best = surface(full, Side("GDN", (GDN,)))
    slow = surface(full, Side("GDN", (GDN,), {"gated_deltanet": "slow"}))
    whole = surface(full, Side("GDN", (GDN, CONV)))
    assert (slow.line.context > 2.5 * best.line.context).all()
    assert (whole.line.context > best.line.context).all()
    assert set(slow.second_provider.ravel()) == {"slow"}
    assert set(best.second_provider.ravel()) == {"chunk"}


def test_a_side_against_itself_ties_without_error() -> None:
    side = Side("full", (FULL,))
    found = surface(side, side)
    assert (found.log_ratio == 0).all() and (found.half == 0).all() and (found.winner == 0).all()
    assert np.isnan(found.line.context).all()


def test_never_and_always_ahead() -> None:
    ten = Side("ten", (GDN,), {"gated_deltanet": "slow"})
    found = surface(Side("GDN", (GDN,), {"gated_deltanet": "chunk"}), ten)
    assert np.isnan(found.line.context).all() and (found.winner == 1).all()
    other = surface(ten, Side("GDN", (GDN,), {"gated_deltanet": "chunk"}))
    assert (other.line.context == CONTEXTS[0]).all() and (other.winner == 2).all()


def test_running_out_of_memory_loses() -> None:
    lost = Observation(
        op=FULL, provider="flash", mode="graph", cache_state="cold", dtype="bf16", training=False,
        batch_size=4, new_tokens=32768, cached_tokens=0, outcome="out_of_memory",
        latency_s=math.nan, noise=math.nan, device="NVIDIA H200", key="oom",
    )  # fmt: skip
    kernels = KernelCost.fit(
        [*points(FULL, quadratic, "flash"), lost, *points(GDN, linear, "chunk")], H200
    )
    found = crossover(
        kernels, Side("full", (FULL,)), Side("GDN", (GDN,)), [16384, 32768], [1, 4],
        phase="prefill",
    )  # fmt: skip
    assert np.isposinf(found.log_ratio[1, 1]) and found.winner[1, 1] == 2
    assert np.isfinite(found.log_ratio[0]).all()


def test_graphs_go_before_eager_and_either_serves_alone() -> None:
    """What was timed eagerly holds its launches: it must not decide where there is a graph."""
    eager = [
        replace(o, mode="eager", latency_s=o.latency_s / 2, key=f"{o.key} eager")
        for o in points(GDN, linear, "chunk")
    ]
    full, gdn = Side("full", (FULL,)), Side("GDN", (GDN,))
    both = [*points(FULL, quadratic, "flash"), *points(GDN, linear, "chunk"), *eager]

    def second_s(observations: list[Observation]) -> Floats:
        kernels = KernelCost.fit(observations, H200)
        return crossover(kernels, full, gdn, CONTEXTS, BATCHES, phase="prefill").second_s

    expected = np.array([[linear(b, t) for t in CONTEXTS.tolist()] for b in BATCHES.tolist()])
    assert second_s(both) == pytest.approx(expected)
    assert second_s([*points(FULL, quadratic, "flash"), *eager]) == pytest.approx(expected / 2)


def test_falling_grids_are_refused() -> None:
    with pytest.raises(UsageError, match="must rise"):
        crossover(KERNELS, Side("a", (FULL,)), Side("b", (GDN,)), [2048, 1024], [1],
                  phase="prefill")  # fmt: skip


@pytest.mark.slow
def test_published_crossovers_of_one_shape_differ_by_kernel(
    imported: Callable[[str], list[Observation]],
) -> None:
    """Qwen3-Next's attention (FlashAttention 3) against its Gated DeltaNet by two kernels, batch
    1: 2.8K to 6.9K tokens are told of the kernels alone, 3.7K to 8.5K with the convolution."""
    kernels = KernelCost.fit(imported("h200_sxm"), H200)
    contexts = np.unique(np.geomspace(512, 16384, 60).astype(int))
    full = Side("full", (FULL,), {"full_attention": "vllm_fa3@0.24"})
    lines = {}
    for ops in ((GDN,), (GDN, CONV)):
        for gdn in ("vllm_flashinfer@0.24", "trtllm_chunk@1.3.0rc20"):
            other = Side("GDN", ops, {"gated_deltanet": gdn})
            found = crossover(kernels, full, other, contexts, [1], phase="prefill")
            lines[gdn, len(ops)] = float(found.line.context[0])
            assert found.line.low[0] <= found.line.context[0] <= found.line.high[0]
    print({name: round(line) for name, line in lines.items()})
    alone = [lines[gdn, 1] for gdn, count in lines if count == 1]
    whole = [lines[gdn, 2] for gdn, count in lines if count == 2]
    assert min(alone) >= 2800 and 1.5 * min(alone) < max(alone) <= 6900
    assert min(whole) >= 3700 and max(whole) <= 8500
    assert min(whole) > min(alone) and max(whole) > max(alone)
