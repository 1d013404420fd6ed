"""Whole models: what runs, how it is split over devices, how errors add, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner.architecture import Architecture
from planner.catalog import load_hardware, load_model
from planner.cost.basis import Basis
from planner.cost.calls import Call, calls, shard
from planner.cost.kernel import KernelCost
from planner.cost.model import (
    ONE_MATRIX_HALF_WIDTH,
    At,
    CostModel,
    Deployment,
    Part,
    PhaseCost,
    as_dense,
)
from planner.cost.observations import Observation
from planner.cost.stored import KV_CACHE, WEIGHTS
from planner.cost.streams import SHARE_OF_BANDWIDTH, streams
from planner.errors import PlannerError, UnknownName, UsageError
from planner.workload import DenseOp, ExpertsOp, MixerOp, Op, Traffic

H200 = load_hardware("h200-sxm")
LLAMA, QWEN, KIMI = (load_model(m) for m in ("llama-3.1-8b", "qwen3-next-80b-a3b", "kimi-k2"))
HYBRID = LLAMA.with_mixer("gated_deltanet", "3:1")
CONTEXTS: list[At] = [
    (b, n, c) for b in (1, 8) for n, c in ((1024, 0), (32768, 0), (1, 1024), (1, 32768))
]
TOKENS: list[At] = [(1, n, 0) for n in (1, 64, 4096, 32768)]
CHAT = Traffic(prompt_tokens=8192, output_tokens=512, concurrency=8)


def one_line(error: pytest.ExceptionInfo[PlannerError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def observed(
    op: Op, at: At, seconds: float, *, provider: str = "fast", mode: str = "graph",
    training: bool = False, imported: bool = False, outcome: str = "ok",
) -> Observation:  # fmt: skip
    return Observation(
        op=op, provider=provider, mode=mode, cache_state="cold", dtype="bf16", training=training,
        batch_size=at[0], new_tokens=at[1], cached_tokens=at[2], outcome=outcome,
        latency_s=seconds if outcome == "ok" else math.nan, noise=0.01, device="NVIDIA H200",
        imported=imported, key=f"{op.short()} {at} {provider} {mode}",
    )  # fmt: skip


def law(op: Op, at: At) -> float:
    """A device of half the roofline's speed with launches of 5 us."""
    work = op.model_flops(*at), op.min_bytes(*at, 2.0)
    return float(5e-6 + 2 * H200.lower_bound_s(*work, "bf16"))


def measured(arch: Architecture, **options: Any) -> list[Observation]:
    """Every kernel of a model by the law, at a few sizes."""
    return [
        observed(call.op, at, law(call.op, at), **options)
        for call in calls(arch, 1)
        for at in (CONTEXTS if call.sees == "context" else TOKENS)
    ]


def model(observations: list[Observation], **deployment: Any) -> CostModel:
    kernels = KernelCost.fit(observations, H200)
    return CostModel(kernels, Deployment(**{"hardware": H200, "mode": "graph", **deployment}))


# What one device of several runs


def weights(every: tuple[Call, ...]) -> int:
    return sum(
        c.count * c.op.in_features * c.op.out_features
        for c in every
        if isinstance(c.op, DenseOp)
    )  # fmt: skip


def test_one_device_holds_the_whole_model() -> None:
    embedding = LLAMA.vocab_size * LLAMA.hidden_size
    assert weights(calls(LLAMA, 1)) == LLAMA.parameters() - embedding


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_devices_share_weights_and_work_evenly(degree: int) -> None:
    whole, part = calls(LLAMA, 1), calls(LLAMA, degree)
    assert degree * weights(part) == weights(whole)
    prefill = [
        sum(c.count * c.op.model_flops(*c.at(1, 4096, 0, LLAMA.hidden_size)) for c in every
            if c.role != "all_reduce")
        for every in (whole, part)
    ]  # fmt: skip
    assert degree * prefill[1] == pytest.approx(prefill[0])


