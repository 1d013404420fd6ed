"""The sweep: runs a plan's jobs in workers, records every outcome, can be cut short and resumed.

Only this process writes the store, one commit per point. On a GPU a stage first compiles, tunes
and gates all its jobs in parallel workers, then times them one at a time; on a CPU each job is
gated just before it is timed. Providers of one workload are timed in turn, in two rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from planner.store import Environment, Outcome, Point, Store
from planner.units import bytes_text
from planner.workload import canonical_json
from profiler import gate
from profiler.accounts import Accounts
from profiler.choice import Curves, long_enough, most_informative
from profiler.device import Device
from profiler.footprint import footprint, held_bytes
from profiler.measure.ceilings import Ceilings
from profiler.measure.memory import Memory
from profiler.measure.timing import Limits
from profiler.plan import Cell, PlannedJob, count_points, groups
from profiler.pool import Pool, WorkerKey
from profiler.preparing import Queues, is_helper, preparing_waves
from profiler.protocol import (
    CONTEXT_BYTES,
    Failed,
    Job,
    Measure,
    Prepare,
    Ready,
    Reference,
    Release,
    Reply,
    Request,
    Timed,
)

ROUNDS = 2
COARSE = 1  # under a budget: levels up to this come first, whatever their worth
STAGE_POINTS = 400  # and then so many points at a time, before the next are chosen
TOGETHER_POINTS = 1200  # of several parts, which a GPU times in about five minutes
REFERENCE_EVERY_S = 30.0
OVERTIME_S = 10.0
PATIENCE = 2  # times the limit of preparing alone: beside others a job waits for its turns
KEEP_SHARE = 0.4
"""Providers keep a workload's tensors between rounds while together they need no more."""

R = TypeVar("R")


