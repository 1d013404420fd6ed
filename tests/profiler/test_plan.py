"""From a request to points: what is planned, in which order, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.errors import UnknownName, UsageError
from planner.workload import DenseOp, ExpertsOp, MixerOp, StackOp
from profiler.device import Device
from profiler.measure.timing import HEAVY_METHOD_VERSION, SHORT_METHOD_VERSION
from profiler.plan import Grid, PlannedJob, build, groups, levels

TINY = load_model("tiny")
GRID = Grid(lengths=(1024, 2048, 4096, 8192), ratios=("0:1", "3:1", "1:0"))


def plan(grid: Grid, device: Device) -> list[PlannedJob]:
    return build(grid, device, [TINY])


@pytest.fixture(scope="module")
def hopper(cpu: Device) -> Device:
    return replace(
        cpu,
        kind="cuda",
        name="NVIDIA H200",
        capability=(9, 0),
        memory_bytes=141 << 30,
        cache_bytes=60 << 20,
    )


def test_levels_halve_the_range() -> None:
    assert levels([1, 2, 4, 8, 16, 32, 64, 128]) == {
        1: 0, 128: 0, 8: 1, 2: 2, 32: 2, 4: 3, 16: 3, 64: 3,
    }  # fmt: skip
    assert levels([7]) == {7: 0}


def test_a_cut_run_has_every_mixer_over_the_range(cpu: Device) -> None:
    jobs = plan(GRID, cpu)
    assert [p.level for p in jobs] == sorted(p.level for p in jobs)
    coarse = [
        p.job.workload for p in jobs if p.level == 0 and isinstance(p.job.workload.op, MixerOp)
    ]
    for mixer in GRID.mixers:
        prefills = {w.new_tokens for w in coarse if w.op.family == mixer and w.phase == "prefill"}
        assert prefills == {1024, 8192}


def test_no_job_is_planned_twice_and_workloads_stay_together(cpu: Device) -> None:
    jobs = plan(GRID, cpu)
    assert len({p.job for p in jobs}) == len(jobs)
    assert [p for group in groups(jobs) for p in group] == jobs


def test_every_mixer_has_prefill_and_decode(cpu: Device) -> None:
    found = {(p.job.workload.op.family, p.job.workload.phase) for p in plan(GRID, cpu)}
    assert {(m, phase) for m in GRID.mixers for phase in ("prefill", "decode")} <= found


def test_recurrent_decode_is_measured_at_the_ends_only(cpu: Device) -> None:
    jobs = plan(replace(GRID, phases=("decode",)), cpu)
    cached: dict[str, set[int]] = {}
    for p in jobs:
        w = p.job.workload
        cached.setdefault(w.op.family, set()).add(w.cached_tokens)
    assert cached["full_attention"] == set(GRID.lengths)
    assert cached["gated_deltanet"] == {1024, 8192}
    assert cached["dense"] == {0}


def test_stacks_are_one_period_and_include_their_layers(cpu: Device) -> None:
    stacks = {
        p.job.workload.op.pattern
        for p in plan(GRID, cpu)
        if isinstance(p.job.workload.op, StackOp)
    }
    assert stacks == {"F", "S", "L", "G", "M", "SSSF", "LLLF", "GGGF", "MMMF"}


def test_placements_move_the_full_layers_of_two_periods(cpu: Device) -> None:
    grid = replace(
        GRID,
        mixers=("gated_deltanet",),
        ratios=("0:1", "3:1", "1:0"),
        placements=("uniform", "start", "end"),
        dense=False,
    )
    ops = [p.job.workload.op for p in plan(grid, cpu)]
    patterns = {op.pattern for op in ops if isinstance(op, StackOp)}
    assert patterns == {"F", "G", "GGGF", "FFGGGGGG", "GGGGGGFF"}


def test_dense_layers_are_the_models_own_each_once(cpu: Device) -> None:
    ops = [p.job.workload.op for p in plan(replace(GRID, mixers=("full_attention",)), cpu)]
    dense = {op for op in ops if isinstance(op, DenseOp)}
    assert dense == {
        DenseOp(512, 8 * 64 + 2 * 2 * 64),
        DenseOp(512, 512),
        DenseOp(512, 2 * 1408),
        DenseOp(1408, 512),
        DenseOp(512, 32000),
    }


def test_the_lm_head_sees_one_token_of_a_sequence(cpu: Device) -> None:
    jobs = plan(replace(GRID, batches=(1, 8), ratios=()), cpu)
    head = [p.job.workload for p in jobs if p.job.workload.op == DenseOp(512, 32000)]
    assert {(w.batch_size, w.new_tokens) for w in head} == {(1, 1), (8, 1)}


def test_a_mixture_of_experts_has_its_experts_measured(cpu: Device) -> None:
    grid = replace(GRID, mixers=("full_attention",), batches=(1, 8), ratios=())
    jobs = build(grid, cpu, [load_model("qwen3-next-80b-a3b")])
    experts = {p.job.workload.op for p in jobs if p.job.workload.op.family == "experts"}
    assert experts == {ExpertsOp(2048, 512, num_experts=512, top_k=10)}


def test_every_window_asked_for_is_a_workload_and_the_first_is_the_stacks(cpu: Device) -> None:
    grid = replace(GRID, mixers=("sliding_window",), windows=(128, 4096), ratios=("3:1",))
    jobs = plan(grid, cpu)
    ops = {p.job.workload.op for p in jobs}
    assert {op.spec.window for op in ops if isinstance(op, MixerOp)} == {128, 4096}
    stacks = [op for op in ops if isinstance(op, StackOp)]
    assert {s.window for op in stacks for s in op.layers if s.window} == {128}


def test_long_lengths_come_last_of_mixers_alone(cpu: Device) -> None:
    jobs = plan(replace(GRID, long_lengths=(16384, 32768)), cpu)
    long = [p for p in jobs if p.long]
    assert long and jobs[-len(long) :] == long
    assert {p.job.workload.batch_size for p in long} == {1}
    assert all(isinstance(p.job.workload.op, MixerOp) for p in long)
    assert not {p.job for p in long} & {p.job for p in jobs if not p.long}


def test_stacks_come_with_and_without_an_mlp(cpu: Device) -> None:
    jobs = plan(replace(GRID, mlp=True, mixers=("gated_deltanet",)), cpu)
    sizes = [op.mlp_size for p in jobs if isinstance(op := p.job.workload.op, StackOp)]
    assert sizes.count(0) == sizes.count(1408) > 0


def test_batches_do_not_make_prefills_longer_than_the_longest(cpu: Device) -> None:
    jobs = plan(replace(GRID, batches=(1, 8), ratios=()), cpu)
    prefill = [p.job.workload for p in jobs if p.job.workload.new_tokens > 1]
    assert max(w.batch_size * w.new_tokens for w in prefill) == 8192
    decode = [p.job.workload for p in jobs if p.job.workload.phase == "decode"]
    assert max(w.batch_size * w.cached_tokens for w in decode) == 8 * 8192


def test_gpu_points_are_graphs_and_eager_where_launches_matter(hopper: Device) -> None:
    grid = replace(GRID, lengths=(1024, 131072), dtype="bf16", mixers=("full_attention",))
    for p in plan(grid, hopper):
        modes = {cell.mode for cell in p.cells}
        w = p.job.workload
        if p.reason or not isinstance(w.op, MixerOp):
            continue
        assert modes == ({"graph"} if w.new_tokens > 16384 else {"graph", "eager"})


def test_warm_points_only_where_the_data_could_stay_in_the_cache(hopper: Device) -> None:
    grid = replace(GRID, lengths=(1024, 131072), dtype="bf16", mixers=("full_attention",))
    states = {
        p.job.workload.new_tokens: {c.cache for c in p.cells}
        for p in plan(grid, hopper)
        if isinstance(p.job.workload.op, MixerOp)
        and p.job.workload.phase == "prefill"
        and not p.reason
    }
    assert states == {1024: {"cold", "warm"}, 131072: {"cold"}}


def test_what_a_provider_cannot_do_is_one_row_with_its_reason(hopper: Device) -> None:
    grid = replace(GRID, dtype="bf16", mixers=("full_attention",), phases=("prefill",))
    efficient = [p for p in plan(grid, hopper) if p.job.provider == "sdpa_efficient"]
    assert efficient and all(len(p.cells) == 1 for p in efficient)
    assert all("grouped-query" in p.reason for p in efficient)


def test_segments_follow_a_cache(cpu: Device) -> None:
    jobs = plan(replace(GRID, phases=("segment",), ratios=()), cpu)
    found = {(p.job.workload.new_tokens, p.job.workload.cached_tokens) for p in jobs}
    assert found == {(2048, 2048), (2048, 6144)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mixers": ("mamba3",)}, UnknownName, "unknown mixer 'mamba3'.*mamba2"),
        ({"ratios": ("3:0:1",)}, UsageError, "two whole numbers.*got '3:0:1'"),
        (
            {"windows": (64, 9000)},
            UsageError,
            "window must be between 1 and .* 8192 tokens, got 9000",
        ),
        ({"long_lengths": (4096,)}, UsageError, "beyond the usual ones, 8192 tokens, got 4096"),
        ({"placements": ("diagonal",)}, UsageError, "unknown placement 'diagonal'"),
        ({"batches": (0,)}, UsageError, "batch must be at least 1"),
        ({"dtype": "fp8"}, UsageError, "dtype must be one of .*got 'fp8'"),
        ({"phases": ("encode",)}, UsageError, "unknown phase 'encode'"),
    ],
)
def test_a_wrong_request_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(GRID, **change)  # type: ignore[arg-type]


def test_an_unknown_provider_is_refused(cpu: Device) -> None:
    with pytest.raises(UnknownName, match="sdpa_cpu"):
        plan(replace(GRID, providers=("sdpa",)), cpu)


def test_only_the_named_providers_are_planned_for_everything(cpu: Device, hopper: Device) -> None:
    """Dense layers have none of fla's, its convolution does; stacks need one for each mixer."""
    grid = replace(GRID, dtype="bf16", mixers=("full_attention", "gated_deltanet"))
    jobs = plan(replace(grid, providers=("fla",)), hopper)
    assert {p.job.workload.op.family: p.job.provider for p in jobs} == {
        "gated_deltanet": "fla", "short_convolution": "fla", "stack": "fla",
    }  # fmt: skip
    found = {p.job.provider for p in plan(replace(grid, providers=("fla", "sdpa_cudnn")), hopper)}
    assert found == {"fla", "sdpa_cudnn", "sdpa_cudnn+fla"}
    with pytest.raises(UnknownName, match="torch"):
        plan(replace(GRID, providers=("torch",), mixers=("mamba2",), dense=False), cpu)


