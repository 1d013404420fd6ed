"""The timing method on the CPU: which one is chosen, when it stops, what it keeps."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from profiler.measure.memory import measure_memory
from profiler.measure.statistics import summarise
from profiler.measure.timing import CpuTimer, Limits, calls_per_graph, collect
from profiler.providers.spec import Output

LIMITS = Limits(min_samples=5, max_samples=20, time_cap_s=0.5)
NOTHING = Output(o=torch.zeros(1))


def sleeping(seconds: float) -> Output:
    time.sleep(seconds)
    return NOTHING


@pytest.mark.parametrize(
    ("seconds", "cache", "method"),
    [
        (0.0, "warm", "loop"),
        (0.002, "warm", "single"),
        (0.06, "warm", "single_plain"),
        (0.0, "cold", "flush"),
        (0.06, "cold", "flush_plain"),
    ],
)
def test_the_method_follows_the_duration(seconds: float, cache: str, method: str) -> None:
    timer = CpuTimer(1 << 20)
    timing = timer.time(lambda: sleeping(seconds), cache, LIMITS)  # type: ignore[arg-type]
    assert timing.method == method
    assert min(timing.samples_s) >= seconds


def test_a_loop_of_calls_gives_the_time_of_one() -> None:
    """Each sample spans many calls and is divided by their number."""
    calls = 0

    def call() -> Output:
        nonlocal calls
        calls += 1
        return NOTHING

    timing = CpuTimer(1 << 20).time(call, "warm", LIMITS)
    assert calls > 10 * len(timing.samples_s)
    assert max(timing.samples_s) < 1e-3


def test_steady_samples_stop_early_and_noisy_ones_at_the_cap() -> None:
    limits = Limits(min_samples=10, max_samples=500, time_cap_s=60)
    assert len(collect(lambda: 1.0e-3, limits)) == 10
    noise = iter(np.random.default_rng(0).lognormal(sigma=1.0, size=1000))
    assert len(collect(lambda: float(next(noise)) * 1e-3, limits)) > 100


def test_a_throttling_gpu_is_sampled_until_its_clock_had_time_to_settle() -> None:
    limits = Limits(min_samples=10, time_cap_s=60, settle_s=0.05)
    started = time.perf_counter()

    def sample() -> float:
        time.sleep(1e-3)
        return 1.0e-3

    assert len(collect(sample, limits)) == 10
    slowed = collect(sample, limits, throttled=lambda: time.perf_counter() - started < 10)
    assert 10 < len(slowed) < 60 and time.perf_counter() - started >= 0.05
    assert len(collect(sample, limits, throttled=lambda: False)) == 10


def test_the_time_cap_leaves_at_least_three_samples() -> None:
    limits = Limits(time_cap_s=0.0)
    assert len(collect(lambda: 1.0e-3, limits)) == 3


def test_long_calls_need_few_samples() -> None:
    assert len(collect(lambda: 0.2, Limits(min_samples_long=5, time_cap_s=60))) == 5


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    """95 % nominal; the percentile bootstrap of a median of 30 is known to be a little under."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        summary = summarise(rng.lognormal(sigma=0.1, size=30))
        covered += summary.low <= 1.0 <= summary.high
    assert covered / 200 > 0.88


def test_summary_of_equal_samples_is_exact() -> None:
    summary = summarise([2.0] * 7)
    assert (summary.median, summary.p20, summary.p80, summary.half_width) == (2.0, 2.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "calls"), [(1.0, 1), (1e-3, 1), (1e-4, 10), (2e-5, 50), (1e-9, 1024)]
)
def test_graphs_span_a_millisecond(seconds: float, calls: int) -> None:
    assert calls_per_graph(seconds) == calls


def test_workspace_is_what_a_call_holds_beyond_its_output() -> None:
    size = 64 << 20

    def call() -> Output:
        scratch = torch.ones(size // 4)
        return Output(o=scratch[:256].clone())

    memory = None
    for _ in range(3):  # pages that the system takes meanwhile make it too low, never too high
        output, again = measure_memory(call, 1000, torch.device("cpu"))
        assert output.o.shape == (256,)
        if again is None:
            pytest.skip("this kernel does not let the resident peak be reset")
        memory = max(memory or again, again, key=lambda m: m.workspace_bytes)
    assert memory is not None
    assert 0.9 * size < memory.workspace_bytes < 1.3 * size
    assert memory.peak_bytes >= memory.workspace_bytes + 1000


def test_samples_already_taken_count() -> None:
    """Of calls of seconds the one that chose the method is kept, and two may be enough."""
    limits = Limits(min_samples_long=2, fewest=1, time_cap_s=0.0)
    taken: list[float] = []

    def sample() -> float:
        taken.append(2.0)
        return 2.0

    assert collect(sample, limits, [2.1, 2.2]) == (2.1, 2.2) and not taken
    assert collect(sample, limits, [2.1]) == (2.1, 2.0)
    assert len(collect(sample, limits)) == 1