class Progress(Protocol):
    """What a sweep tells while it runs."""

    def start(self, what: str, total: int) -> None: ...
    def advance(self, line: str) -> None: ...
    def note(self, line: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How hard to measure and when to give up. `long_cap_s` is for a point of the long lengths."""

    limits: Limits = Limits()
    long_cap_s: float = 90.0
    prepare_limit_s: float = 300.0
    measure_limit_s: float = 120.0
    budget_s: float | None = None
    parallel: int = 1
    max_workers: int = 16


@dataclass
class Tally:
    """How a sweep ended."""

    recorded: dict[Outcome, int] = field(default_factory=dict)
    left: int = 0
    split_s: dict[str, float] = field(default_factory=dict)
    prepare_s: dict[WorkerKey, float] = field(default_factory=dict)  # beside each other, on a GPU

    @property
    def faults(self) -> int:
        return sum(n for outcome, n in self.recorded.items() if outcome.is_fault)


GateKey = tuple[str, str, str, str]


class Sweep:
    """One run over a plan. Use `run`; everything it learns is in the store and the tally."""

    def __init__(
        self,
        store: Store,
        environment: Environment,
        device: Device,
        settings: Settings,
        progress: Progress,
        *,
        run_id: int,
        accounts: Accounts,
    ) -> None:
        self.store = store
        self.environment = environment
        self.device = device
        self.settings = settings
        self.progress = progress
        self.run_id = run_id
        self.accounts = accounts
        self.tally = Tally()
        self.ragged: dict[GateKey, float | Failed] = {}
        self.prepared: dict[Job, tuple[float, Memory | None]] = {}
        self.settled: set[Job] = set()
        self.reference: Ceilings | None = None
        self._reference_at = -REFERENCE_EVERY_S
        self.pool = Pool(device, settings.max_workers)

    # The plan, stage by stage

    def run(self, todo: list[PlannedJob]) -> Tally:
        """Measures these jobs, until done or out of budget."""
        self.progress.start("points", count_points(todo))
        try:
            with self.pool:
                parts = sorted({planned.part for planned in todo})
                stages = [self._stages([p for p in todo if p.part == part]) for part in parts]
                first = together(map(next, stages), self.settings.max_workers)
                for stage in chain(first, *stages):
                    self._stage(stage)
        finally:  # also when interrupted
            self.tally.left = count_points(todo) - sum(self.tally.recorded.values())
            self.tally.split_s = self.accounts.split()
        return self.tally

    def _stages(self, todo: list[PlannedJob]) -> Iterator[list[PlannedJob]]:
        """What is compiled together, then timed; each is chosen when those before are done.

        Everything at once, then the long lengths. Under a budget the coarse levels, then what the
        points so far say is the most informative, a few at a time. `run` takes the first stage of
        every part, those of several parts as one, before the others of any.
        """
        usual = [p for p in todo if not p.long]
        if self.settings.budget_s is not None:
            yield [p for p in usual if p.level <= COARSE]
            usual = [p for p in usual if p.level > COARSE]
            while usual and self.seconds_left > 0:
                stage = first_points(most_informative(usual, self._curves()), STAGE_POINTS)
                yield stage
                taken = {p.job for p in stage}
                usual = [p for p in usual if p.job not in taken]
        else:
            yield usual
        long = [p for p in todo if p.long]
        if long and self.seconds_left > 0:
            chosen, skipped = long_enough(long, self._curves(), self.settings.long_cap_s)
            for left_out in skipped:
                planned = left_out.planned
                self._record_failure(planned, planned.cells, left_out.failed)
            yield chosen

    def _curves(self) -> Curves:
        with self.accounts.clock("bookkeeping"):
            return Curves(self.store.points(environment_id=self.environment.id))

    @property
    def seconds_left(self) -> float:
        if self.settings.budget_s is None:
            return float("inf")
        return self.settings.budget_s - self.accounts.total_s

    def _stage(self, stage: list[PlannedJob]) -> None:
        if not stage or self.seconds_left <= 0:
            return
        able = []
        for planned in stage:
            impossible = self._impossible(planned)
            if impossible is None:
                able.append(planned)
            else:
                self._record_failure(planned, planned.cells, impossible)
        keys = list(dict.fromkeys(p.worker_key for p in able))
        if self.device.kind == "cuda":
            for queues in preparing_waves(able, self.settings.max_workers - len(keys)):
                self._prepare_in_parallel(queues, keys)
        else:
            self._start_workers(keys)
        for group in groups(able):
            if self.seconds_left <= 0:
                return
            self._time_group(group)

    def _impossible(self, planned: PlannedJob) -> Failed | None:
        """What is known without trying: the provider's limits, and tensors that cannot fit."""
        if planned.reason:
            return Failed(outcome=Outcome.UNSUPPORTED, reason=planned.reason)
        need = held_bytes(planned.job.workload)
        if need > self.device.memory_bytes:
            return Failed(
                outcome=Outcome.OUT_OF_MEMORY,
                reason=f"inputs and output alone need {bytes_text(need)}, the device has "
                f"{bytes_text(self.device.memory_bytes)}: not tried",
            )
        return None

    # Workers

    def _start_workers(self, keys: list[WorkerKey]) -> None:
        """Lets all workers import at once, and measures the ceilings with the first."""
        keys = keys[: self.settings.max_workers]
        with self.accounts.clock("import"):
            for key in keys:
                self.pool.start(key)
            for key in keys:
                self.pool.get(key)
        if keys:
            self._measure_reference(keys[0])

    def _limit_s(self, limit_s: float) -> float:
        """No request outlasts the budget by much."""
        return min(limit_s, max(self.seconds_left, 0.0) + OVERTIME_S)

    def _cut_short(self, failed: Failed) -> bool:
        """Whether it was the budget that ran out and not the provider's time: no row then."""
        return failed.outcome is Outcome.TIMEOUT and self.seconds_left <= 0

    def _ask(self, key: WorkerKey, request: Request, limit_s: float) -> Reply:
        """One request to one worker, booked by what it reports."""
        with self.accounts.clock("import"):
            handle = self.pool.get(key)
        if isinstance(handle, Failed):
            return handle
        handle.ask(request, self._limit_s(limit_s))
        reply = handle.collect()
        if isinstance(reply, Ready | Timed | Failed):
            for kind, seconds in reply.seconds.items():
                self.accounts.add(kind, seconds)
        if isinstance(reply, Failed) and reply.fatal:
            self.pool.end(key)
        return reply

    def _measure_reference(self, key: WorkerKey) -> None:
        """The ceilings now, if the last are old: a slow spell of the machine shows in them."""
        if time.monotonic() - self._reference_at < REFERENCE_EVERY_S:
            return
        dtype = "bf16" if self.device.kind == "cuda" else "fp32"
        with self.accounts.clock("timed"):
            reply = self._ask(key, Reference(dtype=dtype), self.settings.prepare_limit_s)
        if isinstance(reply, Ceilings):
            self.reference = reply
            self._keep_ceilings(reply)
        self._reference_at = time.monotonic()

    def _keep_ceilings(self, seen: Ceilings) -> None:
        """The best ever seen on this environment are its facts: what the device can do."""
        stored = self.store.environments()[self.environment.id].facts.get("ceilings")
        best = seen.best(Ceilings(**stored)) if stored else seen
        facts = {**self.environment.facts, "ceilings": best.to_dict()}
        self.store.add_environment(replace(self.environment, facts=facts))

    # Preparing

    def gate_key(self, planned: PlannedJob) -> GateKey:
        """What one whole comparison covers: provider, operation, dtype and kind of phase."""
        w = planned.job.workload
        op = gate.compared(w.op)
        segment = w.cached_tokens > 0 and w.new_tokens > 1
        split = planned.job.variant != ""
        return (
            canonical_json({"family": op.family, **op.to_dict()}),
            planned.job.provider,
            w.dtype,
            f"{w.phase}{' segment' if segment else ''}{' in segments' if split else ''}",
        )

    def _request(self, planned: PlannedJob) -> Prepare | Failed:
        """What to ask for this job; Failed where its whole comparison already failed."""
        known = self.ragged.get(self.gate_key(planned))
        if isinstance(known, Failed):
            return known
        return Prepare(job=planned.job, ragged=known is None, known=planned.job in self.prepared)

    def _learn(self, planned: PlannedJob, request: Prepare, reply: Reply) -> Failed | None:
        """Keeps what a preparation taught; returns the failure, if it was one."""
        if isinstance(reply, Ready):
            worst = reply.gate_error
            key = self.gate_key(planned)
            known = self.ragged.get(key, 0.0)
            if isinstance(known, Failed):  # another of the provider's workers saw it fail
                return known
            if request.ragged:
                known = self.ragged[key] = max(known, worst or 0.0)
            if not request.known:
                self.prepared[planned.job] = max(known, worst or 0.0), reply.memory
            return None
        assert isinstance(reply, Failed)
        if reply.whole:
            self.ragged[self.gate_key(planned)] = reply
        return reply

    def _prepare_in_parallel(self, queues: Queues, keys: Iterable[WorkerKey] = ()) -> None:
        """Compiles, tunes and gates; each worker takes its own queue in order, from when it has
        imported what it needs. Then those of `keys` that come later begin to import.

        Out of memory is not believed here, where others hold memory too, nor on a GPU that it took
        too long, since all wait for one that hangs in its turn: such a job is prepared again
        alone. Other failures are recorded.
        """
        asked: dict[WorkerKey, tuple[PlannedJob, Prepare]] = {}
        reported: dict[str, float] = {}
        importing_s = 0.0
        stop_at = 0.4 * self.seconds_left if self.settings.budget_s else float("-inf")
        start = time.perf_counter()
        try:
            wanted = list(queues)[: self.settings.max_workers]
            arriving = {key for key in wanted if self.pool.start(key).import_s is None}
            later = [key for key in keys if key not in self.pool.handles]
            while queues or asked:
                if self.seconds_left < stop_at:
                    queues.clear()
                self._hand_out(queues, asked, arriving)
                while not arriving and later and self.pool.has_room:
                    self.pool.start(later.pop())
                waiting = time.perf_counter()
                replying = (
                    self.pool.replying([*asked, *arriving], 0.5) if asked or arriving else []
                )
                if not asked:
                    importing_s += time.perf_counter() - waiting
                for key in replying:
                    if key in arriving:
                        arriving.remove(key)
                        if isinstance(self.pool.greet(key), Failed):
                            queues.pop(key, None)  # said when its turn to be timed comes
                        continue
                    planned, request = asked.pop(key)
                    reply = self.pool.handles[key].collect()
                    if isinstance(reply, Ready | Failed):
                        for kind, seconds in reply.seconds.items():
                            reported[kind] = reported.get(kind, 0.0) + seconds
                        spent = self.tally.prepare_s.get(key, 0.0) + sum(reply.seconds.values())
                        self.tally.prepare_s[key] = spent
                    self._settle(key, planned, request, reply)
                    if (key not in queues or planned.long) and key in self.pool.handles:
                        self.pool.handles[key].ask(Release(), self.settings.prepare_limit_s)
                        self.pool.handles[key].collect()
            for key in [k for k in self.pool.handles if is_helper(k)]:
                self.pool.end(key)
        finally:  # an interrupt in here, too, says where the time went
            self.accounts.add("import", importing_s)
            wall_s = time.perf_counter() - start - importing_s
            self.accounts.share(wall_s, reported or {"compile": 1.0})

    def _hand_out(
        self,
        queues: Queues,
        asked: dict[WorkerKey, tuple[PlannedJob, Prepare]],
        arriving: Set[WorkerKey] = frozenset(),
    ) -> None:
        """Gives every free worker its next job, as many as may run and as memory holds at once."""
        held = sum(footprint(planned.job.workload) for planned, _ in asked.values())
        if self.device.kind == "cuda":
            held += CONTEXT_BYTES * len(self.pool.handles)
        comparing = {self.gate_key(p) for p, request in asked.values() if request.ragged}
        for key in list(queues):
            if key in asked or key in arriving or len(asked) >= self.settings.parallel:
                continue
            need = footprint(queues[key][0].job.workload)
            if asked and held + need > self.device.memory_bytes:
                continue
            if self.gate_key(queues[key][0]) in comparing:
                continue  # another worker of this provider is at the comparison that holds for all
            held += need
            planned = queues[key].popleft()
            if not queues[key]:
                del queues[key]
            request = self._request(planned)
            handle = self.pool.get(key)
            if isinstance(request, Failed) or isinstance(handle, Failed):
                continue  # recorded when its turn to be timed comes
            self.progress.note(f"compiling {planned.job.workload.short()} {planned.job.provider}")
            handle.ask(request, self._limit_s(PATIENCE * self.settings.prepare_limit_s))
            asked[key] = (planned, request)
            if request.ragged:
                comparing.add(self.gate_key(planned))

    def _settle(self, key: WorkerKey, planned: PlannedJob, request: Prepare, reply: Reply) -> None:
        failed = self._learn(planned, request, reply)
        if failed is None:
            return
        if failed.fatal:
            self.pool.end(key)
        doubted = {Outcome.OUT_OF_MEMORY}
        if self.device.kind == "cuda":
            doubted.add(Outcome.TIMEOUT)
        if failed.outcome not in doubted and not self._cut_short(failed):
            self.settled.add(planned.job)
            self._record_failure(planned, planned.cells, failed)

    # Timing

    def _time_group(self, group: list[PlannedJob]) -> None:
        """All providers of one workload, in turn, in rounds; then their rows."""
        live = [p for p in group if p.job not in self.settled]
        rounds = ROUNDS if len(live) > 1 else 1
        limits = _share_of(self.settings.limits, rounds)
        if any(p.long for p in group):  # a sample of each turn, and two in all
            limits = replace(limits, min_samples_long=ROUNDS // rounds, fewest=1)
        need = sum(held_bytes(p.job.workload) for p in live)
        keep = need <= KEEP_SHARE * self.device.memory_bytes
        trials = [Trial(p, list(p.cells)) for p in live]
        self._start_workers([p.worker_key for p in live])  # those that have died, at once
        for turn in range(rounds):
            for trial in trials:
                self._turn(trial, limits, release=not keep or turn == rounds - 1)
        for trial in trials:
            self._record_trial(trial)

    def _turn(self, trial: Trial, limits: Limits, *, release: bool) -> None:
        """One provider's samples of one round."""
        key = trial.planned.worker_key
        if not trial.cells:
            return
        self._measure_reference(key)
        for cell in list(trial.cells):
            failed = self._with_room(key, partial(self._ready, trial))
            if failed is not None:
                trial.fail(trial.cells, failed)
                return
            reply = self._with_room(key, partial(self._sample, trial, cell, limits))
            if isinstance(reply, Timed):
                trial.add(cell, reply, self.reference)
                continue
            assert isinstance(reply, Failed)
            trial.fail([cell], reply)
        if release and key in self.pool.handles:
            self._ask(key, Release(), self.settings.prepare_limit_s)

    def _sample(self, trial: Trial, cell: Cell, limits: Limits) -> Reply:
        """A round's samples of one point; prepared anew after a failure, which drops the job."""
        failed = self._ready(trial)
        if failed is not None:
            return failed
        request = Measure(
            mode=cell.mode,
            cache=cell.cache,
            limits=limits,
            energy=trial.planned.energy and cell.has_energy,
            rotation=trial.timed[cell][0].rotation if cell in trial.timed else None,
        )
        return self._ask(trial.planned.worker_key, request, self.settings.measure_limit_s)

    def _with_room(self, key: WorkerKey, attempt: Callable[[], R]) -> R:
        """An attempt that fails for memory which other workers hold is made again, first without
        their tensors; then, if what they take by being there would have done, without them."""
        result = attempt()
        others = [k for k in self.pool.handles if k != key]
        if lacked_bytes(result) is not None:
            for other in others:
                self._ask(other, Release(), self.settings.prepare_limit_s)
            result = attempt()
        lacked = lacked_bytes(result)
        if lacked is not None and lacked < CONTEXT_BYTES * len(others):
            for other in others:  # started again when their turn comes
                self.pool.end(other)
            result = attempt()
        return result

    def _ready(self, trial: Trial) -> Failed | None:
        """Has the job prepared in its worker; the failure if it cannot be."""
        planned = trial.planned
        request = self._request(planned)
        if isinstance(request, Failed):
            return request
        reply = self._ask(planned.worker_key, request, self.settings.prepare_limit_s)
        failed = self._learn(planned, request, reply)
        if failed is None:
            assert isinstance(reply, Ready)
            trial.gate_error, trial.memory = self.prepared[planned.job]
        return failed

    # Recording

    def _record_trial(self, trial: Trial) -> None:
        for cell, failed in trial.failed.items():
            if not self._cut_short(failed):
                self._record_failure(trial.planned, (cell,), failed)
        for cell in trial.cells:
            self._record_time(trial, cell)

    def _record_time(self, trial: Trial, cell: Cell) -> None:
        timed = trial.timed[cell]
        memory = trial.memory
        self._record(
            trial.planned,
            cell,
            outcome=Outcome.OK,
            samples_s=[s for t in timed for s in t.samples_s],
            timing_method=timed[-1].method,
            peak_bytes=memory.peak_bytes if memory else None,
            workspace_bytes=memory.workspace_bytes if memory else None,
            energy_j=timed[-1].energy_j,
            gate_error=trial.gate_error,
            telemetry=trial.telemetry[cell],
        )

    def _record_failure(self, planned: PlannedJob, cells: Iterable[Cell], failed: Failed) -> None:
        for cell in cells:
            self._record(planned, cell, outcome=failed.outcome, reason=failed.reason)

    def _record(self, planned: PlannedJob, cell: Cell, **measured: Any) -> None:
        job = planned.job
        with self.accounts.clock("bookkeeping"):
            point = Point(
                workload=job.workload,
                provider=job.provider,
                variant=job.variant,
                mode=cell.mode,
                cache_state=cell.cache,
                method_version=planned.method,
                environment_id=self.environment.id,
                **measured,
            )
            self.store.record(point, self.run_id)
        self.tally.recorded[point.outcome] = self.tally.recorded.get(point.outcome, 0) + 1
        named = f"{job.provider} {job.variant}".strip()
        self.progress.advance(
            f"{job.workload.short()} {named} {cell.mode} {cell.cache} {point.outcome}"
            + (f": {point.reason}" if point.reason else "")
        )


@dataclass
class Trial:
    """One provider's turns on one workload: cells still alive, their samples, and failures."""

    planned: PlannedJob
    cells: list[Cell]
    timed: dict[Cell, list[Timed]] = field(default_factory=dict)
    telemetry: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Cell, Failed] = field(default_factory=dict)
    memory: Memory | None = None
    gate_error: float | None = None

    def add(self, cell: Cell, timed: Timed, reference: Ceilings | None) -> None:
        self.timed.setdefault(cell, []).append(timed)
        seen = dict(timed.telemetry)
        if timed.rotation:
            seen["copies"] = timed.rotation
        if reference is not None:
            seen["reference"] = reference.to_dict()
        self.telemetry[cell] = seen

    def fail(self, cells: Iterable[Cell], failed: Failed) -> None:
        for cell in list(cells):
            self.failed[cell] = failed
            self.cells.remove(cell)


def lacked_bytes(result: object) -> float | None:
    return result.lacked_bytes if isinstance(result, Failed) else None


def together(stages: Iterable[list[PlannedJob]], max_workers: int) -> Iterator[list[PlannedJob]]:
    """Stages in a row as one, in their order, as long as the workers can be there at once.

    One part's compiling then fills the cores that another's leaves idle.
    """
    joined: list[PlannedJob] = []
    for stage in stages:
        more = [*joined, *stage]
        workers = {planned.worker_key for planned in more}
        if joined and (len(workers) > max_workers or count_points(more) > TOGETHER_POINTS):
            yield joined
            more = stage
        joined = more
    if joined:
        yield joined


def first_points(jobs: list[PlannedJob], count: int) -> list[PlannedJob]:
    """The first jobs that hold that many points, whole workloads of them."""
    found: list[PlannedJob] = []
    for group in groups(jobs):
        if count_points(found) >= count:
            break
        found += group
    return found


def _share_of(limits: Limits, rounds: int) -> Limits:
    """The limits of one round of several."""
    return replace(
        limits,
        min_samples=-(-limits.min_samples // rounds),
        min_samples_long=-(-limits.min_samples_long // rounds),
        max_samples=-(-limits.max_samples // rounds),
        fewest=-(-limits.fewest // rounds),
        time_cap_s=limits.time_cap_s / rounds,
        settle_s=limits.settle_s / rounds,
        heavy_s=limits.heavy_s / rounds,
    )
