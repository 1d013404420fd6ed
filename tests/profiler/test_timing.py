"""The timing method on the CPU: which one is chosen, when it stops, what it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from planner.mixers import MixerSpec
from planner.store.records import CacheState, Mode
from planner.workload import DenseOp, MixerOp, Workload
from profiler.measure import timing
from profiler.measure.memory import measure_memory
from profiler.measure.statistics import summarise
from profiler.measure.timing import (
    HEAVY_METHOD_VERSION,
    METHOD_VERSION,
    SHORT_METHOD_VERSION,
    WINDOW_METHOD_VERSION,
    CpuTimer,
    CudaTimer,
    Limits,
    Timing,
    calls_per_graph,
    collect,
    collect_means,
    is_heavy,
    is_short,
    method_version,
)
from profiler.providers.spec import Call, Output

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


def test_heavy_calls_give_means_over_time_whatever_the_clock_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that swings by a tenth every 20 ms: means of 50 ms are near the mean, single calls
    are not."""
    now = 0.0

    def sample() -> float:
        nonlocal now
        taken = 1e-3 if now % 0.02 < 0.01 else 1.2e-3
        now += taken
        return taken

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    means = collect_means(sample, Limits(heavy_s=0.3, time_cap_s=60))
    assert len(means) == 6
    assert all(1.06e-3 < mean < 1.14e-3 for mean in means)
    assert len(collect_means(sample, Limits(heavy_s=0.3, time_cap_s=0.01))) == 3  # the fewest


def test_what_is_heavy_or_short_has_a_method_version_of_its_own() -> None:
    def product(width: int, tokens: int) -> Workload:
        return Workload(op=DenseOp(width, width), batch_size=1, new_tokens=tokens, dtype="bf16")

    def step(batch: int, cached: int, window: int | None = 1024) -> Workload:
        name = "sliding_window" if window else "full_attention"
        spec = MixerSpec(
            mixer=name,
            num_q_heads=32,
            num_k_heads=8,
            num_v_heads=8,
            k_head_dim=128,
            v_head_dim=128,
            window=window,
        )
        return Workload(
            op=MixerOp(spec), batch_size=batch, new_tokens=1, cached_tokens=cached, dtype="bf16"
        )

    expected = {
        product(4096, 8192): HEAVY_METHOD_VERSION,
        product(4096, 256): HEAVY_METHOD_VERSION,  # 228 FLOPs a byte
        product(4096, 128): METHOD_VERSION,  # 121
        product(4096, 1): METHOD_VERSION,
        product(1024, 1024): SHORT_METHOD_VERSION,
        step(8, 65536): WINDOW_METHOD_VERSION,
        step(1, 65536): SHORT_METHOD_VERSION,
        step(8, 65536, window=128): WINDOW_METHOD_VERSION,  # 4 MiB
        step(64, 512): METHOD_VERSION,  # the window holds every key
        step(8, 65536, window=None): METHOD_VERSION,
    }
    assert {w: method_version(w, "cuda") for w in expected} == expected
    assert [w for w in expected if is_heavy(w)] == list(expected)[:2]
    assert [w for w in expected if is_short(w)] == [list(expected)[i] for i in (4, 6, 7)]
    assert {method_version(w, "cpu") for w in expected} == {METHOD_VERSION}


class FakeGraph:
    """Calls "captured": replayed in turn, and remembered."""

    def __init__(self, calls: Sequence[Call], *, warm: bool = False) -> None:
        self.calls = calls

    def replay(self) -> None:
        for call in self.calls:
            call()


class FakeGpuTimer(CudaTimer):
    """Decides as on a GPU; a call takes as long as it says, and flushes are counted."""

    def __init__(self, call_s: float) -> None:
        super().__init__(torch.device("cpu"), cache_bytes=50 << 20)
        self.call_s = call_s
        self.flushes = 0

    def _between_events(self, run: Callable[[], object], count: int) -> float:
        run()
        return self.call_s

    def _flush(self) -> None:
        self.flushes += 1


class LaunchingTimer(FakeGpuTimer):
    """A replay's launch counts, and a first one's more, as seen on an H100 (docs/log.md)."""

    def __init__(self, call_s: float) -> None:
        super().__init__(call_s)
        self.replayed = False

    def _between_events(self, run: Callable[[], object], count: int) -> float:
        launch_s = 7e-6 if self.replayed else 60e-6
        self.replayed = True
        return launch_s / count + super()._between_events(run, count)