def test_kv_heads_are_replicated_once_there_are_fewer_than_devices() -> None:
    attention = load_model("qwen3-next-80b-a3b").kinds["F"]
    assert [shard(attention, d).num_k_heads for d in (1, 2, 4, 8)] == [2, 1, 1, 1]
    assert [shard(attention, d).num_q_heads for d in (1, 2, 4, 8)] == [16, 8, 4, 2]


def test_value_heads_of_a_recurrent_mixer_are_divided() -> None:
    part = shard(QWEN.kinds["G"], 8)
    assert (part.num_q_heads, part.num_k_heads, part.num_v_heads) == (2, 2, 4)


def test_a_prefill_of_mla_expands_the_cached_latents_too() -> None:
    expansion, latent = (
        next(c for c in calls(KIMI, 1) if c.name == f"mla {role}") for role in ("kv_up", "kv_down")
    )
    hidden = KIMI.hidden_size
    assert expansion.at(2, 512, 8192, hidden) == (1, 2 * (512 + 8192), 0)
    assert latent.at(2, 512, 8192, hidden) == (1, 2 * 512, 0)
    # one query attends in the latent space
    assert expansion.at(2, 1, 8192, hidden) == (1, 2, 0)


def test_the_latent_of_mla_is_whole_on_every_device() -> None:
    def latent(degree: int) -> Op:
        return next(c.op for c in calls(KIMI, degree) if c.name == "mla kv_down")

    assert latent(1) == latent(8)
    spec = next(c.op for c in calls(KIMI, 8) if c.role == "mixer")
    assert isinstance(spec, MixerOp)
    assert (spec.spec.num_q_heads, spec.spec.kv_lora_rank) == (8, 512)


def test_experts_are_divided_and_the_router_is_not() -> None:
    found = {c.name: c.op for c in calls(QWEN, 4) if c.role == "channel"}
    assert found["experts"] == ExpertsOp(2048, 128, 512, 10)
    assert found["router"] == DenseOp(2048, 512)
    assert found["shared mlp_down"] == DenseOp(128, 2048)


def test_an_all_reduce_after_each_mixer_and_channel_mixer_and_the_embedding() -> None:
    assert not [c for c in calls(LLAMA, 1) if c.role == "all_reduce"]
    (found,) = (c for c in calls(LLAMA, 4) if c.role == "all_reduce")
    assert found.count == 32 + 32 + 1
    assert found.at(16, 1, 8192, 4096) == (1, 16 * 4096, 0)
    # Nemotron-H's layers have a mixer or a channel mixer
    nemotron = load_model("nemotron-h-8b")
    (found,) = (c for c in calls(nemotron, 2) if c.role == "all_reduce")
    assert found.count == nemotron.num_layers + 1


