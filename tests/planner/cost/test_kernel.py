"""KernelCost: what it measured comes back, between and beyond, and never past an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog import load_hardware
from planner.cost.basis import Basis
from planner.cost.kernel import BadObservation, KernelCost, Observation
from planner.cost.methods import SHORTEST_CALL_S
from planner.errors import UsageError
from planner.mixers import MixerSpec
from planner.workload import ConvOp, DenseOp, MixerOp, Op, StackOp

H200 = load_hardware("h200-sxm")
LENGTHS = (1024, 2048, 4096, 8192, 16384)
BATCHES = (1, 4, 16)

FULL = MixerOp(
    MixerSpec(
        mixer="full_attention",
        num_q_heads=32,
        num_k_heads=8,
        num_v_heads=8,
        k_head_dim=128,
        v_head_dim=128,
    )
)
WIDER = MixerOp(
    MixerSpec(
        mixer="full_attention",
        num_q_heads=64,
        num_k_heads=16,
        num_v_heads=16,
        k_head_dim=128,
        v_head_dim=128,
    )
)
NARROWER = replace(FULL, spec=replace(FULL.spec, num_q_heads=16, num_k_heads=4, num_v_heads=4))
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

HALF_GDN = replace(GDN, spec=replace(GDN.spec, num_q_heads=8, num_k_heads=8, num_v_heads=16))

SMALL_GDN = replace(GDN, spec=replace(GDN.spec, num_q_heads=4, num_k_heads=4, num_v_heads=8))
SMALL = replace(NARROWER, spec=replace(NARROWER.spec, num_q_heads=8, num_k_heads=2, num_v_heads=2))

Law = Callable[[Op, int, int, int], float]


def affine_law(op: Op, b: int, n: int, c: int) -> float:
    """20 us to launch, then 60 % of the device: what a good kernel does."""
    flops, moved = op.model_flops(b, n, c), op.min_bytes(b, n, c, 2.0)
    return 20e-6 + float(max(flops / 6e14, moved / 3e12))


def observation(
    op: Op, b: int, n: int, c: int, latency_s: float, **changes: object
) -> Observation:
    facts: dict[str, object] = {
        "op": op,
        "provider": "flash",
        "mode": "graph",
        "cache_state": "cold",
        "dtype": "bf16",
        "training": False,
        "batch_size": b,
        "new_tokens": n,
        "cached_tokens": c,
        "outcome": "ok",
        "latency_s": latency_s,
        "noise": 0.005,
        "device": "NVIDIA H200",
        "key": f"{op.family}-{b}-{n}-{c}-{changes.get('provider', 'flash')}",
    }
    return Observation(**{**facts, **changes})  # type: ignore[arg-type]


def prefills(op: Op = FULL, law: Law = affine_law, **changes: object) -> list[Observation]:
    return [
        observation(op, b, n, 0, law(op, b, n, 0), **changes) for b in BATCHES for n in LENGTHS
    ]


def decodes(op: Op = FULL, law: Law = affine_law, **changes: object) -> list[Observation]:
    return [
        observation(op, b, 1, c, law(op, b, 1, c), **changes) for b in BATCHES for c in LENGTHS
    ]


def fit(observations: Iterable[Observation]) -> KernelCost:
    return KernelCost.fit(observations, H200)


def failed(op: Op, b: int, n: int, c: int, outcome: str = "out_of_memory") -> Observation:
    return observation(op, b, n, c, math.nan, outcome=outcome, key=f"failed-{b}-{n}-{c}")


# What was measured comes back


def test_a_measured_call_is_returned_as_it_was() -> None:
    found = fit(prefills()).predict(FULL, 4, 4096, 0, dtype="bf16")
    assert found.latency_s == pytest.approx(affine_law(FULL, 4, 4096, 0), rel=1e-12)
    assert found.basis == Basis.MEASURED
    assert found.provider == "flash" and found.mode == "graph" and found.outcome == "ok"
    assert found.nearest.tolist() == ["full_attention-4-4096-0-flash"] * 2
    assert found.low_s < found.latency_s < found.high_s


def test_arguments_broadcast_and_keep_their_shape() -> None:
    found = fit(prefills()).predict(
        FULL, np.array([[1], [4]]), np.array([1024, 3000, 9000]), 0, dtype="bf16"
    )
    assert found.latency_s.shape == found.basis.shape == found.provider.shape == (2, 3)
    assert found.nearest.shape == (2, 3, 2)


def test_phases_may_be_mixed_in_one_call() -> None:
    kernels = fit(prefills() + decodes())
    found = kernels.predict(FULL, 4, [4096, 1], [0, 4096], dtype="bf16")
    expected = [affine_law(FULL, 4, 4096, 0), affine_law(FULL, 4, 1, 4096)]
    assert found.latency_s == pytest.approx(expected, rel=1e-12)


@settings(max_examples=120, deadline=None)
@given(
    b=st.integers(1, 64),
    length=st.integers(1, 200_000),
    decode=st.booleans(),
    op=st.sampled_from([FULL, WIDER, NARROWER, SMALL, GDN, HALF_GDN, SMALL_GDN]),
)
def test_one_call_and_many_agree(b: int, length: int, decode: bool, op: Op) -> None:
    kernels = _WITH_LONG
    n, c = (1, length) if decode else (length, 0)
    many = kernels.predict(op, [b, b], n, c, dtype="bf16")
    one = kernels.predict_one(op, b, n, c, dtype="bf16")
    same = kernels.predict(op, b, n, c, dtype="bf16")
    for name in ("latency_s", "low_s", "high_s"):
        assert getattr(one, name) == pytest.approx(getattr(many, name)[1], rel=1e-9)
        assert float(getattr(same, name)) == pytest.approx(getattr(many, name)[1], rel=1e-9)
    assert one.basis == many.basis[1] and one.provider == many.provider[1]


@settings(max_examples=60, deadline=None)
@given(b=st.sampled_from(BATCHES), length=st.integers(1024, 16384), decode=st.booleans())
def test_between_points_of_an_affine_kernel_it_is_exact(b: int, length: int, decode: bool) -> None:
    n, c = (1, length) if decode else (length, 0)
    found = _SHARED.predict(FULL, b, n, c, dtype="bf16")
    assert found.latency_s == pytest.approx(affine_law(FULL, b, n, c), rel=0.02)
    assert found.basis in (Basis.MEASURED, Basis.INTERPOLATED)
    assert found.low_s <= affine_law(FULL, b, n, c) * 1.001
    assert found.high_s >= affine_law(FULL, b, n, c) * 0.999


def test_longer_and_larger_cost_more() -> None:
    lengths = np.geomspace(512, 1 << 20, 400).astype(int)
    for n, c in ((lengths, 0), (1, lengths)):
        by_length = _SHARED.predict(FULL, 6, n, c, dtype="bf16").latency_s
        assert (np.diff(by_length) >= -1e-9 * by_length[1:]).all()
    by_batch = _SHARED.predict(FULL, np.arange(1, 200), 1, 5000, dtype="bf16").latency_s
    assert (np.diff(by_batch) >= -1e-9 * by_batch[1:]).all()


# Beyond the points


def test_beyond_the_grid_it_says_so_and_widens() -> None:
    found = _SHARED.predict(FULL, 1, [16384, 32768, 65536, 131072], 0, dtype="bf16")
    assert found.basis.tolist() == [Basis.MEASURED] + [Basis.EXTRAPOLATED] * 3
    half = np.log(found.high_s / found.low_s)
    assert (np.diff(half) > 0).all()
    for i, n in enumerate((16384, 32768, 65536, 131072)):
        assert found.latency_s[i] == pytest.approx(affine_law(FULL, 1, n, 0), rel=0.1)


def test_a_larger_batch_than_measured_is_extrapolated() -> None:
    found = _SHARED.predict(FULL, 64, 1, 16384, dtype="bf16")
    assert found.basis == Basis.EXTRAPOLATED
    assert found.latency_s == pytest.approx(affine_law(FULL, 64, 1, 16384), rel=0.1)


def test_never_past_an_outcome() -> None:
    kernels = fit([*prefills(), failed(FULL, 4, 65536, 0)])
    found = kernels.predict(FULL, [4, 4, 16, 1, 4], [65536, 200_000, 65536, 65536, 32768], 0,
                            dtype="bf16")  # fmt: skip
    assert found.outcome.tolist() == ["out_of_memory"] * 3 + ["ok"] * 2
    assert np.isnan(found.latency_s[:3]).all() and np.isnan(found.high_s[:3]).all()
    assert np.isfinite(found.latency_s[3:]).all()
    one = kernels.predict_one(FULL, 4, 65536, 0, dtype="bf16")
    assert one.outcome == "out_of_memory" and math.isnan(one.latency_s)


def test_a_prefill_with_a_state_goes_on_in_segments() -> None:
    """No memory for 65,536 tokens in one call: shorter calls that carry the state are as long."""
    law = [observation(GDN, 1, n, 0, n * 1e-7) for n in LENGTHS]
    found = fit([*law, failed(GDN, 1, 65536, 0)]).predict(GDN, 1, [65536, 131072], 0, dtype="bf16")
    assert (found.outcome == "ok").all() and (found.basis == Basis.EXTRAPOLATED).all()
    assert found.latency_s == pytest.approx([65536e-7, 131072e-7], rel=0.02)
    refused = fit([*law, failed(GDN, 1, 65536, 0, "error")])
    assert refused.predict(GDN, 1, 65536, 0, dtype="bf16").outcome == "error"


def test_a_measured_larger_call_outweighs_a_failure() -> None:
    kernels = fit([*prefills(), failed(FULL, 1, 4096, 0, "timeout")])
    assert kernels.predict(FULL, 1, 8000, 0, dtype="bf16").outcome == "ok"
    assert kernels.predict(FULL, 1, 20000, 0, dtype="bf16").outcome == "timeout"


def test_another_provider_answers_where_one_ran_out_of_memory() -> None:
    slow = [
        observation(FULL, b, n, 0, 3 * affine_law(FULL, b, n, 0), provider="frugal")
        for b in BATCHES
        for n in (*LENGTHS, 65536)
    ]
    kernels = fit([*prefills(), failed(FULL, 1, 65536, 0), *slow])
    found = kernels.predict(FULL, 1, [8192, 65536], 0, dtype="bf16")
    assert found.provider.tolist() == ["flash", "frugal"]
    assert found.error_group == "full_attention"


def test_an_unsupported_shape_is_not_scaled_from_another() -> None:
    kernels = fit([*prefills(), failed(WIDER, 1, 1024, 0, "unsupported")])
    found = kernels.predict(WIDER, 1, 4096, 0, dtype="bf16", provider="flash")
    assert found.outcome == "unsupported" and np.isnan(found.latency_s)


# Providers and modes


def two_providers(**changes: object) -> list[Observation]:
    fast = prefills(provider="fast", law=lambda *a: affine_law(*a) / 2, **changes)
    return prefills() + fast


def test_the_fastest_provider_is_taken_and_named() -> None:
    kernels = fit(two_providers())
    assert kernels.predict(FULL, 1, 4096, 0, dtype="bf16").provider == "fast"
    assert kernels.predict(FULL, 1, 4096, 0, dtype="bf16", provider="flash").provider == "flash"
    assert kernels.providers(FULL, phase="prefill", dtype="bf16") == ["fast", "flash"]
    assert kernels.predict(FULL, 1, 4096, 0, dtype="bf16").error_group == "full_attention:fast"


def test_a_curve_that_ends_early_does_not_win_beyond_its_end() -> None:
    short = prefills(provider="short", law=lambda *a: affine_law(*a) / 2)
    kernels = fit([*prefills(), *(o for o in short if o.new_tokens <= 4096)])
    for length, provider in ((4096, "short"), (8192, "flash"), (16384, "flash")):
        assert kernels.predict(FULL, [1, 1], length, 0, dtype="bf16").provider[0] == provider
        assert kernels.predict_one(FULL, 1, length, 0, dtype="bf16").provider == provider


def test_a_flagged_provider_is_never_taken_unasked() -> None:
    kernels = fit(two_providers(flagged=True))
    assert kernels.predict(FULL, 1, 4096, 0, dtype="bf16").provider == "flash"
    asked = kernels.predict(FULL, 1, 4096, 0, dtype="bf16", provider="fast")
    assert asked.provider == "fast" and asked.basis == Basis.MEASURED


def test_this_shape_goes_before_a_faster_scaled_one() -> None:
    fast = prefills(WIDER, provider="fast", law=lambda *a: affine_law(*a) / 4)
    found = fit(prefills() + fast).predict(FULL, 1, 4096, 0, dtype="bf16")
    assert found.provider == "flash" and found.basis == Basis.MEASURED


def test_the_mode_is_an_axis() -> None:
    eager = prefills(mode="eager", law=lambda *a: affine_law(*a) + 1e-3)
    kernels = fit(prefills() + eager)
    assert kernels.predict(FULL, 1, 1024, 0, dtype="bf16").mode == "graph"
    slower = kernels.predict(FULL, 1, 1024, 0, dtype="bf16", mode="eager")
    assert slower.mode == "eager" and slower.latency_s > 1e-3
    with pytest.raises(UsageError, match="mode 'eager'.*measured: graph"):
        fit(prefills()).predict(FULL, 1, 1024, 0, dtype="bf16", mode="eager")


def test_the_cold_cache_is_preferred_where_both_were_measured() -> None:
    warm = prefills(cache_state="warm", law=lambda *a: affine_law(*a) / 3)
    expected = affine_law(FULL, 1, 4096, 0)
    assert fit(prefills() + warm).predict_one(FULL, 1, 4096, 0, dtype="bf16")[0] == (
        pytest.approx(expected)
    )
    only = fit(warm).predict_one(FULL, 1, 4096, 0, dtype="bf16")
    assert only.latency_s == pytest.approx(expected / 3)


def test_the_shortest_call_is_a_cold_one_in_a_graph_where_there_is_one() -> None:
    """What runs between large kernels finds their data in the cache, not its own."""
    times = {("eager", "cold"): 5e-6, ("graph", "warm"): 2e-6, ("graph", "cold"): 3e-6}
    points = [
        observation(FULL, 1, 64, 0, seconds, mode=mode, cache_state=cache)
        for (mode, cache), seconds in times.items()
    ]
    for count, shortest in ((3, 3e-6), (2, 2e-6), (1, 5e-6)):
        assert fit(points[:count]).shortest_call_s == shortest
    assert fit([]).shortest_call_s is None


def test_an_unknown_provider_says_what_to_run() -> None:
    with pytest.raises(UsageError, match="measured: flash; to measure it: attn-profile run"):
        fit(prefills()).predict(FULL, 1, 1024, 0, dtype="bf16", provider="fa3")


# Other shapes, other devices, no evidence


def test_another_shape_is_scaled_from_the_nearest() -> None:
    found = _SHARED.predict(WIDER, [1, 2, 1], [4096, 4096, 1], [0, 0, 8192], dtype="bf16")
    assert (found.basis == Basis.SCALED).all()
    # 64 heads at batch 1 are 32 heads at batch 2: no ratio is needed inside the rows
    for i, (b, n, c) in enumerate(((1, 4096, 0), (2, 4096, 0), (1, 1, 8192))):
        assert found.latency_s[i] == pytest.approx(affine_law(WIDER, b, n, c), rel=0.1)
        assert found.low_s[i] < affine_law(WIDER, b, n, c) < found.high_s[i]


def long_points(op: Op = NARROWER) -> list[Observation]:
    """One sequence of 64k and of 128k tokens alone, prefilled and decoded after."""
    prefill = [(n, 0) for n in (65536, 131072)]
    return [
        observation(op, 1, n, c, affine_law(op, 1, n, c))
        for n, c in (*prefill, *((1, n) for n, _ in prefill))
    ]


def test_a_shape_measured_at_other_lengths_is_no_donor_and_takes_one() -> None:
    alike = replace(
        NARROWER, spec=replace(NARROWER.spec, num_q_heads=12, num_k_heads=3, num_v_heads=3)
    )
    for op in (NARROWER, alike):
        for n, c in ((1024, 0), (4096, 0), (1, 1024)):
            found = _WITH_LONG.predict_one(op, 1, n, c, dtype="bf16")
            without = _SHARED.predict_one(op, 1, n, c, dtype="bf16")
            assert found.basis == Basis.SCALED
            assert found.latency_s == pytest.approx(without.latency_s)
    here = _WITH_LONG.predict_one(NARROWER, 1, 65536, 0, dtype="bf16")
    assert here.basis == Basis.MEASURED


def test_a_shape_measured_at_one_batch_is_not_continued_where_another_has_many() -> None:
    """A step of one sequence tells nothing of 16: it is hardly more than a launch."""
    for batch in (4, 16):
        found = _WITH_LONG.predict_one(HALF_GDN, batch, 1, 4096, dtype="bf16")
        assert found.basis == Basis.SCALED
        assert found.latency_s == pytest.approx(affine_law(HALF_GDN, batch, 1, 4096), rel=0.15)
    assert _WITH_LONG.predict_one(HALF_GDN, 1, 1, 4096, dtype="bf16").basis == Basis.MEASURED


def test_a_donor_of_one_batch_does_not_go_before_one_that_has_many() -> None:
    """Decoding 16 sequences far past all points: FULL's rows tell more than NARROWER's only one,
    though that ends later; and what it tells is ranked as far as it is."""
    slow = [replace(o, provider="slow", latency_s=9 * o.latency_s) for o in long_points()]
    kernels = fit([*prefills(), *decodes(), *slow])
    for cached in (16384, 40000, 131072):
        one = kernels.predict_one(SMALL, 16, 1, cached, dtype="bf16")
        many = kernels.predict(SMALL, [16, 16], 1, cached, dtype="bf16")
        assert one.provider == many.provider[1] == "flash"
        assert one.latency_s == pytest.approx(affine_law(SMALL, 16, 1, cached), rel=0.3)


def test_a_kernel_of_long_calls_shows_no_fixed_cost() -> None:
    """Else a call read short of its points would cost the same at any batch."""
    kernels = fit([observation(FULL, 1, n, 0, affine_law(FULL, 1, n, 0)) for n in (65536, 131072)])
    one, many = (kernels.predict_one(NARROWER, b, 8192, 0, dtype="bf16") for b in (1, 16))
    assert many.latency_s > 8 * one.latency_s


def test_many_short_sequences_cost_their_work_by_a_kernel_of_one_long_one() -> None:
    """16 or 64 of 1k tokens by a recurrent kernel measured from 64k on, of half the heads: what
    it read there for one sequence is mostly a launch, which is not what the others add."""
    long = [observation(HALF_GDN, 1, n, 0, affine_law(HALF_GDN, 1, n, 0)) for n in (65536, 131072)]
    kernels = fit(long)
    for batch in (1, 16, 64):
        found = kernels.predict_one(GDN, batch, 1024, 0, dtype="bf16")
        assert found.latency_s == pytest.approx(affine_law(GDN, batch, 1024, 0), rel=0.3)


def test_a_stack_of_recurrent_layers_is_scaled_where_no_work_depends_on_its_context() -> None:
    """A step of it does the same after any number of tokens."""
    one, other = (StackOp("G" * layers, (("G", GDN.spec),), hidden_size=2048) for layers in (2, 4))
    kernels = fit([observation(one, b, 1, c, 1e-4 * b) for b in (1, 2) for c in (1024, 8192)])
    found = kernels.predict_one(other, 1, 1, 4096, dtype="bf16")
    assert found.basis == Basis.SCALED and 1e-4 < found.latency_s < 3e-4


def test_a_measured_segment_is_not_replaced_where_its_shape_is_measured_farther_off() -> None:
    seconds = 2 * affine_law(NARROWER, 1, 2048, 63488)
    segment = observation(NARROWER, 1, 2048, 63488, seconds)
    kernels = fit([*prefills(), *decodes(), *long_points(), segment])
    one = kernels.predict_one(NARROWER, 1, 2048, 63488, dtype="bf16")
    many = kernels.predict(NARROWER, [1, 1], 2048, 63488, dtype="bf16")
    assert one.latency_s == pytest.approx(seconds)
    assert many.latency_s[1] == pytest.approx(seconds)
    assert one.basis == many.basis[0] == Basis.MEASURED


def test_of_no_workloads_there_are_no_times() -> None:
    for op in (FULL, WIDER, NARROWER, GDN, DenseOp(512, 512)):
        assert _WITH_LONG.predict(op, [], [], [], dtype="bf16").latency_s.shape == (0,)


def test_a_segment_of_two_tokens_has_a_time() -> None:
    assert _SHARED.predict_one(WIDER, 1, 2, 1, dtype="bf16").latency_s > 0


def test_a_curve_goes_on_past_its_end_though_another_shape_reaches_there() -> None:
    found = _WITH_LONG.predict_one(FULL, 1, 131072, 0, dtype="bf16")
    alone = _SHARED.predict_one(FULL, 1, 131072, 0, dtype="bf16")
    assert found.basis == Basis.EXTRAPOLATED
    assert found.latency_s == pytest.approx(alone.latency_s)


def test_a_scaled_time_just_past_its_donors_end_wins_nothing_by_that() -> None:
    slow = prefills(provider="slow", law=lambda *a: affine_law(*a) * 3)
    kernels = fit([*prefills(), *(o for o in slow if o.new_tokens <= 8192)])
    for length in (8192, 8300, 9000):
        assert kernels.predict_one(WIDER, 1, length, 0, dtype="bf16").provider == "flash"
        assert kernels.predict(WIDER, [1, 1], length, 0, dtype="bf16").provider[0] == "flash"


def test_without_evidence_the_roofline_bounds_it_and_says_so() -> None:
    kernels = fit(prefills())
    for op, dtype in ((GDN, "bf16"), (FULL, "fp8"), (DenseOp(4096, 4096), "bf16")):
        found = kernels.predict(op, 4, 4096, 0, dtype=dtype)
        elem = {"bf16": 2.0, "fp8": 1.0}[dtype]
        bound = H200.lower_bound_s(
            op.model_flops(4, 4096, 0), op.min_bytes(4, 4096, 0, elem), dtype
        )
        assert found.basis == Basis.ANALYTIC and found.provider == "analytic"
        assert bound <= found.low_s <= found.latency_s <= found.high_s
        assert found.nearest.tolist() == ["", ""]
    assert kernels.missing(GDN, phase="prefill", dtype="bf16") == (
        "attn-profile run --mixers gated_deltanet --dtype bf16"
    )
    assert kernels.missing(FULL, phase="prefill", dtype="bf16") == ""
    assert "--ratios" in kernels.missing(
        StackOp("FG", (("F", FULL.spec), ("G", GDN.spec)), 4096), phase="prefill", dtype="bf16"
    )


def test_a_cost_model_without_any_point_still_bounds() -> None:
    found = fit([]).predict(FULL, 1, [1024, 1 << 20], 0, dtype="bf16")
    assert (found.basis == Basis.ANALYTIC).all()
    assert found.latency_s[0] < found.latency_s[1]


def test_another_device_is_scaled_by_the_rooflines() -> None:
    h100 = load_hardware("h100-sxm")
    kernels = KernelCost.fit([], h100, donors=lambda: [fit(prefills() + decodes())])
    found = kernels.predict(FULL, 4, [4096, 1], [0, 16384], dtype="bf16")
    assert (found.basis == Basis.SCALED).all()
    assert all("NVIDIA H200" in name for name in found.provider)
    # prefill is bound by arithmetic, which both devices do at one rate; decode by bandwidth
    assert found.latency_s[0] == pytest.approx(affine_law(FULL, 4, 4096, 0))
    slower = H200.bandwidth / h100.bandwidth
    assert found.latency_s[1] == pytest.approx(affine_law(FULL, 4, 1, 16384) * slower)


def test_nothing_that_nobody_measured_is_faster_than_the_device() -> None:
    """Batches 1 and 8 wait for launches: continued to 1,024 they would outrun the memory."""
    points = [observation(FULL, b, 1, 8192, 20e-6 + b * 1e-7) for b in (1, 8)]
    bound = H200.lower_bound_s(
        FULL.model_flops(1024, 1, 8192), FULL.min_bytes(1024, 1, 8192, 2.0), "bf16"
    )
    many = fit(points).predict(FULL, [1024, 1024], 1, 8192, dtype="bf16")
    one = fit(points).predict_one(FULL, 1024, 1, 8192, dtype="bf16")
    for found in (many.latency_s[0], many.low_s[0], one.latency_s, one.low_s):
        assert found == pytest.approx(bound)
    assert one.high_s < 2**15 * bound


def test_a_continuation_that_outruns_the_device_loses_to_one_that_does_not() -> None:
    flat = [observation(FULL, b, 1, 8192, 20e-6 + b * 1e-7, provider="flat") for b in (1, 8)]
    sound = [observation(FULL, b, 1, 8192, 9e-6 * b, provider="sound") for b in (1, 8)]
    found = fit([*flat, *sound])
    assert found.predict_one(FULL, 512, 1, 8192, dtype="bf16").provider == "sound"
    assert set(found.predict(FULL, [512, 512], 1, 8192, dtype="bf16").provider) == {"sound"}


def test_a_call_far_short_of_the_points_takes_its_launch() -> None:
    points = [observation(FULL, 1, 1, s, 40e-6 * s / 8192) for s in (8192, 16384)]
    found = fit(points).predict_one(FULL, 1, 1, 16, dtype="bf16")
    assert found.latency_s == pytest.approx(SHORTEST_CALL_S)
    assert found.high_s <= 40e-6 * 1.1


# What a family does not see


def test_a_recurrent_step_costs_the_same_at_any_context() -> None:
    steps = [observation(GDN, b, 1, 4096, affine_law(GDN, b, 1, 4096)) for b in (1, 8, 64)]
    found = fit(steps).predict(GDN, 8, 1, [16, 4096, 1 << 20], dtype="bf16")
    assert found.latency_s == pytest.approx([affine_law(GDN, 8, 1, 4096)] * 3)


def test_a_dense_layer_sees_tokens_not_sequences() -> None:
    op = DenseOp(4096, 4096)
    points = [observation(op, 1, n, 0, affine_law(op, 1, n, 0)) for n in (16, 128, 1024, 8192)]
    found = fit(points).predict(op, [8, 128, 1], [128, 1, 1024], [0, 4096, 0], dtype="bf16")
    expected = [affine_law(op, 1, n, 0) for n in (1024, 128, 1024)]
    assert found.latency_s == pytest.approx(expected)
    assert (found.basis == Basis.MEASURED).all()


def test_a_convolution_has_prefill_and_step() -> None:
    op = ConvOp(8192, 4)
    points = [observation(op, 1, n, 0, affine_law(op, 1, n, 0)) for n in LENGTHS]
    points += [observation(op, b, 1, 1, affine_law(op, b, 1, 1)) for b in (1, 8, 64)]
    found = fit(points).predict(op, [1, 8], [4096, 1], [0, 9000], dtype="bf16")
    expected = [affine_law(op, 1, 4096, 0), affine_law(op, 8, 1, 1)]
    assert found.latency_s == pytest.approx(expected)


# Prefills after cached tokens


def test_a_segment_costs_as_much_as_a_prefill_of_equal_work() -> None:
    found = _SHARED.predict(FULL, 4, 2048, [0, 6144], dtype="bf16")
    assert found.basis.tolist() == [Basis.MEASURED, Basis.SCALED]
    assert found.latency_s[1] == pytest.approx(affine_law(FULL, 4, 2048, 6144), rel=0.05)


def test_measured_segments_are_read_between() -> None:
    segments = [
        observation(FULL, 1, 2048, c, 1.5 * affine_law(FULL, 1, 2048, c))
        for c in (2048, 8192, 32768)
    ]
    found = fit(prefills() + segments).predict(FULL, 1, 2048, [8192, 16384], dtype="bf16")
    assert found.basis.tolist() == [Basis.MEASURED, Basis.INTERPOLATED]
    expected = [1.5 * affine_law(FULL, 1, 2048, c) for c in (8192, 16384)]
    assert found.latency_s == pytest.approx(expected, rel=0.02)


def test_a_recurrent_mixer_continues_at_the_same_cost() -> None:
    found = _SHARED.predict(GDN, 4, 4096, [0, 65536], dtype="bf16")
    assert found.basis.tolist() == [Basis.MEASURED, Basis.INTERPOLATED]
    assert found.latency_s[1] == found.latency_s[0]


# Noise, repeats, and what is refused


def test_a_noisier_point_has_a_wider_interval() -> None:
    quiet, noisy = prefills(), prefills()
    noisy[2] = observation(FULL, 1, 4096, 0, affine_law(FULL, 1, 4096, 0), noise=0.2)
    for length in (4096, 5000):
        narrow = fit(quiet).predict(FULL, 1, length, 0, dtype="bf16")
        wide = fit(noisy).predict(FULL, 1, length, 0, dtype="bf16")
        assert wide.high_s / wide.low_s > 1.2 * narrow.high_s / narrow.low_s


def test_repeats_become_their_median_and_their_spread_is_noise() -> None:
    repeats = [observation(FULL, 1, 1024, 0, t, key=f"r{t}") for t in (1e-3, 1.1e-3, 2e-3)]
    found = fit(repeats).predict(FULL, 1, 1024, 0, dtype="bf16")
    assert found.latency_s == pytest.approx(1.1e-3)
    assert np.log(found.high_s / found.latency_s) == pytest.approx((2e-3 - 1e-3) / 2 / 1.1e-3)


@pytest.mark.parametrize("latency", [0.0, -1e-3, math.nan, math.inf])
def test_impossible_latencies_are_refused_at_the_door(latency: float) -> None:
    with pytest.raises(BadObservation, match="finite and positive.*key"):
        observation(FULL, 1, 1024, 0, latency)


@pytest.mark.parametrize(("b", "n", "c"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_impossible_workloads_are_refused(b: int, n: int, c: int) -> None:
    for ask in (_SHARED.predict, _SHARED.predict_one):
        with pytest.raises(UsageError, match="at least"):
            ask(FULL, b, n, c, dtype="bf16")


_SHARED = fit(prefills() + decodes() + prefills(GDN) + decodes(GDN))
_WITH_LONG = fit(
    [
        *(prefills() + decodes() + prefills(GDN) + decodes(GDN) + long_points()),
        *(o for o in decodes(HALF_GDN) if o.batch_size == 1),
    ]
)