def test_long_prefills_are_planned_in_segments_too(cpu: Device) -> None:
    grid = replace(GRID, mixers=("gated_deltanet",), segments=(2048,), ratios=(), dense=False)
    variants = {
        (p.job.workload.new_tokens, p.job.variant) for p in plan(grid, cpu) if p.job.variant
    }
    assert variants == {(4096, "segments=2048"), (8192, "segments=2048")}


def test_what_we_do_to_a_kernel_carries_its_version(hopper: Device) -> None:
    """Our kernels, and whom they are tuned for, when changed are measured again; packages have
    their version in the environment."""
    grid = replace(GRID, dtype="bf16", mixers=("gated_deltanet", "sliding_window"), dense=False)
    mixers = [p for p in plan(grid, hopper) if isinstance(p.job.workload.op, MixerOp)]
    versions = {
        (p.job.workload.op.family, p.job.workload.phase, p.job.provider): p.method.split("+")[1:]
        for p in mixers
    }
    assert versions["gated_deltanet", "prefill", "fla"] == ["3"]  # has a tuner
    assert versions["gated_deltanet", "decode", "fla"] == []
    assert versions["sliding_window", "prefill", "fla"] == []
    assert versions["sliding_window", "decode", "triton"] == ["2"]  # is ours


def test_heavy_and_short_calls_on_a_gpu_are_timed_by_versions_of_their_own(hopper: Device) -> None:
    """Full attention of a long prompt is heavy, a step of so small a layer short."""
    grid = replace(
        GRID, lengths=(8192,), dtype="bf16", mixers=("full_attention",), dense=False, ratios=()
    )
    found = {
        (p.job.workload.phase, p.method.split("+")[0]) for p in plan(grid, hopper) if not p.reason
    }
    assert found == {("prefill", HEAVY_METHOD_VERSION), ("decode", SHORT_METHOD_VERSION)}