@pytest.mark.parametrize(
    ("arch", "degree", "said"),
    [
        ("qwen2.5-1.5b", 8, "12 heads"),
        ("llama-3.1-8b", 3, "32 heads"),
        ("llama-3.1-8b", 16, "between 1 and 8"),
        ("llama-3.1-8b", 0, "between 1 and 8"),
    ],
)
def test_what_cannot_be_split_is_refused(arch: str, degree: int, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        calls(load_model(arch), degree)
    assert f"got {degree}" in one_line(error)


def test_a_deployment_is_of_one_host() -> None:
    with pytest.raises(UsageError, match="between 1 and 8"):
        Deployment(hardware=H200, tensor_parallel=16)


# Sums


def test_a_model_is_the_sum_of_its_kernels() -> None:
    cost = model(measured(HYBRID)).estimate(HYBRID, CHAT)
    by_hand = sum(
        c.count * law(c.op, c.at(1, 8192, 0, HYBRID.hidden_size)) for c in calls(HYBRID, 1)
    )
    roles = cost.prefill.by_role()
    assert set(roles) == {
        "mixer", "convolution", "projection", "channel", "lm_head", "elementwise"
    }  # fmt: skip
    assert cost.ttft_s - roles["elementwise"] == pytest.approx(by_hand, rel=0.05)
    assert sum(roles.values()) == pytest.approx(cost.ttft_s)
    assert cost.prefill.ceiling() == pytest.approx(
        cost.ttft_s / (cost.ttft_s - roles["mixer"])
    )  # fmt: skip


def test_throughput_and_gpu_seconds_follow_from_the_phases() -> None:
    cost = model(measured(LLAMA)).estimate(LLAMA, CHAT)
    assert cost.decode_throughput.tokens_per_s == pytest.approx(8 / cost.tpot_s)
    assert cost.prefill_throughput.tokens_per_s == pytest.approx(8192 / cost.ttft_s)
    for found in (cost.decode_throughput, cost.prefill_throughput):
        assert found.low < found.tokens_per_s < found.high
    assert cost.gpu_seconds_per_request == pytest.approx(cost.ttft_s + 512 * cost.tpot_s / 8)


def test_gpu_seconds_count_every_device() -> None:
    two = model(measured(LLAMA), tensor_parallel=2).estimate(LLAMA, CHAT)
    assert two.devices == 2
    assert two.gpu_seconds_per_request == pytest.approx(
        2 * (two.ttft_s + 512 * two.tpot_s / two.batch_size)
    )
    low, high = two.gpu_seconds_interval()
    assert low < two.gpu_seconds_per_request < high


def test_what_does_not_fit_has_no_throughput() -> None:
    cost = model([]).estimate(load_model("llama-3-70b"), CHAT)
    assert cost.batch_size == 0
    assert math.isnan(cost.decode_throughput.tokens_per_s)
    assert math.isnan(cost.prefill_throughput.tokens_per_s)


def layers(*groups: str) -> PhaseCost:
    return PhaseCost(
        parts=tuple(
            Part(
                role="mixer", name=g, count=1, seconds=1.0, low=0.9, high=1.1,
                basis=Basis.MEASURED, provider=g, error_group=g,
            )
            for g in groups
        )
    )  # fmt: skip


def test_errors_of_one_kernel_add_and_of_different_ones_go_in_quadrature() -> None:
    assert layers(*["one"] * 48).high - 48 == pytest.approx(4.8)
    assert layers(*(f"kernel {i}" for i in range(48))).high - 48 == pytest.approx(
        0.1 * math.sqrt(48)
    )


def test_streams_take_a_launch_and_their_bytes() -> None:
    every = {s.name: s for s in streams(LLAMA, 1)}
    assert every["norm and residual"].count == 32 + 32 + 1
    assert every["activation"].elements == 3 * 14336
    assert {s.name: s.elements for s in streams(LLAMA, 2)}["activation"] == 3 * 14336 // 2
    points = measured(LLAMA)
    shortest = min(o.latency_s for o in points)
    cost = model(points)
    decode, prefill = (
        cost.phase(LLAMA, *at).by_role()["elementwise"] for at in ((1, 1, 8192), (1, 65536, 0))
    )
    kernels = sum(s.count for s in every.values())
    assert decode == pytest.approx(kernels * shortest, rel=0.05)
    # beside the launches: a stream's bytes at two thirds of the bandwidth
    moved = 2 * 65536 * sum(s.count * s.elements for s in every.values() if s.sees == "tokens")
    assert prefill == pytest.approx(
        kernels * shortest + moved / (SHARE_OF_BANDWIDTH * H200.bandwidth), rel=0.01
    )
    assert 0.6 < SHARE_OF_BANDWIDTH < 0.7


def test_a_hit_in_the_prefix_cache_leaves_the_rest_to_prefill() -> None:
    cost = model(measured(LLAMA))
    hit = replace(CHAT, prefix_hit_rate=0.5)
    assert cost.estimate(LLAMA, hit).ttft_s < cost.estimate(LLAMA, CHAT).ttft_s


# Providers


def test_the_fastest_measured_provider_is_taken_and_named() -> None:
    slow = [replace(o, provider="slow", latency_s=3 * o.latency_s) for o in measured(LLAMA)]
    cost = model([*measured(LLAMA), *slow]).estimate(LLAMA, CHAT)
    assert {p.provider for p in cost.prefill.parts} == {"fast", "shortest call"}


def test_a_provider_can_be_asked_for_in_all_phases_or_in_one() -> None:
    slow = [replace(o, provider="slow", latency_s=3 * o.latency_s) for o in measured(LLAMA)]
    points = [*measured(LLAMA), *slow]

    def mixers(**providers: str) -> tuple[str, str]:
        keys = {k.replace("__", "/"): v for k, v in providers.items()}
        cost = model(points, providers=keys).estimate(LLAMA, CHAT)
        prefill, decode = (
            next(p.provider for p in phase.parts if p.role == "mixer")
            for phase in (cost.prefill, cost.decode)
        )
        return prefill, decode

    assert mixers(full_attention="slow") == ("slow", "slow")
    assert mixers(full_attention__decode="slow") == ("fast", "slow")


def test_a_window_that_hides_no_key_costs_what_full_attention_does() -> None:
    """Also where its own curve is quicker or slower there; a provider asked for stays."""
    windowed = LLAMA.with_mixer("sliding_window", "1:0")
    (own,) = {spec.window for spec in windowed.counts()}
    slow = [
        replace(o, latency_s=2 * o.latency_s)
        for o in measured(windowed)
        if o.op.family == "sliding_window"
    ]
    points = [*measured(LLAMA), *slow]

    def decode_s(arch: Architecture, context: int, **providers: str) -> float:
        return model(points, providers=providers).phase(arch, 8, 1, context - 1).seconds

    assert own == 1024
    assert decode_s(windowed, 1024) == decode_s(LLAMA, 1024)
    assert decode_s(windowed, 1024, sliding_window="fast") > decode_s(LLAMA, 1024)
    assert decode_s(windowed, 32769) < decode_s(LLAMA, 32769)


def test_a_provider_that_was_not_measured_is_refused_with_what_to_run() -> None:
    with pytest.raises(UsageError, match="attn-profile run") as error:
        model(measured(LLAMA), providers={"full_attention": "magic"}).estimate(LLAMA, CHAT)
    assert "measured: fast" in one_line(error)


def test_a_provider_of_nothing_known_is_refused() -> None:
    with pytest.raises(UnknownName, match="full_atention"):
        Deployment(hardware=H200, providers={"full_atention": "fast"})


def test_what_was_measured_here_goes_before_what_others_measured() -> None:
    theirs = [
        replace(o, provider="theirs", imported=True, latency_s=o.latency_s / 2)
        for o in measured(LLAMA)
    ]
    cost = model([*measured(LLAMA), *theirs]).estimate(LLAMA, CHAT)
    assert {p.provider for p in cost.prefill.parts} == {"fast", "shortest call"}
    named = model([*measured(LLAMA), *theirs], providers={"dense": "theirs"})
    assert {
        p.provider for p in named.estimate(LLAMA, CHAT).prefill.parts if p.role == "channel"
    } == {"theirs"}


def test_others_measured_a_shape_that_nobody_measured_here() -> None:
    """Their measured time goes before a scaled one of this device's own."""
    split = next(c.op for c in calls(LLAMA, 4) if c.role == "mixer")
    sizes = [(b, n, c) for b in (1, 8) for n, c in ((1024, 0), (32768, 0), (1, 1024), (1, 32768))]
    theirs = [
        observed(split, at, law(split, at), provider="theirs", imported=True) for at in sizes
    ]
    cost = model([*measured(LLAMA), *theirs], tensor_parallel=4).estimate(LLAMA, CHAT)
    (mixer,) = (p for p in cost.prefill.parts if p.role == "mixer")
    assert (mixer.provider, mixer.basis) == ("theirs", Basis.INTERPOLATED)


def test_out_of_memory_leaves_no_figure() -> None:
    op = next(c.op for c in calls(LLAMA, 1) if c.role == "mixer")
    failed = observed(op, (1, 8192, 0), math.nan, outcome="out_of_memory")
    short = [o for o in measured(LLAMA) if not (o.op == op and o.new_tokens > 8000)]
    cost = model([*short, failed]).estimate(LLAMA, CHAT)
    assert math.isnan(cost.ttft_s)
    assert "out_of_memory" in cost.blocked and "8192 new" in cost.blocked


# Evidence that is not there


def test_nothing_measured_is_analytic_and_says_so() -> None:
    cost = model([]).estimate(HYBRID, CHAT)
    assert cost.basis == Basis.ANALYTIC
    assert {p.provider for p in cost.prefill.parts} == {"analytic"}
    (attention,) = (p for p in cost.prefill.parts if p.name == "full_attention")
    assert attention.high > 1.8 * attention.seconds


def test_an_unprofiled_mixer_is_the_worst_basis_of_its_sum() -> None:
    cost = model(measured(LLAMA)).estimate(LLAMA.with_mixer("mamba2", "3:1"), CHAT)
    by_name = {p.name: p.basis for p in cost.prefill.parts if p.role == "mixer"}
    assert by_name["mamba2"] == Basis.ANALYTIC == cost.prefill.basis
    assert by_name["full_attention"] < Basis.ANALYTIC


def test_training_needs_training_times_of_the_mixers() -> None:
    with pytest.raises(UsageError, match="--phases training") as error:
        model(measured(HYBRID)).training_step(HYBRID, 1, 4096)
    assert "gated_deltanet,full_attention" in one_line(error)


def test_a_training_step_is_where_mixers_were_measured_in_training() -> None:
    trained = [
        replace(o, training=True, latency_s=3.5 * o.latency_s)
        for o in measured(LLAMA)
        if o.op.family == "full_attention" and o.cached_tokens == 0
    ]
    cost = model([*measured(LLAMA), *trained])
    step, forward = cost.training_step(LLAMA, 1, 4096), cost.phase(LLAMA, 1, 4096, 0)
    assert step.by_role()["mixer"] == pytest.approx(3.5 * forward.by_role()["mixer"], rel=0.02)
    assert step.by_role()["channel"] == pytest.approx(3 * forward.by_role()["channel"])
    # every token asks for its successor, not the last one alone
    assert step.by_role()["lm_head"] > 30 * forward.by_role()["lm_head"]
    assert step.basis == Basis.SCALED


# Runtime mode


def test_eager_mode_adds_what_the_host_takes_where_the_device_waits() -> None:
    eager = [
        replace(o, mode="eager", latency_s=o.latency_s + 40e-6, key=f"{o.key} eager")
        for o in measured(LLAMA)
    ]
    points = [*measured(LLAMA), *eager]
    graph, cost = (model(points, mode=m).estimate(LLAMA, CHAT) for m in ("graph", "eager"))
    assert "launch" not in graph.decode.by_role()
    (launch,) = (p for p in cost.decode.parts if p.role == "launch")
    assert launch.basis == Basis.SCALED and launch.low <= launch.seconds < launch.high
    assert cost.tpot_s == pytest.approx(graph.tpot_s + launch.seconds)
    # a long prefill keeps the device busy: the host is hidden
    assert cost.ttft_s == pytest.approx(graph.ttft_s)


def test_eager_times_hold_their_launches() -> None:
    eager = [replace(o, mode="eager") for o in measured(LLAMA)]
    cost = model(eager, mode="eager").estimate(LLAMA, CHAT)
    assert "launch" not in cost.decode.by_role()


# Stored dtypes


@pytest.mark.parametrize("weights", ["fp8", "int4"])
def test_smaller_weights_gain_a_share_of_the_roofline_ratio(weights: str) -> None:
    arch = LLAMA
    as_is = model(measured(arch)).phase(arch, 1, 1, 8192)
    small = model(measured(arch), weights_dtype=weights).phase(arch, 1, 1, 8192)
    before, after = as_is.by_role()["channel"], small.by_role()["channel"]
    ratio = {"fp8": 1 / 2, "int4": 1 / 4}[weights]
    assert after / before == pytest.approx(ratio**WEIGHTS.typical, rel=0.01)
    part = next(p for p in small.parts if p.role == "channel")
    assert part.basis == Basis.SCALED
    assert part.low / part.seconds < ratio ** (WEIGHTS.high - WEIGHTS.typical) * 1.01
    assert small.by_role()["mixer"] == as_is.by_role()["mixer"]


def test_a_smaller_cache_speeds_up_attention_alone() -> None:
    as_is = model(measured(HYBRID)).phase(HYBRID, 8, 1, 32768)
    small = model(measured(HYBRID), kv_dtype="fp8").phase(HYBRID, 8, 1, 32768)

    def seconds(cost: PhaseCost, name: str) -> float:
        return next(p.seconds for p in cost.parts if p.role == "mixer" and p.name == name)

    gain = seconds(small, "full_attention") / seconds(as_is, "full_attention")
    assert gain == pytest.approx(0.5**KV_CACHE.typical, rel=0.01)
    assert seconds(small, "gated_deltanet") == seconds(as_is, "gated_deltanet")


def test_a_smaller_state_speeds_up_recurrent_decoding_alone() -> None:
    as_is = model(measured(HYBRID)).phase(HYBRID, 8, 1, 32768)
    small = model(measured(HYBRID), state_dtype="bf16").phase(HYBRID, 8, 1, 32768)
    changed = {
        a.name
        for a, b in zip(as_is.parts, small.parts, strict=True)
        if a.seconds != b.seconds
    }  # fmt: skip
    assert changed == {"gated_deltanet"}


# Mixtures of experts


def test_measured_experts_are_taken_as_measured(
    imported: Callable[[str], list[Observation]],
) -> None:
    cost = model(imported("h200_sxm")).estimate(QWEN, CHAT)
    (part,) = (p for p in cost.decode.parts if p.name == "experts")
    assert part.provider == "vllm_triton@0.24"


def test_experts_that_nobody_measured_are_one_wide_matrix() -> None:
    dense = [o for o in measured(QWEN) if o.op.family != "experts"]
    cost = model(dense).estimate(QWEN, CHAT)
    (part,) = (p for p in cost.decode.parts if p.name == "experts")
    assert part.provider == "fast as one matrix"
    assert part.basis >= Basis.SCALED and part.error_group == "dense:fast"


def test_as_one_matrix_experts_have_their_flops_and_bytes() -> None:
    op = ExpertsOp(2048, 512, 512, 10)
    for tokens in (1, 16, 8192):
        pair = as_dense(op, (1, tokens, 0))
        held = sum(dense.in_features * dense.out_features for dense, _ in pair)
        assert held == pytest.approx(op.touched(tokens) * op.expert_parameters, rel=0.01)
        # whole rows: one of 1.2 rows is one
        flops = sum(dense.model_flops(*at) for dense, at in pair)
        assert flops == pytest.approx(op.model_flops(1, tokens, 0), rel=0.15)


@pytest.mark.slow
def test_how_wrong_one_wide_matrix_is(imported: Callable[[str], list[Observation]]) -> None:
    errors = []
    for system, id in (
        ("a100_sxm", "a100-80g-sxm"), ("h100_sxm", "h100-sxm"),
        ("h200_sxm", "h200-sxm"), ("b200_sxm", "b200-sxm"),
    ):  # fmt: skip
        kernels = KernelCost.fit(imported(system), load_hardware(id))
        for o in imported(system):
            if isinstance(o.op, ExpertsOp):
                pair = as_dense(o.op, (o.batch_size, o.new_tokens, 0))
                seconds = sum(
                    kernels.predict_one(dense, *at, dtype="bf16").latency_s for dense, at in pair
                )
                errors.append(math.log(seconds / o.latency_s))
    p80 = float(np.quantile(np.abs(errors), 0.8))
    print(f"{len(errors)} rows of experts: median {np.median(np.abs(errors)):.2f}, p80 {p80:.2f}")
    assert len(errors) == 298
    assert p80 == pytest.approx(ONE_MATRIX_HALF_WIDTH, abs=0.01)