@pytest.mark.parametrize(("free_megabytes", "copies"), [(2_000, [20]), (1_600, [])])
def test_what_copies_share_needs_room_too(
    free_megabytes: int, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.4 of what is free holds a cache of 500 MiB and 20 windows of 10 MiB, or it does not."""
    monkeypatch.setattr(timing, "Graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_megabytes << 20, 1 << 40))
    copied: list[int] = []

    def copy(count: int) -> list[Call]:
        copied.append(count)
        return [lambda: NOTHING] * count

    FakeGpuTimer(20e-6).time(
        lambda: NOTHING,
        copy,
        mode="graph",
        cache="cold",
        touched_bytes=10 << 20,
        copies_bytes=lambda n: (500 << 20) + n * (10 << 20),
        heavy=False,
        limits=Limits(min_samples=4),
    )
    assert copied == copies


def in_graphs(timer: CudaTimer, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Timing:
    """What it says of a call that touches 10 MiB, with all the memory there could be."""
    free = changes.pop("free", 1 << 40)
    monkeypatch.setattr(timing, "Graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 40))
    asked: dict[str, Any] = {
        "mode": "graph",
        "cache": "cold",
        "touched_bytes": 10 << 20,
        "copies_bytes": lambda n: n * (10 << 20),
        "heavy": False,
        "limits": Limits(min_samples=4),
    }
    return timer.time(lambda: NOTHING, lambda n: [lambda: NOTHING] * n, **{**asked, **changes})


@pytest.mark.parametrize(
    ("earlier", "free", "method"), [(20, 0, "graph_rotating"), (0, 1 << 40, "graph_flush")]
)
def test_a_later_turn_times_as_the_first_did(
    earlier: int, free: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By now others hold all the memory, or have given theirs back."""
    timed = in_graphs(FakeGpuTimer(20e-6), monkeypatch, free=free, rotation=earlier)
    assert (timed.rotation, timed.method) == (earlier, method)


@pytest.mark.parametrize("call_s", [480e-6, 490e-6])
def test_a_first_replay_does_not_choose_the_method(
    call_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes up to 60 µs more, which would make a call of over 500 µs of it."""
    assert in_graphs(LaunchingTimer(call_s), monkeypatch).method == "graph_rotating"


def test_a_state_that_is_read_and_written_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies together are four caches of 50 MiB, by what they hold."""
    assert in_graphs(FakeGpuTimer(20e-6), monkeypatch, touched_bytes=20 << 20).rotation == 20


@pytest.mark.parametrize("call_s", [2e-6, 5e-6, 20e-6, 60e-6, 130e-6, 400e-6])
@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_the_launch_of_a_graph_is_no_part_of_a_short_calls_time(
    call_s: float, cache: CacheState, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = in_graphs(LaunchingTimer(call_s), monkeypatch, cache=cache)
    assert max(timed.samples_s) < 1.01 * call_s


@pytest.mark.parametrize(
    ("call_s", "mode", "cache", "megabytes", "method", "copies"),
    [
        (20e-6, "graph", "cold", 100, "graph_rotating", 8),
        (20e-6, "graph", "cold", 10, "graph_rotating", 20),  # four caches of 50 MiB
        (20e-6, "graph", "cold", 3000, "graph_rotating", 0),  # room for one, which is enough
        (20e-6, "graph", "cold", 30, "graph_flush", 0),  # room for three, seven are needed
        (20e-6, "graph", "warm", 10, "graph_repeat", 0),
        (2e-3, "graph", "cold", 10, "graph_flush", 0),
        (2e-3, "graph", "warm", 10, "graph_repeat", 0),
        (80e-3, "graph", "cold", 10, "graph_plain", 0),
        (20e-6, "eager", "cold", 10, "events_flush", 0),
        (20e-6, "eager", "warm", 10, "events", 0),
        (80e-3, "eager", "cold", 10, "events_plain", 0),
    ],
)
@pytest.mark.parametrize("heavy", [False, True])
def test_a_gpus_method_follows_duration_mode_cache_and_room(
    call_s: float,
    mode: Mode,
    cache: CacheState,
    megabytes: int,
    method: str,
    copies: int,
    heavy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "Graph", FakeGraph)
    free = 250 if megabytes == 30 else 10_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 20, 80_000 << 20))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    timer, copied, called = FakeGpuTimer(call_s), [], set[int]()

    def copy(count: int) -> list[Call]:
        copied.append(count)
        return [lambda n=n: called.add(n) or NOTHING for n in range(count)]  # type: ignore[misc]

    timed = timer.time(
        lambda: NOTHING,
        copy,
        mode=mode,
        cache=cache,
        touched_bytes=megabytes << 20,
        copies_bytes=lambda n: n * (megabytes << 20),
        heavy=heavy,
        limits=Limits(min_samples=4, time_cap_s=0.02, settle_s=0.0),
    )
    assert timed.method == method
    assert list(timed.samples_s) == pytest.approx([call_s] * len(timed.samples_s))
    assert copied == ([copies] if copies else [])
    assert called == set(range(copies))
    flushed = cache == "cold" and method != "graph_rotating"
    assert (timer.flushes >= len(timed.samples_s)) if flushed else timer.flushes == 0
    averaged = heavy and mode == "graph" and method != "graph_plain"
    if not averaged:
        assert len(timed.samples_s) == (5 if call_s > 50e-3 else 4)


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
    ("seconds", "calls"), [(1.0, 1), (1e-3, 1), (1e-4, 10), (2e-5, 50), (1e-9, 2048)]
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
