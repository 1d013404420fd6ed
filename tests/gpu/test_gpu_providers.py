"""On a GPU: every provider against its reference, in bf16, and the timing method's cross-check."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from planner.mixers import MixerSpec, get_mixer
from planner.store.records import CacheState
from planner.workload import ConvOp, DenseOp, ExpertsOp, MixerOp, Op, StackOp, Workload
from profiler import gate
from profiler.device import Device, resolve_device
from profiler.measure.statistics import summarise
from profiler.measure.timing import CudaTimer, Limits, is_heavy
from profiler.providers import families, get_family
from profiler.providers.spec import Family, Provider
from profiler.stack import STACK, resolve

pytestmark = pytest.mark.gpu

FULL = MixerSpec(
    mixer="full_attention",
    num_q_heads=16,
    num_k_heads=4,
    num_v_heads=4,
    k_head_dim=128,
    v_head_dim=128,
)
GPU_PROVIDERS = [
    pytest.param(family, provider, id=f"{family.name}-{provider.name}")
    for family in families().values()
    for provider in family.providers
    if "cuda" in provider.devices
]


@pytest.fixture(scope="module")
def gpu() -> Device:
    return resolve_device("cuda")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
    torch.cuda.empty_cache()


def op_of(family: str) -> Op:
    if family == "dense":
        return DenseOp(1024, 2048)
    if family == "short_convolution":
        return ConvOp(2048, 4)
    if family == "experts":
        return ExpertsOp(512, 256, num_experts=32, top_k=4)
    spec = get_mixer(family).matched(FULL, 2048)
    return MixerOp(replace(spec, window=200) if family == "sliding_window" else spec)


@pytest.mark.parametrize(("family", "provider"), GPU_PROVIDERS)
@pytest.mark.parametrize(("new", "cached"), [(1000, 0), (300, 700), (100, 900), (1, 999)])
def test_provider_agrees_with_the_reference(
    family: Family, provider: Provider, new: int, cached: int, gpu: Device
) -> None:
    w = Workload(
        op=op_of(family.name), batch_size=2, new_tokens=new, cached_tokens=cached, dtype="bf16"
    )
    if (why := provider.unsupported(w, gpu)) is not None:
        pytest.skip(why)
    inputs = family.make_inputs(w, gpu.torch, 0)
    output = gate.bind(provider, inputs.clone(), training=False)()
    verdict = gate.compare(family, inputs, output)
    assert verdict.passed, verdict.reason()


@pytest.mark.parametrize("window", [1, 64, 999, 1000, 4000])
@pytest.mark.parametrize("name", ["varlen", "fla", "flex", "triton"])
def test_windows_are_exact_at_their_edges(name: str, window: int, gpu: Device) -> None:
    family = get_family("sliding_window")
    spec = replace(get_mixer("sliding_window").matched(FULL, 2048), window=window)
    w = Workload(op=MixerOp(spec), batch_size=1, new_tokens=1000, dtype="bf16")
    if (why := family.provider(name).unsupported(w, gpu)) is not None:
        pytest.skip(why)
    inputs = family.make_inputs(w, gpu.torch, 0)
    output = gate.bind(family.provider(name), inputs, training=False)()
    verdict = gate.compare(family, inputs, output)
    assert verdict.passed, verdict.reason()


@pytest.mark.parametrize("cached", [0, 500])
def test_a_hybrid_stack_agrees_with_its_reference(cached: int, gpu: Device) -> None:
    kinds = (("F", FULL), ("G", get_mixer("gated_deltanet").matched(FULL, 2048)))
    w = Workload(
        op=StackOp("GGGF", kinds, 2048),
        batch_size=1,
        new_tokens=1 if cached else 200,
        cached_tokens=cached,
        dtype="bf16",
    )
    _, provider = resolve(w, "sdpa_cudnn+fla")
    if (why := provider.unsupported(w, gpu)) is not None:
        pytest.skip(why)
    inputs = STACK.make_inputs(w, gpu.torch, 0)
    output = gate.bind(provider, inputs.clone(), training=False)()
    verdict = gate.compare(STACK, inputs, output)
    assert verdict.passed, verdict.reason()


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ, reason="times need the GPU to themselves; run without -n"
)
@pytest.mark.parametrize(("width", "tokens", "within"), [(2048, 512, 0.05), (4096, 8192, 0.1)])
def test_the_timing_method_agrees_with_tritons(
    width: int, tokens: int, within: float, gpu: Device
) -> None:
    """A product by our method and by `triton.testing`, warm, and cold.

    `do_bench` flushes the cache, and times one call between two events behind the flush: its start
    counts, about 10 µs of a short call (docs/log.md). So a short cold time lies between their warm
    one, of many calls to a graph, and their cold one; of a long one the start is no part.

    The short product fills a quarter of an H100's cache: one that filled three quarters took 16 to
    20 µs by either method from one minute to the next (docs/log.md). The long one meets the power
    cap after some 50 ms, and its clock swings: the methods take turns, each as long as the other.
    """
    from triton.testing import do_bench, do_bench_cudagraph

    family = get_family("dense")
    w = Workload(op=DenseOp(width, width), batch_size=1, new_tokens=tokens, dtype="bf16")
    inputs = family.make_inputs(w, gpu.torch, 0)
    provider = family.provider("torch")
    call = gate.bind(provider, inputs, training=False)
    call()  # the timer expects one that has run

    def ours_s(cache: CacheState) -> float:
        timing = CudaTimer(gpu.torch, gpu.cache_bytes).time(
            call,
            lambda n: gate.copies(provider, inputs, n, training=False),
            mode="graph",
            cache=cache,
            touched_bytes=int(w.min_bytes),
            copies_bytes=inputs.copies_bytes,
            heavy=is_heavy(w),
            limits=Limits(),
        )
        return summarise(timing.samples_s).median

    span_ms = 1e3 * Limits().heavy_s

    def triton_warm_s() -> float:  # ten replays
        return float(do_bench_cudagraph(call, rep=span_ms / 10, return_mode="median")) * 1e-3

    def triton_cold_s() -> float:
        return float(do_bench(call, rep=span_ms, return_mode="median")) * 1e-3

    ways = (lambda: ours_s("warm"), triton_warm_s, lambda: ours_s("cold"), triton_cold_s)
    rounds = [[way() for way in ways] for _ in range(3)]
    our_warm, warm, our_cold, cold = map(statistics.median, zip(*rounds, strict=True))
    assert our_warm == pytest.approx(warm, rel=within), rounds
    if tokens > 1000:
        assert our_cold == pytest.approx(cold, rel=within), rounds
    else:
        assert 0.95 * warm < our_cold < cold, rounds
