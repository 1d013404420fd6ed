"""How long a call takes: the method is chosen by its duration, and named with the samples.

Cold means that the data is not in the last cache level when the call starts, as in a model whose
other layers ran in between; warm, that the same call ran just before. They are never mixed.

CUDA, graph, cold    under 500 µs `graph_rotating`: one graph of many calls, in turn on copies of
                     the inputs that together are four times the cache; to 50 ms, or where such
                     copies cannot be had, `graph_flush`: events around a replay that is queued
                     behind a cache flush, which hides its launch; longer, `graph_plain`
CUDA, graph, warm    `graph_repeat`: one graph of many calls on the same inputs; `graph_plain`
CUDA, eager          `events_flush` (cold), `events` (warm), `events_plain`: events around the
                     Python call on an idle device, so that launch gaps count
CPU, cold            `flush`: perf_counter around a call after a sweep over twice the cache
CPU, warm            `loop`: enough calls for 200 µs a sample; `single` where one is enough

"plain" (over 50 ms) only means that fewer samples are taken; cold calls are still flushed.
Sampling stops when the bootstrap interval of the median is within ±1 %, or at the time cap. A GPU
that throttles is sampled on for a while, since its clock moves: that interval knows nothing of it.

Heavy calls, most of which draw all the power that a GPU may, bring its clock down after 25 to
75 ms; then it swings by 5 % with a period of about 0.4 s (docs/log.md). In graphs they are sampled
for that long in any case, and a sample is the mean of 50 ms of calls: shorter ones follow the
swing, and their median depends on where they began.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from planner.store.records import CacheState, Mode
from planner.workload import DenseOp, MixerOp, Workload
from profiler.measure.statistics import summarise
from profiler.providers.spec import Call

METHOD_VERSION = "2"
HEAVY_METHOD_VERSION = "3"
SHORT_METHOD_VERSION = "4"
WINDOW_METHOD_VERSION = "5"
"""Part of every point's identity: bump them when a change here moves numbers.

1: GPU calls over 50 µs were timed singly, which added the 10 µs between an event pair to each.
2: those under 500 µs are timed many to a graph.
3: heavy GPU calls are sampled for 0.4 s. By version 2 some were over before the clock came down
   and others not, 7 to 14 % apart for the same call.
4: how many short GPU calls go in a graph is counted from ten of them. A graph's launch, 4 to 7 µs,
   was by count 2 to 7 % of those under 10 µs and is at most 1 %. More of them rotate over copies.
5: copies of a window's step share one cache, also where it has several sequences. Those of long
   caches had no room and were timed singly, which added 6 to 12 µs, or fewer of them rotated in a
   second turn. Products of 200 to 600 FLOPs a byte, which were of version 2, are of version 3.
