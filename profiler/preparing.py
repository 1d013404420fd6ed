"""Who prepares what, in which order: jobs are compiled, tuned and gated before any is timed.

Workers are named by family and provider; a long queue of jobs that each compile is dealt out to
helpers of the same provider, whose kernels the timed one finds on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from planner.workload import StackOp
from profiler import gate
from profiler.plan import PlannedJob
from profiler.pool import WorkerKey
from profiler.protocol import Job

Queues = dict[WorkerKey, deque[PlannedJob]]

COMPILING = frozenset({"fla", "flex", "mamba_ssm", "triton"})
FOR_EACH_LENGTH = frozenset({"fla", "flex", "mamba_ssm"})  # and not once for all of them
TUNING = frozenset({"fla", "mamba_ssm"})
"""Triton's tuner runs in these, and not for every shape: once for all calls of one sequence and
once for all of several (profiler/tuners.py). So they are prepared from the largest call down: a
small call takes a launch in all configurations, and chance chooses (docs/log.md)."""

HELPERS = 3
HELPER_JOBS = 5
"""A provider that compiles or tunes for each length is prepared by up to so many workers, each
with no fewer jobs than this: what they compile is on disk when the first of them is timed."""


def preparing_waves(jobs: Iterable[PlannedJob], spare: int) -> Iterator[Queues]:
    """Queues that are prepared at once: all kernels; then stacks, which find theirs compiled.

    Of stacks of the same blocks only the shallowest: the kernels and shapes of the others are its.
    """
    kernels: list[PlannedJob] = []
    stacks: list[PlannedJob] = []
    for planned in jobs:
        (stacks if isinstance(planned.job.workload.op, StackOp) else kernels).append(planned)
    yield preparing_queues(kernels, spare)
    yield preparing_queues(shallowest(stacks), spare)


def shallowest(stacks: Iterable[PlannedJob]) -> list[PlannedJob]:
    """One job of all that differ in how often, and in which order, their blocks come."""
    found: dict[Job, PlannedJob] = {}
    for planned in sorted(stacks, key=lambda planned: planned.job.workload.min_bytes):
        workload = planned.job.workload
        alike = replace(workload, op=gate.compared(workload.op))
        found.setdefault(replace(planned.job, workload=alike), planned)
    return list(found.values())


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
