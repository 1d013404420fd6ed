"""Who prepares what, in which order: jobs are compiled, tuned and gated before any is timed.

Workers are named by family and provider; a long queue of jobs that each compile is dealt out to
helpers of the same provider, whose kernels the timed one finds on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from planner.workload import StackOp
from profiler.plan import PlannedJob
from profiler.pool import WorkerKey

Queues = dict[WorkerKey, deque[PlannedJob]]

COMPILING = frozenset({"fla", "flex", "mamba_ssm", "triton"})
FOR_EACH_LENGTH = frozenset({"fla", "flex", "mamba_ssm"})  # and not once for all of them
TUNING = frozenset({"fla", "mamba_ssm"})
"""Triton's tuner runs in these, and not for every shape: fla's convolution step is tuned once for
all batches. So they are prepared from the largest call down: at batch 1 all configurations take a
launch. And their steps while no other process uses the GPU, which may be what made tuning choose
badly: the step of 10,240 channels took 6 to 26 µs at batch 64, by machine (docs/log.md)."""

HELPERS = 3
HELPER_JOBS = 5
"""A provider that compiles or tunes for each length is prepared by up to so many workers, each
with no fewer jobs than this: what they compile is on disk when the first of them is timed."""


def preparing_waves(jobs: Iterable[PlannedJob], spare: int) -> Iterator[Queues]:
    """Queues that are prepared at once: all kernels; tuned steps, one worker at a time; stacks,
    which are built of those kernels and find them compiled."""
    kinds: dict[str, list[PlannedJob]] = {"kernels": [], "tuned steps": [], "stacks": []}
    for planned in jobs:
        workload = planned.job.workload
        tuned_step = workload.new_tokens == 1 and runs_any(planned.worker_key, TUNING)
        stack = isinstance(workload.op, StackOp)
        kinds["stacks" if stack else "tuned steps" if tuned_step else "kernels"].append(planned)
    yield preparing_queues(kinds["kernels"], spare)
    for key, queue in preparing_queues(kinds["tuned steps"], spare=0).items():
        yield {key: queue}
    yield preparing_queues(kinds["stacks"], spare)


def preparing_queues(jobs: Iterable[PlannedJob], spare: int) -> Queues:
    """Jobs by the worker that prepares them, the longest queues of compiling ones first.

    As long as there are `spare` workers a long queue is dealt out to several. Where kernels are
    tuned the largest calls come first.

    >>> preparing_queues([], 8)
    {}
    """
    found: dict[WorkerKey, list[PlannedJob]] = {}
    for planned in jobs:
        found.setdefault(planned.worker_key, []).append(planned)
    queues: Queues = {}
    for key in sorted(found, key=lambda key: (not compiles(key), -len(found[key]))):
        queue, workers = found[key], 1
        if runs_any(key, TUNING):
            queue.sort(key=lambda planned: -planned.job.workload.min_bytes)
        if runs_any(key, FOR_EACH_LENGTH):
            workers = max(1, min(HELPERS, len(queue) // HELPER_JOBS, 1 + spare))
        spare -= workers - 1
        queues |= {helper(key, n): deque(queue[n::workers]) for n in range(workers)}
    return queues


def runs_any(key: WorkerKey, providers: frozenset[str]) -> bool:
    return not providers.isdisjoint(key[1].split("+"))


def compiles(key: WorkerKey) -> bool:
    return runs_any(key, COMPILING)


def helper(key: WorkerKey, number: int) -> WorkerKey:
    """The key of a provider's worker that only prepares; number 0 is the one that is timed."""
    return (key[0], f"{key[1]} #{number}") if number else key


def is_helper(key: WorkerKey) -> bool:
    return " #" in key[1]