"""

HEAVY_FLOPS_PER_BYTE = 600
HEAVY_PRODUCT_FLOPS_PER_BYTE = 200
"""From here on a workload is heavy: on an H100 three in four matrix products of 200 to 600 FLOPs a
byte ran at the power cap, of mixers one in twelve, and from 600 on half of them, beyond 1,000 nine
in ten (docs/log.md)."""

SHORT_BYTES, SHORT_FLOPS = 16e6, 4e9
"""Below both a workload is short: on an H100 205 of the 207 points that took less than 8 µs in a
graph are (docs/log.md)."""

PROBED_S = 200e-6  # a first replay takes up to 60 µs more than its call
PROBE_CALLS = 10
SHORT_S = 500e-6  # events around one replay add about 10 µs, seen on an H200: 2 % of this
LONG_S = 50e-3
DEAR_S = 0.2  # from here on the first replay, which picks the method, is a sample too
MIN_SAMPLE_S = 200e-6  # a CPU sample shorter than this is repeated inside
GRAPH_SPAN_S = 1e-3  # calls in one graph fill about this long
MAX_CALLS_PER_GRAPH = 2048
ROTATION_OVER_CACHE = 4  # inputs of the rotating copies together, over the cache
MIN_ROTATION = 8  # copies, to average over where in memory they happen to lie: 2 to 8 % with two
FLUSH_BYTES = 256 << 20
COPIES_SHARE = 0.4  # of the free memory
MEAN_SPAN_S = 50e-3
MAX_EAGER_SAMPLES = 20  # a round; the host's jitter does not settle: more would not help


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop sampling. `long` calls need fewer samples; `fewest` are taken in any case."""

    min_samples: int = 10
    min_samples_long: int = 5
    fewest: int = 3
    max_samples: int = 400
    half_width: float = 0.01
    time_cap_s: float = 1.0
    settle_s: float = 0.2  # what a throttling GPU is sampled for, if the other limits allow
    heavy_s: float = 0.4  # what heavy calls are sampled for, within the time cap


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Raw samples in seconds, in the order taken, and the method that took them."""

    samples_s: tuple[float, ...]
    method: str
    rotation: int = 0
    """Copies of the inputs that were rotated over; 0 where there was no need, or no room."""


def collect(
    sample: Callable[[], float],
    limits: Limits,
    first: Sequence[float] = (),
    throttled: Callable[[], bool] = lambda: False,
) -> tuple[float, ...]:
    """Samples until the median is known well enough or the time is spent.

    The interval is tested at growing counts, so that testing stays cheap. `first` are samples
    already taken: of calls so long that none is thrown away.
    """
    samples = list(first)
    start = time.perf_counter()
    if samples and len(samples) >= limits.min_samples_long:
        return tuple(samples)
    next_test = limits.min_samples
    while len(samples) < limits.max_samples:
        samples.append(sample())
        enough = limits.min_samples_long if samples[0] > LONG_S else limits.min_samples
        if len(samples) >= limits.fewest and time.perf_counter() - start > limits.time_cap_s:
            break
        if len(samples) >= max(enough, min(next_test, limits.max_samples)) or (
            samples[0] > LONG_S and len(samples) >= enough
        ):
            settled = time.perf_counter() - start >= limits.settle_s or not throttled()
            if settled and summarise(samples).half_width < limits.half_width:
                break
            next_test = math.ceil(len(samples) * 1.4)
    return tuple(samples)


def collect_means(sample: Callable[[], float], limits: Limits) -> tuple[float, ...]:
    """Means of the samples of 50 ms each, for `heavy_s`: what a swinging clock gives over time."""
    means: list[float] = []
    start = time.perf_counter()
    end = start + min(limits.heavy_s, limits.time_cap_s)
    while len(means) < limits.fewest or time.perf_counter() < end:
        batch: list[float] = []
        full = time.perf_counter() + MEAN_SPAN_S
        while not batch or time.perf_counter() < full:
            batch.append(sample())
        means.append(math.fsum(batch) / len(batch))
    return tuple(means)


def is_heavy(workload: Workload) -> bool:
    """Whether it has so much arithmetic for its bytes that its power may slow the GPU down."""
    product = isinstance(workload.op, DenseOp) and not is_short(workload)
    least = HEAVY_PRODUCT_FLOPS_PER_BYTE if product else HEAVY_FLOPS_PER_BYTE
    return workload.executed_flops >= least * workload.min_bytes


def is_short(workload: Workload) -> bool:
    """Whether it has so little to do that the launch of a graph may count beside it."""
    return workload.min_bytes < SHORT_BYTES and workload.executed_flops < SHORT_FLOPS


def is_windowed_step(workload: Workload) -> bool:
    """Whether it decodes and sees a part of its cache alone: its copies can share one."""
    op = workload.op
    windowed = isinstance(op, MixerOp) and (op.spec.window or workload.context) < workload.context
    return windowed and workload.phase == "decode" and not workload.training


def method_version(workload: Workload, device_kind: str) -> str:
    if device_kind != "cuda":
        return METHOD_VERSION
    if is_windowed_step(workload) and (workload.batch_size > 1 or not is_short(workload)):
        return WINDOW_METHOD_VERSION
    if is_short(workload):
        return SHORT_METHOD_VERSION
    return HEAVY_METHOD_VERSION if is_heavy(workload) else METHOD_VERSION


# CPU


class CpuTimer:
    """perf_counter around calls; a cold call follows a sweep over more than the last cache."""

    def __init__(self, cache_bytes: int) -> None:
        self._trash = torch.ones(2 * cache_bytes // 4, dtype=torch.float32)

    def time(self, call: Call, cache: CacheState, limits: Limits) -> Timing:
        """Times a call that has run before: its first, slow time is not among the samples."""
        if cache == "cold":
            samples = collect(lambda: self._cold(call), limits)
            method = "flush" if samples[0] <= LONG_S else "flush_plain"
            return Timing(samples_s=samples, method=method)
        once = self._seconds(call, 1)
        if once < LONG_S:  # the first of several may have been interrupted
            once = min(once, *(self._seconds(call, 1) for _ in range(2)))
        repeats = math.ceil(MIN_SAMPLE_S / once) if once < MIN_SAMPLE_S else 1
        method = "loop" if repeats > 1 else "single" if once <= LONG_S else "single_plain"
        samples = collect(lambda: self._seconds(call, repeats), limits)
        return Timing(samples_s=samples, method=method)

    def _cold(self, call: Call) -> float:
        self._trash.add_(1)
        return self._seconds(call, 1)

    @staticmethod
    def _seconds(call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats


# CUDA


class NotCapturable(Exception):
    """The call cannot run inside a CUDA graph; the message says why."""


class CudaTimer:
    """CUDA events and graphs. One per device and process: it owns the flush buffer.

    `throttled` tells whether the GPU slows itself down at the moment.
    """

    def __init__(
        self,
        device: torch.device,
        cache_bytes: int,
        throttled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._device = device
        self._cache_bytes = cache_bytes
        self._throttled = throttled
        self._trash: torch.Tensor | None = None

    def time(
        self,
        call: Call,
        copies: Callable[[int], Sequence[Call]],
        *,
        mode: Mode,
        cache: CacheState,
        touched_bytes: int,
        copies_bytes: Callable[[int], int],
        rotation: int | None = None,
        heavy: bool,
        limits: Limits,
    ) -> Timing:
        """Times `call`; `copies(n)` makes n of it on separate inputs, to rotate over.

        A call reads and writes `touched_bytes`; n copies take `copies_bytes(n)`, which is more
        where a call reads only a part of a cache. `rotation` is how many an earlier turn of the
        same point took, 0 for none: its method is kept, whatever memory is free by now. `heavy`
        ones are sampled until their clock has swung.

        Raises: NotCapturable in graph mode.
        """
        if mode == "eager":
            return self._eager(call, cache, limits)
        graph = Graph([call], warm=True)  # the worker has run it
        seconds = self._between_events(graph.replay, 1)
        if seconds < 2 * SHORT_S:  # a first replay takes longer
            seconds = min(seconds, self._between_events(graph.replay, 1))
        sample, method = self._one(graph, cache), "graph_flush"
        if seconds > LONG_S:
            first = (seconds,) if seconds > DEAR_S else ()
            samples = collect(sample, limits, first, self._throttled)
            return Timing(samples_s=samples, method="graph_plain")
        if seconds < PROBED_S:
            seconds = self._many([call] * PROBE_CALLS)()
        if cache == "warm":
            sample, method = self._many([call] * calls_per_graph(seconds)), "graph_repeat"
        else:
            if rotation is None:
                rotation = self._rotation(seconds, touched_bytes, copies_bytes)
            if rotation:
                separate = copies(rotation) if rotation > 1 else [call]
                count = rotation * math.ceil(calls_per_graph(seconds) / rotation)
                sample = self._many([separate[i % rotation] for i in range(count)])
                method = "graph_rotating"
        rotated = rotation or 0 if method == "graph_rotating" else 0
        if heavy:
            samples = collect_means(sample, limits)
        else:
            samples = collect(sample, limits, throttled=self._throttled)
        return Timing(samples_s=samples, method=method, rotation=rotated)

    def _rotation(
        self, seconds: float, touched_bytes: int, copies_bytes: Callable[[int], int]
    ) -> int:
        """Copies to rotate over; 0 where the call is long, or so many do not fit."""
        if seconds > SHORT_S:
            return 0
        touched = max(min(touched_bytes, copies_bytes(1)), 1)  # a state counts once
        needed = math.ceil(ROTATION_OVER_CACHE * self._cache_bytes / touched)
        room = COPIES_SHARE * torch.cuda.mem_get_info(self._device)[0]
        if needed > MAX_CALLS_PER_GRAPH:
            return 0
        wanted = range(max(needed, MIN_ROTATION), needed - 1, -1)
        return next((n for n in wanted if n == 1 or copies_bytes(n) <= room), 0)

    def release(self) -> None:
        """Gives the flush buffer back, before memory is measured or a large point is tried."""
        self._trash = None

    def _eager(self, call: Call, cache: CacheState, limits: Limits) -> Timing:
        def sample() -> float:
            if cache == "cold":
                self._flush()
            torch.cuda.synchronize(self._device)
            return self._between_events(call, 1)

        first = sample()
        plain = "events_plain" if first > LONG_S else None
        method = plain or ("events_flush" if cache == "cold" else "events")
        fewer = replace(limits, max_samples=min(limits.max_samples, MAX_EAGER_SAMPLES))
        return Timing(samples_s=collect(sample, fewer), method=method)

    def _one(self, graph: Graph, cache: CacheState) -> Callable[[], float]:
        """Samples of one call, a graph of its own."""

        def sample() -> float:
            if cache == "cold":
                self._flush()  # queued, not awaited: it hides the launch of what follows
            return self._between_events(graph.replay, 1)

        return sample

    def _many(self, calls: Sequence[Call]) -> Callable[[], float]:
        """Samples of these calls in one graph, each of which is their mean."""
        graph = Graph(calls)
        graph.replay()
        return lambda: self._between_events(graph.replay, len(calls))

    def _between_events(self, run: Callable[[], object], count: int) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / count

    def _flush(self) -> None:
        if self._trash is None:
            size = max(FLUSH_BYTES, 2 * self._cache_bytes)
            self._trash = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._trash.zero_()


def calls_per_graph(seconds: float) -> int:
    return max(1, min(MAX_CALLS_PER_GRAPH, math.ceil(GRAPH_SPAN_S / max(seconds, 1e-7))))


class Graph:
    """Calls captured once, one after the other, and replayed as a whole.

    Up to three of them are run before, unless `warm` says that they have been.
    """

    def __init__(self, calls: Sequence[Call], *, warm: bool = False) -> None:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in [] if warm else list(dict.fromkeys(calls))[:3]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                for call in calls:
                    call()
        except RuntimeError as error:
            raise NotCapturable(first_line(error)) from error

    def replay(self) -> None:
        self._graph.replay()


def first_line(error: BaseException) -> str:
    """What an exception says in a line: its first, and its last where the first leads up to it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
