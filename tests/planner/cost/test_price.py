"""Price and energy: hand-computed cases, whose price counts, and where one model is cheaper."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from planner.catalog import Price, load_engine, load_hardware, load_model
from planner.cost.basis import Basis
from planner.cost.energy import measured_powers, token_energy
from planner.cost.kernel import KernelCost
from planner.cost.model import CostModel, Deployment, ModelCost, Part, PhaseCost
from planner.cost.price import crossing, over_context, token_price, usual_price
from planner.workload import Traffic

LLAMA = load_model("llama-3.1-8b")
HYBRID = LLAMA.with_mixer("gated_deltanet", "3:1")
TRAFFIC = Traffic(prompt_tokens=1000, output_tokens=100, concurrency=4)


def part(seconds: float, *, name: str = "full_attention", group: str = "a", **more) -> Part:
    facts = {
        "role": "mixer", "name": name, "count": 1, "seconds": seconds, "low": 0.9 * seconds,
        "high": 1.2 * seconds, "basis": Basis.MEASURED, "provider": "p", "error_group": group,
    }  # fmt: skip
    return Part(**{**facts, **more})


def cost(prefill_s: float, decode_s: float, *, batch: int = 4, **changes) -> ModelCost:
    memory = Deployment(hardware=load_hardware("h200-sxm")).memory_model(LLAMA).at(1100, 4)
    facts = {
        "arch": LLAMA, "traffic": TRAFFIC, "prefill": PhaseCost(parts=(part(prefill_s),)),
        "decode": PhaseCost(parts=(part(decode_s, basis=Basis.SCALED),)), "batch_size": batch,
        "max_concurrency": batch, "memory": memory,
    }  # fmt: skip
    return ModelCost(**{**facts, **changes})


@pytest.fixture(scope="module")
def analytic() -> CostModel:
    """An H200 without a measured point: the roofline over typical efficiencies."""
    hardware = load_hardware("h200-sxm")
    return CostModel(KernelCost.fit([], hardware), Deployment(hardware=hardware))


# Tokens


def test_a_price_by_hand() -> None:
    # $3.60 an hour is $0.001 a second. Prefill: 0.5 s for 1,000 tokens. Decode: 0.02 s for 4.
    found = token_price(cost(0.5, 0.02), 3.60)
    assert found.input.value == pytest.approx(0.5 * 0.001 / 1000 * 1e6)
    assert found.output.value == pytest.approx(0.02 / 4 * 0.001 * 1e6)
    # one request: 0.5 + 100 x 0.02 / 4 = 1 s
    assert found.request.value == pytest.approx(0.001)


def test_a_request_is_its_tokens() -> None:
    found = token_price(cost(0.5, 0.02), 2.0)
    tokens = (found.input.value * 1000 + found.output.value * 100) / 1e6
    assert found.request.value == pytest.approx(tokens)


def test_intervals_and_basis_are_those_of_the_phases() -> None:
    found = token_price(cost(0.5, 0.02), 3.60)
    assert (found.input.low, found.input.high) == pytest.approx((0.45, 0.6))
    assert found.input.basis == Basis.MEASURED
    assert found.output.basis == found.request.basis == Basis.SCALED
    # errors of prefill and decode are independent: half of 0.1 s and 0.1 s
    assert found.request.high == pytest.approx(0.001 * (1 + math.hypot(0.1, 0.1)))


def test_every_device_is_paid_and_idle_time_too() -> None:
    one = token_price(cost(0.5, 0.02), 3.60)
    eight = token_price(cost(0.5, 0.02, devices=8), 3.60)
    half_idle = token_price(cost(0.5, 0.02, traffic=replace(TRAFFIC, utilisation=0.5)), 3.60)
    for side in ("input", "output", "request"):
        value = getattr(one, side).value
        assert getattr(eight, side).value == pytest.approx(8 * value)
        assert getattr(half_idle, side).value == pytest.approx(2 * value)


def test_cache_hits_make_the_mean_prompt_token_cheaper(analytic: CostModel) -> None:
    rates = [
        token_price(
            analytic.estimate(LLAMA, replace(TRAFFIC, prompt_tokens=8192, prefix_hit_rate=hits)), 1
        ).input.value
        for hits in (0.0, 0.5, 0.9)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < 0.3 * rates[0]


def test_what_does_not_fit_has_no_price() -> None:
    found = token_price(cost(0.5, 0.02, batch=0), 3.60)
    assert all(math.isnan(e.value) for e in (found.input, found.output, found.request))


# Over context


def test_longer_prompts_cost_more_a_token_and_a_hybrid_less(analytic: CostModel) -> None:
    contexts = (1024, 8192, 65536, 131072)
    full = over_context(analytic, LLAMA, TRAFFIC, contexts)
    hybrid = over_context(analytic, HYBRID, TRAFFIC, contexts)
    assert [p.cost.traffic.prompt_tokens for p in full] == list(contexts)
    for points in (full, hybrid):
        for side in ("input", "output"):
            rates = [getattr(token_price(p.cost, 1.0), side).value for p in points]
            assert rates == sorted(rates)
    last = [token_price(p[-1].cost, 1.0) for p in (full, hybrid)]
    assert last[1].input.value < last[0].input.value
    assert last[1].output.value < last[0].output.value


def test_crossings_are_where_the_prices_meet(analytic: CostModel) -> None:
    contexts = tuple(2**k for k in range(8, 18))
    full = over_context(analytic, LLAMA, TRAFFIC, contexts)
    hybrid = over_context(analytic, HYBRID, TRAFFIC, contexts)
    for side in ("input", "output"):
        found = crossing(full, hybrid, side)
        rates = [
            [getattr(token_price(p.cost, 1.0), side).value for p in points]
            for points in (full, hybrid)
        ]
        cheaper = [b < a for a, b in zip(*rates, strict=True)]
        after = [n for n, is_cheaper in zip(contexts, cheaper, strict=True) if is_cheaper]
        assert after and found.context <= after[0]
        assert not found.high < found.context
    same = crossing(full, full, "input")
    assert math.isnan(same.context)


def test_a_model_that_no_longer_fits_has_lost(analytic: CostModel) -> None:
    contexts = (1 << 12, 1 << 21)
    big = replace(TRAFFIC, concurrency=64)
    full = over_context(analytic, LLAMA, big, contexts)
    hybrid = over_context(analytic, HYBRID, big, contexts)
    assert [p.cost.batch_size for p in full][-1] == 0 < hybrid[-1].cost.batch_size
    assert crossing(full, hybrid, "output").context <= 1 << 21


# Whose price


def row(usd: float, kind: str, hardware: str = "l40s") -> Price:
    return Price(
        hardware=hardware, usd_per_hour=usd, kind=kind, source="a test", read_on="2026-11-23"
    )  # type: ignore[arg-type]


def test_the_cheapest_on_demand_price_is_the_usual_one() -> None:
    table = [
        row(1.0, "marketplace"),
        row(3.0, "on-demand"),
        row(2.0, "on-demand"),
        row(1.5, "reserved"),
    ]
    assert usual_price(table, "l40s") == table[2]
    assert usual_price(table[:1] + table[3:], "l40s") == table[3]
    assert usual_price([*table, row(9.0, "own")], "l40s") == row(9.0, "own")
    assert usual_price(table, "h100-sxm") is None


# Energy


def points(**changes: list) -> pd.DataFrame:
    facts = {
        "family": ["full_attention", "full_attention", "dense"],
        "phase": ["prefill", "decode", "prefill"],
        "outcome": ["ok"] * 3,
        "mode": ["graph"] * 3,
        "cache_state": ["warm"] * 3,
        "new_tokens": [4096, 1, 4096],
        "energy_j": [0.6, 0.004, 1.0],
        "median_s": [0.001, 1e-5, 0.002],
    }
    return pd.DataFrame({**facts, **changes})


def test_energy_is_time_at_measured_power() -> None:
    phases = (part(0.5), part(0.1, name="qkv", role="projection", group="b"))
    found = token_energy(
        cost(0.5, 0.02, prefill=PhaseCost(parts=phases)), measured_powers(points())
    )
    assert found.missing == ()
    assert found.input is not None and found.output is not None
    # 600 W for 0.5 s and 500 W for 0.1 s over 1,000 tokens; 400 W for 0.02 s over 4
    assert found.input.value == pytest.approx((600 * 0.5 + 500 * 0.1) / 1000)
    assert found.output.value == pytest.approx(400 * 0.02 / 4)
    assert found.input.basis == found.output.basis == Basis.SCALED


def test_power_is_that_of_graphs_timed_warm_as_their_energy_was() -> None:
    """A cold or eager median is not the time of the calls whose joules were counted."""
    one_use = {"family": ["dense"] * 3, "phase": ["prefill"] * 3, "energy_j": [0.6] * 3}
    times = {"median_s": [0.001, 0.002, 0.003]}
    mixed = {"mode": ["graph", "graph", "eager"], "cache_state": ["warm", "cold", "warm"]}
    found = measured_powers(points(**one_use, **times, **mixed))
    assert found["dense", "prefill"].watts == pytest.approx(600)
    assert found["dense", "prefill"].points == 1
    assert measured_powers(points(cache_state=["cold"] * 3)) == {}


def test_a_product_of_one_token_a_sequence_draws_what_decoding_draws() -> None:
    """Their phase is "prefill" in both: nothing is cached."""
    one_use = {"family": ["dense"] * 3, "phase": ["prefill"] * 3, "median_s": [0.001] * 3}
    found = measured_powers(points(**one_use, new_tokens=[4096, 1, 1], energy_j=[0.6, 0.1, 0.3]))
    assert {use: power.watts for use, power in found.items()} == {
        ("dense", "prefill"): pytest.approx(600),
        ("dense", "decode"): pytest.approx(200),
    }


def test_energy_without_every_kernels_power_is_not_filled_in() -> None:
    nothing = token_energy(cost(0.5, 0.02), measured_powers(points(energy_j=[None] * 3)))
    assert (nothing.input, nothing.output) == (None, None)
    assert nothing.missing == ("full_attention",)
    unmeasured = PhaseCost(parts=(part(0.5), part(0.1, name="gated_deltanet")))
    half = token_energy(cost(0.5, 0.02, prefill=unmeasured), measured_powers(points()))
    assert half.input is None and half.output is not None
    assert half.missing == ("gated_deltanet",)


def test_energy_between_kernels_lies_between_nothing_and_the_most_drawn() -> None:
    decode = PhaseCost(parts=(part(0.02), part(0.01, name="launch", role="launch", group="b")))
    found = token_energy(replace(cost(0.5, 0.02), decode=decode), measured_powers(points()))
    assert found.missing == () and found.output is not None
    # 400 W for 0.02 s, then 0 W to 600 W for 0.01 s, over 4 sequences
    assert found.output.value == pytest.approx((400 * 0.02 + 300 * 0.01) / 4)
    assert found.output.low == pytest.approx(400 * 0.9 * 0.02 / 4)
    assert found.output.high == pytest.approx((400 * 1.2 * 0.02 + 600 * 1.2 * 0.01) / 4)


def test_the_engine_decides_how_many_fit(analytic: CostModel) -> None:
    few = CostModel(
        analytic.kernels, replace(analytic.deployment, rules=load_engine("sglang"))
    ).estimate(HYBRID, replace(TRAFFIC, concurrency=10_000))
    many = analytic.estimate(HYBRID, replace(TRAFFIC, concurrency=10_000))
    assert few.batch_size < many.batch_size
    assert token_price(few, 1.0).output.value > token_price(many, 1.0).output.value
